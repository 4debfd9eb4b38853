/**
 * The pieces of a tokenizer as one compact table.
 *
 * V pieces cost about 27 bytes each, whatever file they came from: their UTF-8 bytes end to end, start u32 and
 * length u16 of each, a hash index of u32 slots at most half full, a merge rank u32 and a kind u8. The 257,152
 * pieces of PaliGemma take 7 MB; a JavaScript Map of the same strings and merges takes hundreds.
 */

import { RequestError } from "../errors.ts";

/** What a piece is, as bits, so that a set of kinds is a mask. */
export const Kind = {
  /** An ordinary piece, reached by merging characters. */
  normal: 0,
  /** Found whole in the normalised text before any merging: newline runs, space runs, HTML tags. */
  user: 1,
  /** Found whole in the text as it was given, before normalisation (`normalized: false` in tokenizer.json). */
  raw: 2,
  /** `<loc0000>` to `<loc1023>` and `<seg000>` to `<seg127>`: found whole only where the caller allows it. */
  location: 4,
  /** Never found in text and never shown: `<bos>`, `<eos>`, `<pad>`, `<image>`, and ids without a piece. */
  control: 8,
  /** Stands for what the vocabulary cannot express. */
  unknown: 16,
  /** One byte, `<0x00>` to `<0xFF>`. */
  byte: 32,
} as const;

/** Rank of a piece that no merge makes. */
export const NO_RANK = 0xffffffff;

/** The largest id a file may use; it only keeps a broken file from asking for all memory. */
const MAX_ID = (1 << 22) - 1;
const FNV_START = 0x811c9dc5;
const FNV_PRIME = 0x01000193;
const BYTE_NAME = /^<0x([0-9A-Fa-f]{2})>$/;

/** A vocabulary, read-only but for `ranks`, which the reader that built it fills. */
export class Vocabulary {
  /** Merge order: a lower rank merges first, equal ranks leftmost first; `NO_RANK` never. u32 [V]. */
  readonly ranks: Uint32Array;
  /** Id of the piece of every byte value, -1 where there is none. i32 [256]. */
  readonly byteIds: Int32Array = new Int32Array(256).fill(-1);
  /** Id for what cannot be expressed, -1 where there is none. */
  readonly unknownId: number;
  /** Longest piece that merging may make, bytes. */
  readonly longest: number;
  readonly #slots: Uint32Array;

  /** @throws {RequestError} `model_invalid` when two ids have the same piece; `place` is for the message. */
  constructor(
    place: string,
    /** UTF-8 of all pieces, end to end. */
    readonly bytes: Uint8Array,
    readonly starts: Uint32Array,
    readonly lengths: Uint16Array,
    /** One of `Kind` each. u8 [V]. */
    readonly kinds: Uint8Array,
  ) {
    const size = starts.length;
    let slots = 16;
    while (slots < size * 2) slots *= 2;
    this.#slots = new Uint32Array(slots);
    this.ranks = new Uint32Array(size).fill(NO_RANK);
    let longest = 0, unknownId = -1;
    for (let id = 0; id < size; id++) {
      const length = lengths[id];
      if (length === 0) continue;
      const slot = this.#slot(bytes, starts[id], starts[id] + length);
      if (this.#slots[slot] !== 0) {
        const first = this.#slots[slot] - 1;
        const piece = JSON.stringify(this.piece(id));
        fail(place, `each piece once, found ${piece} as id ${first} and as id ${id}`);
      }
      this.#slots[slot] = id + 1;
      if (length > longest) longest = length;
      if (kinds[id] === Kind.unknown) unknownId = id;
      else if (kinds[id] === Kind.byte) {
        const value = BYTE_NAME.exec(this.piece(id));
        if (!value) fail(place, `a byte piece such as <0x0A>, found ${JSON.stringify(this.piece(id))}`);
        this.byteIds[parseInt(value[1], 16)] = id;
      }
    }
    this.longest = longest;
    this.unknownId = unknownId;
  }

