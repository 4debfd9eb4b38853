/**
 * An answer from the first place that gives it; where one breaks off, the next goes on from the tokens that came. The
 * client's stream has every token once.
 */

import type { FinishReason } from "../types.ts";
import {
  type Pool,
  PoolError,
  type PoolErrorCode,
  type PoolEvent,
  type SubmitOptions,
  type Work,
} from "./pool.ts";

/** A place where answers are computed. */
export interface Place extends Pool {
  /** `pool`, `local` …, for metrics. */
  readonly name: string;
  /** How often it is asked for one answer; a pool has several workers. Once by default. */
  readonly attempts?: number;
}

/** What a worker says of the work itself: another worker would say the same. */
const OF_THE_WORK: readonly PoolErrorCode[] = [
  "magic",
  "version",
  "malformed",
  "shape",
  "length",
  "revision",
  "sum",
  "number",
  "norm",
  "unsigned",
  "forbidden",
  "unsupported",
  "nobody",
];

/** Who is told how answers went. */
export interface RelayListener {
  /** An answer ended at this place. */
  answered?(place: string): void;
  /** A place did not do it, or not to its end. */
  left?(place: string, code: PoolErrorCode, given: number): void;
}

/**
 * Goes from place to place. A place is left for the next when it is not there, is full, breaks or does not understand; and
 * asked again, as often as it may, where another of its workers could do better.
 *
 * @throws {PoolError} of the last place when none is left.
 */
export class Relay implements Pool {
  constructor(private readonly places: readonly Place[], private readonly listener: RelayListener = {}) {}

  async *submit(work: Work, options: SubmitOptions = {}): AsyncGenerator<PoolEvent, void> {
    const given = [...work.given];
    const since = performance.now();
    let last: PoolError | undefined;
    for (const place of this.places) {
      for (let attempt = 0; attempt < (place.attempts ?? 1); attempt++) {
        const { signal, deadlineMs } = options;
        const left = deadlineMs === undefined ? undefined : deadlineMs - (performance.now() - since);
        try {
          for await (
            const event of place.submit({ ...work, given: [...given] }, { signal, deadlineMs: left })
          ) {
            if (event.type === "token") given.push(event.id);
            else if (event.type === "done") this.listener.answered?.(place.name);
            yield event;
          }
          return;
        } catch (error) {
          if (signal?.aborted && given.length) return yield* ending(work, given.length, "cancelled");
          if (!(error instanceof PoolError)) throw error;
          last = error;
          this.listener.left?.(place.name, error.code, given.length);
          if (OF_THE_WORK.includes(error.code)) break;
        }
      }
    }
    throw last ?? new PoolError("nobody", "Cannot compute: there is no place to do it");
  }
}

/** What ends an answer of which nobody else tells the end. */
export function* ending(
  { ids }: Work,
  completionTokens: number,
  finishReason: FinishReason,
  imageTokens = 0,
): Generator<PoolEvent> {
  const timings = { preprocess: 0, vision: 0, prefill: 0, perToken: 0 };
  yield { type: "usage", imageTokens, promptTokenIds: ids, completionTokens, timings };
  yield { type: "done", finishReason, text: "" };
}

/**
 * Blocks that are computed once, however many are asked to do the work: begun when they are first asked for, computed to
 * their end, kept. Whoever asks gets those that are there, then the rest as it comes.
 */
export class KeptBlocks {
  readonly #blocks: Uint8Array[] = [];
  /** Settles with whether there is one block more. */
  #next = Promise.withResolvers<boolean>();
  #begun = false;
  /** Why the rest cannot be had. */
  error: unknown;

  constructor(private readonly compute: () => AsyncIterable<Uint8Array>) {}

  /** @throws what `compute` threw. */
  async *read(): AsyncGenerator<Uint8Array, void> {
    if (!this.#begun) this.#run();
    for (let i = 0; i < this.#blocks.length || await this.#next.promise; i++) yield this.#blocks[i];
  }

  async #run(): Promise<void> {
    this.#begun = true;
    this.#next.promise.catch(() => {}); // perhaps nobody waits
    try {
      for await (const block of this.compute()) {
        this.#blocks.push(block);
        this.#next.resolve(true);
        this.#next = Promise.withResolvers();
        this.#next.promise.catch(() => {});
      }
      this.#next.resolve(false);
    } catch (error) {
      this.error = error;
      this.#next.reject(error);
    }
  }
}
