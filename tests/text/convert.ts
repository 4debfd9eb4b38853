/** Tokenizer files turned into one another, written for the tests alone, so that both readers can be compared. */

export interface Piece {
  readonly piece: string;
  readonly score: number;
  /** SentencePiece.Type: NORMAL 1, UNKNOWN 2, CONTROL 3, USER_DEFINED 4, UNUSED 5, BYTE 6. */
  readonly type: number;
}

/** The pieces of a `tokenizer.model`. */
export function piecesOf(model: Uint8Array): Piece[] {
  const pieces: Piece[] = [];
  const view = new DataView(model.buffer, model.byteOffset, model.byteLength);
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let shift = 0;; shift += 7) {
      const byte = model[at++];
      value |= (byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
  };
  while (at < model.length) {
    const tag = varint(), end = varint() + at;
    if (tag === 10) {
      let piece = "", score = 0, type = 1;
      while (at < end) {
        const inner = varint();
        if (inner === 10) {
          const length = varint();
          piece = new TextDecoder("utf-8", { ignoreBOM: true }).decode(model.subarray(at, at += length));
        } else if (inner === 21) {
          score = view.getFloat32(at, true);
          at += 4;
        } else if (inner === 24) type = varint();
        else throw new TypeError(`Unexpected tag ${inner}`);
      }
      pieces.push({ piece, score, type });
    }
    at = end;
  }
  return pieces;
}

/** A `tokenizer.model` with Gemma's settings; `settings` are more bytes of the proto, which override. */
export function toModel(pieces: readonly Piece[], settings: readonly number[] = []): Uint8Array {
  const out: number[] = [];
  const varint = (to: number[], value: number) => {
    for (; value >= 0x80; value >>>= 7) to.push((value & 0x7f) | 0x80);
    to.push(value);
  };
  const float = new DataView(new ArrayBuffer(4));
  for (const { piece, score, type } of pieces) {
    const inner: number[] = [10], text = new TextEncoder().encode(piece);
    varint(inner, text.length);
    inner.push(...text, 21);
    float.setFloat32(0, score, true);
    for (let i = 0; i < 4; i++) inner.push(float.getUint8(i));
    inner.push(24, type);
    out.push(10);
    varint(out, inner.length);
    for (const byte of inner) out.push(byte);
  }
  // trainer_spec { model_type: BPE, byte_fallback: true }, normalizer_spec { add_dummy_prefix: false,
  // remove_extra_whitespaces: false }.
  out.push(0x12, 5, 24, 2, 0x98, 0x02, 1, 0x1a, 4, 24, 0, 32, 0, ...settings);
  return Uint8Array.from(out);
}

/** A field of the proto: 2 trainer_spec or 3 normalizer_spec with one number in it. */
export function setting(message: number, field: number, value: number): number[] {
  const tag = field * 8, bytes = tag < 128 ? [tag, value] : [(tag & 0x7f) | 0x80, tag >> 7, value];
  return [message * 8 + 2, bytes.length, ...bytes];
}

/**
 * A `tokenizer.json` as transformers' converters make it: every split of a piece into two pieces is a merge, ordered
 * by the score of the piece. User-defined pieces are added tokens found in normalised text; control pieces are
 * special added tokens, or no added tokens at all where an oracle must read them as characters.
 */
export function toJson(
  pieces: readonly Piece[],
  options: { readonly control: "special" | "characters"; readonly mergeFormat?: "string" | "pair" },
): Record<string, unknown> {
  const vocab = Object.fromEntries(pieces.map(({ piece }, id) => [piece, id]));
  const ids = new Map(Object.entries(vocab));
  const merges: [string, string, number][] = [];
  for (const { piece, score, type } of pieces) {
    if (type !== 1) continue;
    const characters = [...piece];
    for (let i = 1; i < characters.length; i++) {
      const left = characters.slice(0, i).join(""), right = characters.slice(i).join("");
      if (ids.has(left) && ids.has(right)) merges.push([left, right, score]);
    }
  }
  merges.sort((a, b) => b[2] - a[2]);
  const added = pieces.flatMap(({ piece, type }, id) =>
    type === 4 || (options.control === "special" && (type === 2 || type === 3))
      ? [{ id, content: piece, special: type !== 4, normalized: type === 4, lstrip: false, rstrip: false }]
      : []
  );
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: added,
    normalizer: { type: "Replace", pattern: { String: " " }, content: "▁" },
    pre_tokenizer: null,
    post_processor: null,
    decoder: {
      type: "Sequence",
      decoders: [
        { type: "Replace", pattern: { String: "▁" }, content: " " },
        { type: "ByteFallback" },
        { type: "Fuse" },
      ],
    },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: "<unk>",
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: true,
      byte_fallback: true,
      vocab,
      merges: merges.map(([a, b]) => options.mergeFormat === "pair" ? [a, b] : `${a} ${b}`),
    },
  };
}

/** JSON as the bytes of a file. */
export function toBytes(json: unknown): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(json));
}
