/**
 * What is known of a pool of workers from the edge: what they announce, what their answers' load headers say, and how
 * asking them went. All of it grows old.
 */

import { Drift } from "./drift.ts";

/** What a worker says of itself, in an announcement or beside an answer (ORCA's `endpoint-load-metrics`). */
export interface WorkerLoad {
  readonly worker: string;
  /** Answers it can work on at once, 1 or more. */
  readonly slots: number;
  readonly running: number;
  readonly waiting: number;
  /** Mean time an answer holds a slot, milliseconds, where it tells. */
  readonly serviceMs?: number;
}

/** Who is there, as whoever keeps the list tells; who said nothing for {@link WORKER_MAX_AGE_MS} is not. */
export interface Present {
  readonly workers: readonly WorkerLoad[];
  /** Since when there has been somebody, milliseconds; undefined where there is nobody. */
  readonly since?: number;
}

/** A worker that said nothing for so long is not counted on. */
export const WORKER_MAX_AGE_MS = 5000;

/** A pool that failed is not relied on for so long; twice as long after each further failure in a row. */
const REST_MS = 30_000;
const MAX_REST_MS = 5 * 60_000;

/** Of a wait, what is believed of one that was seen so long ago. */
const WAIT_HALF_LIFE_MS = 5000;

/** What one edge knows of one pool. Times are the caller's milliseconds. */
export class PoolView {
  /** In a row. */
  #failures = 0;
  #failedAt = -Infinity;
  readonly #wait = new Drift(0, WAIT_HALF_LIFE_MS);
  #meanServiceMs = 0;

  /** @param who tells who is there; where nobody does, somebody is assumed. */
  constructor(private readonly who: (now: number) => Present | undefined = () => undefined) {}

  /** The pool answered after its queue took `waitMs`, and the answer held a slot for `serviceMs`. */
  answered(waitMs: number, serviceMs: number, now: number): void {
    this.#failures = 0;
    this.#wait.add(waitMs, now);
    this.#meanServiceMs += (serviceMs - this.#meanServiceMs) * (this.#meanServiceMs ? 0.125 : 1);
  }

  /** The pool failed or was silent. */
  failed(now: number): void {
    this.#failures++;
    this.#failedAt = now;
  }

  /** Whether anybody is there. */
  present(now: number): boolean {
    return this.who(now)?.workers.length !== 0;
  }

  /** The probability that the pool fails to answer at all, in [0, 1); 0 when it has rested and is to be tried again. */
  distrust(now: number): number {
    if (!this.#failures) return 0;
    // Whoever came when nobody was there did not fail.
    if ((this.who(now)?.since ?? -Infinity) > this.#failedAt) this.#failures = 0;
    const rest = Math.min(REST_MS * 2 ** (this.#failures - 1), MAX_REST_MS);
    return now < this.#failedAt + rest ? 1 - 1 / (1 + 2 * this.#failures) : 0;
  }

  /** How long an answer asked for now waits in the pool's queue, milliseconds, as far as anybody can tell from here. */
  waitMs(now: number): number {
    let [slots, busy, waiting, service, told] = [0, 0, 0, 0, 0];
    for (const it of this.who(now)?.workers ?? []) {
      slots += it.slots;
      busy += it.running;
      waiting += it.waiting;
      if (it.serviceMs) [service, told] = [service + it.serviceMs * it.slots, told + it.slots];
    }
    if (!slots) return Math.max(0, this.#wait.at(now).mean);
    if (busy < slots && !waiting) return 0;
    return (waiting + 1) * (told ? service / told : this.#meanServiceMs) / slots;
  }
}
