/** A server of a pool behind an address: whether to leave it alone for a while, and how busy it said that it is. */

import { Breakers } from "./breaker.ts";
import { HeardLoad, type ReportedLoad } from "./orca.ts";
import { PoolError, type Present } from "./pool.ts";

/** For how long a server that is full is left alone at most, whatever it asks for. */
const MOST_FULL_SECONDS = 60;

/** One address. */
export class Address {
  readonly #load = new HeardLoad();
  /** Until when it asked to be left alone. */
  #fullUntil = 0;

  /** @param breakers whether it failed; known to this address alone by default. */
  constructor(readonly url: string, private readonly breakers: Breakers = new Breakers()) {}

  /** Nobody while it is left alone; otherwise what it last said of its load. */
  present(): Present | undefined {
    if (this.#alone()) return { workers: [] };
    const worker = this.#load.worker(this.url);
    return worker && { workers: [worker] };
  }

  /** @throws {PoolError} `nobody` or `busy` while it is left alone. */
  check(): void {
    const error = this.#alone();
    if (error) throw error;
  }

  /** Takes how busy it says that it is. @param more what this side knows, where it does not tell. */
  heard(headers: Headers, more?: Partial<ReportedLoad>): void {
    this.#load.take(headers, more);
  }

  /** Leaves it alone for as long as it asks, where it is full. */
  refused(error: PoolError, headers: Headers): void {
    if (error.code !== "busy") return;
    const seconds = Number(headers.get("retry-after")) || 0;
    this.#fullUntil = performance.now() + 1000 * Math.min(MOST_FULL_SECONDS, seconds);
  }

  /** Leaves it alone for a while where it is its fault that work was not done. */
  lost(error: PoolError): void {
    this.breakers.lost(this.url, error);
  }

  succeeded(): void {
    this.breakers.succeeded(this.url);
  }

  #alone(): PoolError | undefined {
    if (this.breakers.open(this.url)) {
      return new PoolError("nobody", "Cannot reach the pool: it failed a moment ago");
    }
    if (performance.now() < this.#fullUntil) {
      return new PoolError("busy", "Cannot take work: the pool is full");
    }
  }
}
