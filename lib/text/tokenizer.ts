/**
 * Words to token ids and back, for the SentencePiece BPE vocabularies of Gemma and PaliGemma.
 *
 * Pieces that a file calls user-defined are found first, the longest at each place; what lies between them is merged
 * from characters; what no piece covers becomes bytes. The same ids as SentencePiece gives for `tokenizer.model` and
 * Hugging Face's tokenizers for `tokenizer.json`, except that the text `<eos>` or `<image>` is never a control id.
 */

import { RequestError } from "../errors.ts";
import type { ModelFiles } from "../types.ts";
import { encodePieces } from "./bpe.ts";
import { readSentencePiece } from "./sentencepiece.ts";
import { createTextStream, type TextStream } from "./text_stream.ts";
import { readTokenizerJson } from "./tokenizer_json.ts";
import { Kind, normalised, type TokenizerFile, WholePieces } from "./vocabulary.ts";

/** Text to ids and ids to text. Immutable: any number of requests may share one. */
export interface Tokenizer {
  /** Number of ids. */
  readonly size: number;
  /**
   * Ids of a text, without BOS, EOS and newline. With `tokens: "plain"`, the default, `<loc0001>` and `<seg000>` are
   * the characters they are; `"allow"` gives them their own ids. `<image>`, `<eos>` and other control pieces are
   * characters either way. Lone surrogates count as U+FFFD.
   */
  encode(text: string, options?: { readonly tokens?: "plain" | "allow" }): number[];
  /** Text of ids. Control pieces, and ids at or above `size`, give none; broken UTF-8 gives U+FFFD a byte. */
  decode(ids: Iterable<number>): string;
  /** Decodes as ids come, never half a character. */
  stream(): TextStream;
  /** A piece as it stands in the file, such as `▁the` or `<loc0001>`; empty for an id that has none. */
  piece(id: number): string;
  /** The id of a piece as it stands in the file. */
  idOf(piece: string): number | undefined;
}

/**
 * Loads the tokenizer of a model directory: `tokenizer.model` where there is one, otherwise `tokenizer.json`.
 *
 * @throws {RequestError} `model_invalid` when neither is there, or the file is broken or of an unsupported kind.
 */
export async function loadTokenizer(files: ModelFiles): Promise<Tokenizer> {
  for (const [name, create] of [["tokenizer.model", fromModel], ["tokenizer.json", fromJson]] as const) {
    if (await files.size(name) !== undefined) {
      return create(await files.read(name), `${files.place}/${name}`);
    }
  }
  throw new RequestError(
    "model_invalid",
    `Cannot load the model in ${files.place}: expected tokenizer.model or tokenizer.json, found ${
      (await files.list()).join(", ") || "nothing"
    }`,
  );
}

/**
 * The tokenizer in the bytes of a `tokenizer.model`. `place` is for messages.
 *
 * @throws {RequestError} `model_invalid`.
 */
export function fromModel(data: Uint8Array, place = "tokenizer.model"): Tokenizer {
  return new PieceTokenizer(readSentencePiece(data, place));
}

/**
 * The tokenizer in the bytes of a `tokenizer.json`. `place` is for messages.
 *
 * @throws {RequestError} `model_invalid`.
 */
export function fromJson(data: Uint8Array, place = "tokenizer.json"): Tokenizer {
  return new PieceTokenizer(readTokenizerJson(data, place));
}

class PieceTokenizer implements Tokenizer {
  readonly #file: TokenizerFile;
  readonly #raw: WholePieces;
  readonly #whole: WholePieces;

  constructor(file: TokenizerFile) {
    this.#file = file;
    this.#raw = new WholePieces(file.vocabulary, Kind.raw, "kept");
    this.#whole = new WholePieces(file.vocabulary, Kind.user | Kind.location, "escaped");
  }

  get size(): number {
    return this.#file.vocabulary.size;
  }

  encode(text: string, options: { readonly tokens?: "plain" | "allow" } = {}): number[] {
    const ids: number[] = [];
    if (text === "") return ids;
    if (this.#file.dummyPrefix) text = " " + text;
    const kinds = options.tokens === "allow" ? Kind.user | Kind.location : Kind.user;
    if (this.#raw.isEmpty) this.#normal(text, kinds, ids);
    else {
      const bytes = new TextEncoder().encode(text);
      this.#split(this.#raw, bytes, Kind.raw, ids, (start, end) => {
        this.#normal(
          new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes.subarray(start, end)),
          kinds,
          ids,
        );
      });
    }
    return ids;
  }

  /** Appends the ids of text in which nothing is left to be found before normalisation. */
  #normal(text: string, kinds: number, ids: number[]): void {
    const bytes = normalised(text);
    this.#split(this.#whole, bytes, kinds, ids, (start, end) => {
      encodePieces(this.#file.vocabulary, bytes, start, end, this.#file.byteFallback, ids);
    });
  }

  /** Appends the ids of whole pieces and hands what lies between them to `rest`. */
  #split(
    pieces: WholePieces,
    bytes: Uint8Array,
    kinds: number,
    ids: number[],
    rest: (start: number, end: number) => void,
  ): void {
    let from = 0;
    for (let at = 0; at < bytes.length;) {
      const match = pieces.longest(bytes, at, kinds);
      if (match === undefined) at++;
      else {
        if (at > from) rest(from, at);
        ids.push(match.id);
        from = at = match.end;
      }
    }
    if (from < bytes.length) rest(from, bytes.length);
  }

  decode(ids: Iterable<number>): string {
    const stream = this.stream();
    let text = "";
    for (const id of ids) text += stream.push(id);
    return text + stream.end();
  }

  stream(): TextStream {
    return createTextStream(this.#file.vocabulary, this.#file.dummyPrefix);
  }

  piece(id: number): string {
    return id >= 0 && id < this.size ? this.#file.vocabulary.piece(id) : "";
  }

  idOf(piece: string): number | undefined {
    const bytes = new TextEncoder().encode(piece);
    const id = bytes.length === 0 ? -1 : this.#file.vocabulary.find(bytes, 0, bytes.length);
    return id < 0 ? undefined : id;
  }
}
