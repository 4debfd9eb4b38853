/**
 * Byte-pair encoding of one stretch of text: the adjacent pair whose union is the piece of the lowest rank is merged
 * first, of equal ranks the leftmost, until no pair makes a piece. SentencePiece's `bpe_model.cc` and the BPE of
 * Hugging Face's tokenizers, whose merge list says the same as the order of the pieces.
 *
 * A linked list of symbols and a heap of candidate pairs make it O(n log n) for n characters.
 */

import { Kind, NO_RANK, type Vocabulary } from "./vocabulary.ts";

/** A heap key is rank · LEFT_LIMIT + index of the left symbol: exact in f64 while ranks stay below 2^29. */
const LEFT_LIMIT = 2 ** 24;

/** Kinds that text can never turn into by its characters. */
const UNREACHABLE = Kind.control | Kind.unknown | Kind.byte | Kind.location;

/**
 * Appends the ids of bytes [start, end) of `text`, UTF-8 with U+2581 for spaces, to `ids`. What the vocabulary lacks
 * becomes byte pieces with `byteFallback`, otherwise one unknown id for each run.
 *
 * @throws {RangeError} for more than 2^24 characters in one stretch.
 */
export function encodePieces(
  vocabulary: Vocabulary,
  text: Uint8Array,
  start: number,
  end: number,
  byteFallback: boolean,
  ids: number[],
): void {
  const room = end - start;
  if (room === 0) return;
  const symbols = new Symbols(vocabulary, text, room);
  for (let at = start; at < end;) {
    const next = Math.min(end, at + characterLength(text[at]));
    symbols.append(at, next);
    at = next;
  }
  symbols.merge();
  let afterUnknown = false;
  for (let symbol = 0; symbol >= 0; symbol = symbols.next[symbol]) {
    const id = symbols.ids[symbol];
    if (id >= 0) ids.push(id);
    else if (byteFallback && symbols.hasBytes(symbol)) {
      for (let i = symbols.starts[symbol]; i < symbols.ends[symbol]; i++) {
        ids.push(vocabulary.byteIds[text[i]]);
      }
    } else {
      if (!afterUnknown && vocabulary.unknownId >= 0) ids.push(vocabulary.unknownId);
      afterUnknown = true;
      continue;
    }
    afterUnknown = false;
  }
}

/** The symbols of one stretch, each linked to the next, and the heap of pairs that make a piece. */
class Symbols {
  readonly starts: Uint32Array;
  readonly ends: Uint32Array;
  /** Index of the symbol to the right and left, -1 at the ends. */
  readonly next: Int32Array;
  readonly previous: Int32Array;
  /** Piece of each symbol, -1 for a character that the vocabulary lacks. */
  readonly ids: Int32Array;
  /** Piece that a symbol and the one to its right make, -1 for none. */
  readonly #pairs: Int32Array;
  #count = 0;
  /** Binary heap, smallest key first. Every merge adds at most two pairs, so 3 n hold them all. */
  #heap: Float64Array = new Float64Array(0);
  #heaped = 0;

  constructor(readonly vocabulary: Vocabulary, readonly text: Uint8Array, room: number) {
    this.starts = new Uint32Array(room);
    this.ends = new Uint32Array(room);
    this.next = new Int32Array(room);
    this.previous = new Int32Array(room);
    this.ids = new Int32Array(room);
    this.#pairs = new Int32Array(room);
  }

  append(start: number, end: number): void {
    const index = this.#count++;
    if (index >= LEFT_LIMIT) {
      throw new RangeError(`Cannot encode text: expected at most ${LEFT_LIMIT} characters in one stretch`);
    }
    const id = this.vocabulary.find(this.text, start, end);
    this.starts[index] = start;
    this.ends[index] = end;
    this.ids[index] = id >= 0 && (this.vocabulary.kinds[id] & UNREACHABLE) === 0 ? id : -1;
    this.previous[index] = index - 1;
    this.next[index] = -1;
    if (index > 0) this.next[index - 1] = index;
  }

  hasBytes(symbol: number): boolean {
    for (let i = this.starts[symbol]; i < this.ends[symbol]; i++) {
      if (this.vocabulary.byteIds[this.text[i]] < 0) return false;
    }
    return true;
  }

  merge(): void {
    const { next, previous, ends, ids } = this, ranks = this.vocabulary.ranks, pairs = this.#pairs;
    this.#heap = new Float64Array(3 * this.#count);
    for (let symbol = 0; symbol < this.#count; symbol++) this.#consider(symbol);
    while (this.#heaped > 0) {
      const key = this.#pop();
      const left = key % LEFT_LIMIT, pair = pairs[left];
      // A key outlives its pair when a neighbour was merged away meanwhile.
      if (pair < 0 || ranks[pair] !== (key - left) / LEFT_LIMIT) continue;
      const right = next[left], after = next[right];
      ends[left] = ends[right];
      ids[left] = pair;
      next[left] = after;
      if (after >= 0) previous[after] = left;
      pairs[right] = -1;
      this.#consider(left);
      if (previous[left] >= 0) this.#consider(previous[left]);
    }
  }

  /** Looks up what a symbol and its right neighbour make, and remembers it when it is a piece. */
  #consider(left: number): void {
    const right = this.next[left], start = this.starts[left];
    this.#pairs[left] = -1;
    if (right < 0 || this.ends[right] - start > this.vocabulary.longest) return;
    const id = this.vocabulary.find(this.text, start, this.ends[right]);
    if (id < 0 || this.vocabulary.ranks[id] === NO_RANK) return;
    this.#pairs[left] = id;
    this.#push(this.vocabulary.ranks[id] * LEFT_LIMIT + left);
  }

  #push(key: number): void {
    const heap = this.#heap;
    let at = this.#heaped++;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (heap[parent] <= key) break;
      heap[at] = heap[parent];
      at = parent;
    }
    heap[at] = key;
  }

  #pop(): number {
    const heap = this.#heap, top = heap[0], last = heap[--this.#heaped], size = this.#heaped;
    let at = 0;
    for (let child = 1; child < size; child = 2 * at + 1) {
      if (child + 1 < size && heap[child + 1] < heap[child]) child++;
      if (heap[child] >= last) break;
      heap[at] = heap[child];
      at = child;
    }
    heap[at] = last;
    return top;
  }
}

/** Bytes of the UTF-8 character that starts with this byte. */
function characterLength(first: number): number {
  return first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
}