  /** Number of ids. */
  get size(): number {
    return this.starts.length;
  }

  /** What the table takes in memory. */
  get sizeBytes(): number {
    return this.bytes.byteLength + this.starts.byteLength + this.lengths.byteLength + this.kinds.byteLength +
      this.ranks.byteLength + this.#slots.byteLength + this.byteIds.byteLength;
  }

  /** Id of the piece that is bytes [start, end) of `source`, or -1. */
  find(source: Uint8Array, start: number, end: number): number {
    return this.#slots[this.#slot(source, start, end)] - 1;
  }

  /** UTF-8 of a piece; a view. */
  pieceBytes(id: number): Uint8Array {
    return this.bytes.subarray(this.starts[id], this.starts[id] + this.lengths[id]);
  }

  /** A piece as text, U+2581 for a space. */
  piece(id: number): string {
    return decodeUtf8(this.pieceBytes(id));
  }

  /** The slot that holds the piece, or the empty one where it would go. Linear probing over FNV-1a. */
  #slot(source: Uint8Array, start: number, end: number): number {
    let hash = FNV_START;
    for (let i = start; i < end; i++) hash = Math.imul(hash ^ source[i], FNV_PRIME);
    const mask = this.#slots.length - 1;
    let slot = (hash ^ (hash >>> 15)) & mask;
    const length = end - start;
    for (let entry; (entry = this.#slots[slot]) !== 0; slot = (slot + 1) & mask) {
      const id = entry - 1;
      if (this.lengths[id] !== length) continue;
      const at = this.starts[id];
      let i = 0;
      while (i < length && this.bytes[at + i] === source[start + i]) i++;
      if (i === length) break;
    }
    return slot;
  }
}

/** What a tokenizer file says: the pieces, and how text is brought to them. */
export interface TokenizerFile {
  readonly vocabulary: Vocabulary;
  /** Characters without a piece become their bytes' pieces. */
  readonly byteFallback: boolean;
  /** A space is put before the text, and taken away again by decoding. */
  readonly dummyPrefix: boolean;
}

/** Gathers pieces in any order of ids. */
export class VocabularyBuilder {
  #bytes: Uint8Array;
  #used = 0;
  #starts = new Uint32Array(1 << 12);
  #lengths = new Uint16Array(1 << 12);
  #kinds = new Uint8Array(1 << 12).fill(Kind.control);
  #size = 0;

  /** `place` is for messages, `sizeBytes` a guess of the pieces' bytes together. */
  constructor(readonly place: string, sizeBytes: number) {
    this.#bytes = new Uint8Array(Math.max(64, sizeBytes));
  }

  /** Number of ids so far: one more than the largest. */
  get size(): number {
    return this.#size;
  }

