/** What a decoder does, whatever computes it: a prefix in, then token after token, for one sequence or several at once. */

import type { RowSampling, Tensor } from "../backend/backend.ts";
import type { Pause, Span } from "../types.ts";
import type { Choice } from "./sampler.ts";

/** Keys and values of one sequence. */
export interface Cache {
  /** Positions written. */
  readonly length: number;
  readonly capacity: number;
  /** Rows that see one another in full. */
  readonly prefix: number;
  /**
   * Forgets the positions from `length` on, which is not within the prefix.
   *
   * @throws {RangeError} for a length below `prefix` or above the cache's.
   */
  truncate(length: number): void;
  free(): void;
}

/** Keys and values of one token of one branch: f32 [K·C] per layer, keys after RoPE. */
export interface BranchRow {
  readonly keys: readonly Float32Array[];
  readonly values: readonly Float32Array[];
}

/** A continuation of what is in a cache. */
export interface Branch {
  /** Tokens between the cache's and this one, as `branch` gave them. */
  readonly path: readonly BranchRow[];
  readonly id: number;
}

/** What comes next in one of several sequences. */
export interface Turn {
  readonly cache: Cache;
  /** Absent: the id that the last pass of this cache chose as its turn said, whether anybody has read it or not. */
  readonly id?: number;
  /** How the backend may choose the id after it, so that no logits are read; absent where they are wanted. */
  readonly choice?: TurnChoice;
  /** [V] that its logits may go to, which nobody looks at any more: fresh memory for every token costs more than to fill it. */
  readonly room?: Float32Array;
}

/** How to choose, and what is near what is chosen. */
export interface TurnChoice extends RowSampling {
  readonly near?: Near;
}

/** Ids that mean what others mean. */
export interface Near {
  /** Where all of them are. */
  readonly within: Span;
  /** Those that mean what an id means, itself among them, where there are such. */
  of(id: number): readonly Span[] | undefined;
}

/** Logits [V], or the id that the backend chose. */
export type Found = Float32Array | Omit<Choice, "top">;

/** A pass that was issued. */
export interface Issued {
  /** Of every turn, when it is computed and read. */
  readonly found: Promise<Found[]>;
}

/** What a prefill came to. */
export interface Prefilled {
  /** [V], after the last row. */
  readonly logits: Float32Array;
  /** Per layer keys, then per layer values: f32 [T, K·C], keys after RoPE. */
  readonly rows: readonly Float32Array[];
}

/** The decoder of one model. */
export interface Decoder {
  /** Room for `capacity` positions. */
  cache(capacity: number): Cache;
  /**
   * Logits [V] after the whole prefix. The first rows of x [T, D] hold the image tokens; the last `ids.length` rows
   * are filled from the text ids. The cache must be empty; x is used up.
   */
  prefill(cache: Cache, x: Tensor, ids: readonly number[], pause: Pause): Promise<Float32Array>;
  /** A copy of what a prefill has just brought into a cache, with the logits that it gave. */
  save?(cache: Cache, logits: Float32Array): Promise<Prefilled>;
  /** Brings a copy into an empty cache, as if it had been computed there; gives a copy of the logits. */
  restore?(cache: Cache, prefilled: Prefilled): Float32Array;
  /** Logits [V] after one more token. */
  step(cache: Cache, id: number, pause: Pause): Promise<Float32Array>;
  /** Brings tokens that are known into a cache, not an empty one: as if each had been a step, but nothing is told of it. */
  extend(cache: Cache, ids: readonly number[], pause: Pause): Promise<void>;
  /**
   * Issues one more token for each of several sequences, in one pass that reads the weights once for up to 16; what is
   * found does not depend on the company, but for roundings in f32. The caches are longer then, and may go on with the
   * next pass, or be freed, before anything is read. Absent where only one sequence at a time can be computed.
   */
  steps?(turns: readonly Turn[], pause: Pause): Promise<Issued>;
  /** Whether `steps` chooses where a turn says how, so that the next pass need not wait; otherwise it gives logits. */
  readonly chooses?: boolean;
  /**
   * One more token for every one of several branches, with paths of one length, in one pass: logits [V] and the row
   * that goes to the paths of what follows. Branches do not see one another; the cache stays as long as it is, and
   * needs room for the longest branch. Absent where only one sequence at a time can be computed.
   */
  branch?(
    cache: Cache,
    branches: readonly Branch[],
    pause: Pause,
  ): Promise<{ readonly logits: Float32Array; readonly row: BranchRow }[]>;
}

/** What {@link Cache.truncate} refuses. */
export function checkTruncation({ length, prefix }: Cache, to: number): void {
  if (to >= prefix && to <= length) return;
  throw new RangeError(`Cannot truncate a cache: expected ${prefix} to ${length} positions, found ${to}`);
}
