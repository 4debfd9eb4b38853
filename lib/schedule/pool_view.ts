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

/** A worker that said nothing for so long is not counted on. */
export const WORKER_MAX_AGE_MS = 5000;

/** A pool that failed is not relied on for so long; twice as long after each further failure in a row. */
const REST_MS = 30_000;
const MAX_REST_MS = 5 * 60_000;

/** Of a wait, what is believed of one that was seen so long ago. */
const WAIT_HALF_LIFE_MS = 5000;

/** What one edge knows of one pool. Times are the caller's milliseconds. */
export class PoolView {
  readonly #workers = new Map<string, WorkerLoad & { readonly at: number }>();
  #announced = false;
  /** In a row. */
  #failures = 0;
  #restsUntil = -Infinity;
  readonly #wait = new Drift(0, WAIT_HALF_LIFE_MS);
  #meanServiceMs = 0;

  /**
   * Takes what a worker says of itself; the latest counts.
   *
   * @throws {RangeError} for numbers that no worker can mean.
   */
  announce(load: WorkerLoad, now: number): void {
    const { slots, running, waiting, serviceMs } = load;
    const numbers = [slots, running, waiting, serviceMs ?? 0];
    if (!numbers.every((it) => Number.isFinite(it) && it >= 0) || slots < 1) {
      throw new RangeError(`Worker load: expected slots and counts of 0 or more, found ${numbers}`);
    }
    // Whoever comes when nobody was there did not fail.
    if (this.#announced && !this.present(now)) this.#recovered();
    this.#announced = true;
    this.#workers.set(load.worker, { ...load, at: now });
    if (this.#workers.size > 1000) this.#forget(now);
  }

  /** A worker said that it goes. */
  leave(worker: string): void {
    this.#workers.delete(worker);
  }

  /** The pool answered after its queue took `waitMs`, and the answer held a slot for `serviceMs`. */
  answered(waitMs: number, serviceMs: number, now: number): void {
    this.#recovered();
    this.#wait.add(waitMs, now);
    this.#meanServiceMs += (serviceMs - this.#meanServiceMs) * (this.#meanServiceMs ? 0.125 : 1);
  }

  /** The pool failed or was silent. */
  failed(now: number): void {
    this.#restsUntil = now + Math.min(REST_MS * 2 ** this.#failures++, MAX_REST_MS);
  }

  /** Whether anybody is there: workers that announced themselves lately; where none ever does, it is assumed. */
  present(now: number): boolean {
    if (!this.#announced) return true;
    for (const it of this.#workers.values()) if (this.#counts(it, now)) return true;
    return false;
  }

  /** The probability that the pool fails to answer at all, in [0, 1); 0 when it has rested and is to be tried again. */
  distrust(now: number): number {
    return now < this.#restsUntil ? 1 - 1 / (1 + 2 * this.#failures) : 0;
  }

  /** How long an answer asked for now waits in the pool's queue, milliseconds, as far as anybody can tell from here. */
  waitMs(now: number): number {
    let [slots, busy, waiting, service, told] = [0, 0, 0, 0, 0];
    for (const it of this.#workers.values()) {
      if (!this.#counts(it, now)) continue;
      slots += it.slots;
      busy += it.running;
      waiting += it.waiting;
      if (it.serviceMs !== undefined) [service, told] = [service + it.serviceMs * it.slots, told + it.slots];
    }
    if (!slots) return Math.max(0, this.#wait.at(now).mean);
    if (busy < slots && !waiting) return 0;
    return (waiting + 1) * (told ? service / told : this.#meanServiceMs) / slots;
  }

  #counts({ at }: { readonly at: number }, now: number): boolean {
    return now - at <= WORKER_MAX_AGE_MS;
  }

  #recovered(): void {
    this.#failures = 0;
    this.#restsUntil = -Infinity;
  }

  #forget(now: number): void {
    for (const [name, it] of this.#workers) if (!this.#counts(it, now)) this.#workers.delete(name);
  }
}