  /**
   * Adds bytes [start, end) of `source` as the piece `id`. Location pieces become that kind, whatever `kind` says.
   *
   * @throws {RequestError} `model_invalid` for an id out of range or taken, and a piece that is empty or too long.
   */
  add(id: number, source: Uint8Array, start: number, end: number, kind: number): void {
    const length = end - start;
    if (!Number.isInteger(id) || id < 0 || id > MAX_ID) {
      fail(this.place, `ids from 0 to ${MAX_ID}, found ${id}`);
    }
    if (length === 0 || length > 0xffff) {
      fail(this.place, `pieces of 1 to 65535 bytes, found ${length} at id ${id}`);
    }
    if (id >= this.#starts.length) {
      const room = Math.max(id + 1, this.#starts.length * 2);
      this.#starts = grown(this.#starts, new Uint32Array(room));
      this.#lengths = grown(this.#lengths, new Uint16Array(room));
      this.#kinds = grown(this.#kinds, new Uint8Array(room).fill(Kind.control));
    }
    if (this.#lengths[id] !== 0) fail(this.place, `each id once, found ${id} twice`);
    if (this.#used + length > this.#bytes.length) {
      this.#bytes = grown(this.#bytes, new Uint8Array(Math.max(this.#used + length, this.#bytes.length * 2)));
    }
    this.#starts[id] = this.#used;
    this.#lengths[id] = length;
    this.#kinds[id] = isLocation(source, start, end) ? Kind.location : kind;
    for (let i = start; i < end; i++) this.#bytes[this.#used++] = source[i];
    if (id >= this.#size) this.#size = id + 1;
  }

  /**
   * The table, with no merges yet.
   *
   * @throws {RequestError} `model_invalid` when two ids have the same piece.
   */
  finish(): Vocabulary {
    return new Vocabulary(
      this.place,
      this.#bytes.slice(0, this.#used),
      this.#starts.slice(0, this.#size),
      this.#lengths.slice(0, this.#size),
      this.#kinds.slice(0, this.#size),
    );
  }
}

/** A trie over the few pieces that are found whole, for the longest match at a position. */
export class WholePieces {
  /** Child of a node by node · 256 + byte. */
  readonly #children = new Map<number, number>();
  /** Id of the piece that ends at a node, or -1. */
  readonly #ends: number[] = [-1];

  /** Pieces whose kind is in `kinds`; in normalised text a space of a piece is U+2581. */
  constructor(readonly vocabulary: Vocabulary, kinds: number, spaces: "kept" | "escaped") {
    for (let id = 0; id < vocabulary.size; id++) {
      if ((vocabulary.kinds[id] & kinds) === 0) continue;
      let bytes = vocabulary.pieceBytes(id);
      if (spaces === "escaped" && bytes.includes(32)) bytes = normalised(decodeUtf8(bytes));
      let node = 0;
      for (const byte of bytes) {
        let child = this.#children.get(node * 256 + byte);
        if (child === undefined) {
          child = this.#ends.push(-1) - 1;
          this.#children.set(node * 256 + byte, child);
        }
        node = child;
      }
      this.#ends[node] = id;
    }
  }

  get isEmpty(): boolean {
    return this.#children.size === 0;
  }

  /** The longest piece with a kind in `kinds` that starts at `at`, and where it ends. */
  longest(source: Uint8Array, at: number, kinds: number): { id: number; end: number } | undefined {
    let node: number | undefined = 0, found: { id: number; end: number } | undefined;
    for (let end = at + 1; end <= source.length; end++) {
      node = this.#children.get(node * 256 + source[end - 1]);
      if (node === undefined) break;
      const id = this.#ends[node];
      if (id >= 0 && (this.vocabulary.kinds[id] & kinds) !== 0) found = { id, end };
    }
    return found;
  }
}

/** UTF-8 with U+2581 for every space; lone surrogates become U+FFFD. */
export function normalised(text: string): Uint8Array {
  return new TextEncoder().encode(text.replaceAll(" ", "\u2581"));
}

/** Text of UTF-8 bytes; a byte order mark is a character like any other. */
export function decodeUtf8(bytes: Uint8Array): string {
  return UTF8.decode(bytes);
}

/** Refuses a tokenizer file. `what` goes on after "expected". */
export function fail(place: string, what: string): never {
  throw new RequestError("model_invalid", `Cannot read the tokenizer in ${place}: expected ${what}`);
}

const UTF8 = new TextDecoder("utf-8", { ignoreBOM: true });

/** `<loc` and four digits, or `<seg` and three, and `>`. */
function isLocation(source: Uint8Array, start: number, end: number): boolean {
  const length = end - start;
  if (source[start] !== 0x3c || source[end - 1] !== 0x3e || (length !== 8 && length !== 9)) return false;
  return /^<(loc\d{4}|seg\d{3})>$/.test(decodeUtf8(source.subarray(start, end)));
}

function grown<T extends Uint8Array | Uint16Array | Uint32Array>(old: T, larger: T): T {
  larger.set(old);
  return larger;
}
