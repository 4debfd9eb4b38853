/**
 * Whom of a pool not to ask for a while: workers that were slow, or answered what cannot be. A pool's own business: others
 * see who is left, by `Pool.present`. How far a pool as a whole can be relied on is `lib/schedule`'s.
 */

import type { PoolError, PoolErrorCode } from "./pool.ts";

/** How long a worker is left alone after its first failure, and at most; each further one in a row doubles it. */
const FIRST_MS = 1000;
const MOST_MS = 60_000;

/** What says something of the worker, rather than of the work or of how much there is of it. */
const ITS_FAULT: readonly PoolErrorCode[] = ["silent", "broken", "failed"];

interface State {
  readonly failures: number;
  readonly until: number;
}

/** One circuit for each worker: closed, or open for a time; what is asked of it then shows whether it is well again. */
export class Breakers {
  readonly #states = new Map<string, State>();

  constructor(private readonly now: () => number = () => performance.now()) {}

  /** Opens a worker's circuit. */
  failed(worker: string): void {
    const failures = (this.#states.get(worker)?.failures ?? 0) + 1;
    const ms = Math.min(MOST_MS, FIRST_MS * 2 ** (failures - 1));
    this.#states.set(worker, { failures, until: this.now() + ms });
  }

  /** Opens it where it is the worker's fault that work was not done. */
  lost(worker: string, { code }: PoolError): void {
    if (ITS_FAULT.includes(code)) this.failed(worker);
  }

  /** Closes it. */
  succeeded(worker: string): void {
    this.#states.delete(worker);
  }

  /** Whether a worker is to be left alone. */
  open(worker: string): boolean {
    const state = this.#states.get(worker);
    return state !== undefined && this.now() < state.until;
  }

  /** Whether any circuit is open. */
  get some(): boolean {
    return [...this.#states.keys()].some((it) => this.open(it));
  }
}
