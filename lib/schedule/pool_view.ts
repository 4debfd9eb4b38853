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

/** After one failure it takes about two of these until the pool is asked again. */
const DISTRUST_HALF_LIFE_MS = 15_000;

/** Of a wait, what is believed of one that was seen so long ago. */
const WAIT_HALF_LIFE_MS = 5000;

/** What one edge knows of one pool. Times are the caller's milliseconds. */
export class PoolView {
  readonly #workers = new Map<string, WorkerLoad & { readonly at: number }>();
  #announced = false;
  #failures = 0;
  #failedAt = 0;
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
    this.#failures *= this.#faded(now) / 2;
    this.#failedAt = now;
    this.#wait.add(waitMs, now);
    this.#meanServiceMs += (serviceMs - this.#meanServiceMs) * (this.#meanServiceMs ? 0.125 : 1);
  }

  /** The pool failed or was silent. */
  failed(now: number): void {
    this.#failures = this.#failures * this.#faded(now) + 1;
    this.#failedAt = now;
  }

  /** Whether anybody is there: workers that announced themselves lately; where none ever does, it is assumed. */
  present(now: number): boolean {
    if (!this.#announced) return true;
    for (const it of this.#workers.values()) if (this.#counts(it, now)) return true;
    return false;
  }

  /** The probability that the pool fails to answer at all, in [0, 1). */
  distrust(now: number): number {
    const failures = this.#failures * this.#faded(now);
    // A quarter of a failure is forgiven, or the pool would never be asked again.
    return failures <= 0.25 ? 0 : 1 - 1 / (1 + 2 * failures);
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

  #faded(now: number): number {
    return 2 ** (-Math.max(0, now - this.#failedAt) / DISTRUST_HALF_LIFE_MS);
  }

  #forget(now: number): void {
    for (const [name, it] of this.#workers) if (!this.#counts(it, now)) this.#workers.delete(name);
  }
}
