/**
 * What an answer to `detect` or `segment` may look like, token by token.
 *
 * ```text
 * answer := ( item ( " ; " item )* )? EOS
 * item   := loc loc loc loc ( seg × 16 )? " " label      y1, x1, y2 > y1, x2 > x1; a label that was asked for
 * ```
 *
 * Only `segment` has masks, and its labels may be missing, as in the fine-tuned RefCOCO checkpoints. Where no label was
 * asked for, items have none.
 */

import { RequestError } from "../errors.ts";
import type { Constraint, Span } from "../types.ts";
import { CODES_PER_MASK, LOCATIONS, type Locations } from "./locations.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** A set of label endings that share their beginnings. */
interface Node {
  readonly next: Map<number, Node>;
  /** The answer may end here. */
  end: boolean;
  /** A separator is complete: a location must follow. */
  again: boolean;
}

/**
 * The grammar of the answers to one prompt, shared by any number of answers to it; undefined where the prompt begins
 * with neither `detect` nor `segment`.
 *
 * @param eosIds any of these ends an answer.
 * @returns a function that starts a fresh answer.
 * @throws {RequestError} `parameter_invalid` for labels with angle brackets, which no answer can hold, and when the
 * vocabulary has no location pieces, or no mask pieces to segment.
 */
export function createGrammar(
  tokenizer: Tokenizer,
  pieces: Locations,
  prompt: string,
  eosIds: readonly number[],
): (() => Constraint) | undefined {
  const [, verb, rest] = /^(detect|segment)\b([^\n]*)/.exec(prompt) ?? [];
  if (!verb) return undefined;
  const locations = complete(pieces.ids, "location");
  const codes = verb === "segment" ? spansOf(complete(pieces.codeIds, "mask")) : undefined;
  const labels = rest.split(";").map((it) => it.trim()).filter(Boolean);
  const odd = labels.find((it) => /[<>]/.test(it));
  if (odd) {
    throw new RequestError(
      "parameter_invalid",
      `Cannot constrain the answer: expected labels without < and >, found ${JSON.stringify(odd)}`,
    );
  }
  const tails = labels.map((it) => ` ${it}`);
  if (!labels.length || verb === "segment") tails.push("");
  const root = trie(tokenizer, tails);
  const ends = spansOf(eosIds);
  const spans = new Map<number, readonly Span[]>();
  const from = (bin: number) => {
    if (!spans.has(bin)) spans.set(bin, spansOf(locations.slice(bin)));
    return spans.get(bin)!;
  };
  // The far side of a box lies beyond its near one, which leaves room for that.
  const near = spansOf(locations.slice(0, LOCATIONS - 1));
  return () => new Answer(near, from, pieces.bins, codes, root, ends);
}

class Answer implements Constraint {
  /** Locations and mask codes of the open item so far. */
  #parts = 0;
  /** Location bins of the open item. */
  readonly #bins: number[] = [];
  /** Where in the label it is; the root before the label's first token. */
  #label: Node;
  #first = true;
  #ended = false;

  constructor(
    private readonly near: readonly Span[],
    /** Spans of the locations from a bin on. */
    private readonly from: (bin: number) => readonly Span[],
    private readonly bins: ReadonlyMap<number, number>,
    private readonly codes: readonly Span[] | undefined,
    private readonly root: Node,
    private readonly ends: readonly Span[],
  ) {
    this.#label = root;
  }

  allowed(): readonly Span[] {
    if (this.#ended) return this.ends;
    if (this.#parts < 4) {
      const spans = this.#parts < 2 ? this.near : this.from(this.#bins[this.#parts - 2] + 1);
      return this.#first && this.#parts === 0 ? merge([...spans, ...this.ends]) : spans;
    }
    const inMask = this.#parts > 4 && this.#parts < 4 + CODES_PER_MASK;
    if (inMask) return this.codes!;
    const mayStartMask = this.codes && this.#parts === 4 && this.#label === this.root;
    return merge([
      ...spansOf([...this.#label.next.keys()]),
      ...this.#label.end ? this.ends : [],
      ...mayStartMask ? this.codes : [],
    ]);
  }

  advance(id: number): void {
    if (!within(id, this.allowed())) {
      throw new RangeError(
        `Broken constraint: id ${id} came, allowed were ${JSON.stringify(this.allowed())}`,
      );
    }
    if (within(id, this.ends)) this.#ended = true;
    else if (this.#parts < 4) {
      this.#bins.push(this.bins.get(id)!);
      this.#parts++;
    } else if (this.codes && within(id, this.codes)) this.#parts++;
    else {
      this.#label = this.#label.next.get(id)!;
      if (!this.#label.again) return;
      this.#parts = this.#bins.length = 0;
      this.#label = this.root;
      this.#first = false;
    }
  }
}

function within(id: number, spans: readonly Span[]): boolean {
  return spans.some(([first, end]) => id >= first && id < end);
}

/** Every tail as it ends an answer and as the next item follows it, in the pieces that stand between two boxes. */
function trie(tokenizer: Tokenizer, tails: readonly string[]): Node {
  const fresh = (): Node => ({ next: new Map(), end: false, again: false });
  const root = fresh();
  const walk = (ids: readonly number[]) =>
    ids.reduce((node, id) => {
      if (!node.next.has(id)) node.next.set(id, fresh());
      return node.next.get(id)!;
    }, root);
  const before = tokenizer.encode("<loc0000>", { tokens: "allow" }).length;
  const after = tokenizer.encode("<loc0000>", { tokens: "allow" }).length;
  for (const tail of tails) {
    walk(tokenizer.encode(`<loc0000>${tail}`, { tokens: "allow" }).slice(before)).end = true;
    const between = tokenizer.encode(`<loc0000>${tail} ; <loc0000>`, { tokens: "allow" });
    walk(between.slice(before, between.length - after)).again = true;
  }
  return root;
}

function complete(ids: readonly (number | undefined)[], what: string): readonly number[] {
  const missing = ids.findIndex((id) => id === undefined);
  if (missing < 0) return ids as readonly number[];
  throw new RequestError(
    "parameter_invalid",
    `Cannot constrain the answer: expected ${ids.length} ${what} pieces in the model's vocabulary, found no number ` +
      `${missing}`,
  );
}

/** Ids in any order as ascending spans. */
function spansOf(ids: readonly number[]): readonly Span[] {
  return merge(ids.map((id) => [id, id + 1] as const));
}

function merge(spans: readonly Span[]): readonly Span[] {
  const merged: [number, number][] = [];
  for (const [first, end] of spans.toSorted((a, b) => a[0] - b[0])) {
    const last = merged.at(-1);
    if (last && first <= last[1]) last[1] = Math.max(last[1], end);
    else merged.push([first, end]);
  }
  return merged;
}
