/**
 * Reads `tokenizer.model`, the protobuf `ModelProto` of SentencePiece (`sentencepiece_model.proto`), of type BPE.
 *
 * Only the fields that change what text becomes are read. What is set there and not done here is refused by name:
 * a tokenizer that is nearly right gives wrong answers without any error.
 */

import {
  decodeUtf8,
  fail,
  Kind,
  NO_RANK,
  type TokenizerFile,
  type Vocabulary,
  VocabularyBuilder,
} from "./vocabulary.ts";

const MODEL_TYPES = ["0", "UNIGRAM", "BPE", "WORD", "CHAR"];
/** SentencePiece.Type: NORMAL 1, UNKNOWN 2, CONTROL 3, USER_DEFINED 4, UNUSED 5, BYTE 6. */
const KINDS = [undefined, Kind.normal, Kind.unknown, Kind.control, Kind.user, undefined, Kind.byte];

/**
 * The vocabulary in the bytes of a `tokenizer.model`. `place` is for messages.
 *
 * @throws {RequestError} `model_invalid`, saying what was expected and what was found.
 */
export function readSentencePiece(data: Uint8Array, place: string): TokenizerFile {
  const builder = new VocabularyBuilder(place, data.length);
  let scores = new Float32Array(1 << 12);
  // The defaults of the proto. A message that comes twice is merged, as protobuf asks.
  let modelType = 1, byteFallback = false, dummyPrefix = true, trimsSpaces = true, escapesSpaces = true;
  const refuse = (setting: string) => fail(place, `a setting that is supported, found ${setting}`);

  const proto = new Proto(data, place);
  while (proto.next()) {
    const inner = proto.field <= 5 ? proto.message() : undefined;
    if (proto.field === 1 && inner) {
      let pieceStart = 0, pieceEnd = 0, score = 0, type = 1;
      while (inner.next()) {
        if (inner.field === 1) [pieceStart, pieceEnd] = [inner.start, inner.end];
        else if (inner.field === 2) score = inner.float();
        else if (inner.field === 3) type = inner.integer();
      }
      const id = builder.size, kind = KINDS[type];
      if (kind === undefined || Number.isNaN(score)) {
        const piece = JSON.stringify(decodeUtf8(data.subarray(pieceStart, pieceEnd)));
        fail(place, `pieces of types 1, 2, 3, 4 and 6, found ${piece} of type ${type}, score ${score}`);
      }
      builder.add(id, data, pieceStart, pieceEnd, kind);
      if (id >= scores.length) {
        const larger = new Float32Array(scores.length * 2);
        larger.set(scores);
        scores = larger;
      }
      scores[id] = score;
    } else if (proto.field === 2 && inner) {
      while (inner.next()) {
        if (inner.field === 3) modelType = inner.integer();
        else if (inner.field === 24 && inner.integer()) refuse("treat_whitespace_as_suffix");
        else if (inner.field === 35) byteFallback = inner.integer() !== 0;
      }
    } else if (proto.field === 3 && inner) {
      while (inner.next()) {
        if (inner.field === 2 && inner.end > inner.start) {
          refuse("a precompiled_charsmap (normalisation rules)");
        } else if (inner.field === 3) dummyPrefix = inner.integer() !== 0;
        else if (inner.field === 4) trimsSpaces = inner.integer() !== 0;
        else if (inner.field === 5) escapesSpaces = inner.integer() !== 0;
      }
    } else if (proto.field === 5 && inner) {
      while (inner.next()) {
        if (inner.field === 2 && inner.end > inner.start) refuse("denormalisation rules");
      }
    }
  }
  if (builder.size === 0) fail(place, "a SentencePiece model, found no pieces");
  if (modelType !== 2) fail(place, `model_type BPE, found ${MODEL_TYPES[modelType] ?? modelType}`);
  if (trimsSpaces) refuse("remove_extra_whitespaces");
  if (!escapesSpaces) refuse("escape_whitespaces = false");
  const vocabulary = builder.finish();
  rankByScore(vocabulary, scores);
  return { vocabulary, byteFallback, dummyPrefix };
}

/** The highest score merges first; equal scores share a rank, so that the leftmost goes first. */
function rankByScore(vocabulary: Vocabulary, scores: Float32Array): void {
  const { kinds, ranks } = vocabulary;
  const sorted = new Float32Array(vocabulary.size);
  let count = 0;
  for (let id = 0; id < vocabulary.size; id++) if (kinds[id] === Kind.normal) sorted[count++] = -scores[id];
  sorted.subarray(0, count).sort();
  let distinct = 0;
  for (let i = 0; i < count; i++) {
    if (i === 0 || sorted[i] !== sorted[distinct - 1]) sorted[distinct++] = sorted[i];
  }
  for (let id = 0; id < vocabulary.size; id++) {
    if (kinds[id] !== Kind.normal) ranks[id] = NO_RANK;
    else {
      let low = 0, high = distinct - 1;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (sorted[middle] < -scores[id]) low = middle + 1;
        else high = middle;
      }
      ranks[id] = low;
    }
  }
}

/** A walk over the fields of one protobuf message. */
class Proto {
  /** Number of the current field. */
  field = 0;
  /** Bytes of the current field's value: what a length-delimited field holds, or the number itself. */
  start = 0;
  end = 0;
  #at: number;
  #wire = 0;
  #number = 0;

  constructor(
    readonly data: Uint8Array,
    readonly place: string,
    from = 0,
    readonly limit = data.length,
  ) {
    this.#at = from;
  }

  /** Goes to the next field; false at the end of the message. */
  next(): boolean {
    if (this.#at >= this.limit) return false;
    const at = this.#at, tag = this.#varint();
    this.field = Math.floor(tag / 8);
    this.#wire = tag % 8;
    this.start = this.#at;
    if (this.#wire === 0) this.#number = this.#varint();
    else if (this.#wire === 1) this.#at += 8;
    else if (this.#wire === 2) {
      const length = this.#varint();
      this.start = this.#at;
      this.#at += length;
    } else if (this.#wire === 5) this.#at += 4;
    if (this.field === 0 || ![0, 1, 2, 5].includes(this.#wire)) {
      fail(this.place, `a SentencePiece model, found no protobuf field at byte ${at}`);
    }
    if (this.#at > this.limit) {
      fail(this.place, `${this.#at} bytes or more, found ${this.limit} (field ${this.field} is cut short)`);
    }
    this.end = this.#at;
    return true;
  }

  integer(): number {
    this.#want(0);
    return this.#number;
  }

  float(): number {
    this.#want(5);
    return new DataView(this.data.buffer, this.data.byteOffset + this.start, 4).getFloat32(0, true);
  }

  message(): Proto {
    this.#want(2);
    return new Proto(this.data, this.place, this.start, this.end);
  }

  #want(wire: number): void {
    if (this.#wire === wire) return;
    fail(
      this.place,
      `wire type ${wire} of field ${this.field} at byte ${this.start}, found ${this.#wire}`,
    );
  }

  /** Exact below 2^53; the high bits of negative numbers are not needed here. */
  #varint(): number {
    let value = 0, unit = 1;
    for (let i = 0; i < 10; i++) {
      const byte = this.data[this.#at++] ?? 0;
      value += (byte & 0x7f) * unit;
      if (byte < 0x80) return value;
      unit *= 128;
    }
    return fail(this.place, `a number of at most 10 bytes at byte ${this.#at - 10}`);
  }
}
