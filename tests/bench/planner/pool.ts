/** The pool of a world: slots that take answers first come, first served; and when it is away. */

import type { Outage, World } from "./world.ts";

/** What the pool last said of itself. */
export interface Snapshot {
  readonly at: number;
  /** Since when it has been announcing itself without a break. */
  readonly since: number;
  readonly slots: number;
  readonly running: number;
  readonly waiting: number;
  readonly serviceMs: number;
}

/** Workers announce themselves this often, and the scaler looks as often. */
const ANNOUNCE_MS = 2000;
const COLD_START_MS = 30_000;
const IDLE_MS = 60_000;

/**
 * Slots, each known by when it is free. Whoever comes is told its start at once: nobody who comes later is served before.
 * What a cancelled answer would have taken stays taken; that is to the disadvantage of who cancels.
 */
export class SimulatedPool {
  /** Sorted, ascending. */
  #free: number[];
  /** Starts of those who wait, ascending. */
  #starts: number[] = [];
  #outage = 0;
  #coming: number[] = [];
  #idleSince = 0;
  #announceAt = 0;
  #serviceMs = 0;
  readonly #least: number;
  readonly #most: number;
  snapshot: Snapshot | undefined;

  constructor(private readonly world: World) {
    this.#most = world.slots;
    this.#least = world.kind.scaled ? Math.max(1, Math.ceil(world.slots * 0.4)) : world.slots;
    this.#free = new Array(this.#least).fill(0);
  }

  /** Brings the pool to a time; times never go back. */
  advance(now: number): void {
    while (this.#announceAt <= now) {
      const at = this.#announceAt;
      this.#announceAt += ANNOUNCE_MS;
      this.#pass(at);
      const away = this.outageAt(at);
      if (away && away.kind !== "wedged") continue;
      if (this.world.kind.scaled) this.#scale(at);
      const { at: last = -Infinity, since = at } = this.snapshot ?? {};
      this.snapshot = {
        at,
        since: at - last > ANNOUNCE_MS ? at : since,
        slots: this.#free.length,
        // Those who wait are in line at slots that are taken.
        running: this.#free.filter((it) => it > at).length,
        waiting: this.#waiting(at),
        serviceMs: this.#serviceMs,
      };
    }
    this.#pass(now);
  }

  /** The outage at a time, or the one that an answer meets that ends then. */
  outageAt(now: number, until = now): Outage | undefined {
    for (let i = this.#outage; i < this.world.outages.length; i++) {
      const it = this.world.outages[i];
      if (it.from > until) return undefined;
      if (it.to > now) return it;
    }
    return undefined;
  }

  /** When an answer that comes now would begin. */
  startAt(now: number): number {
    return Math.max(now, this.#free[0]);
  }

  /** Takes a slot for so long; tells the start. */
  take(now: number, serviceMs: number): number {
    const start = this.startAt(now);
    this.#free.shift();
    const end = start + serviceMs;
    let i = this.#free.length;
    while (i > 0 && this.#free[i - 1] > end) i--;
    this.#free.splice(i, 0, end);
    if (start > now) this.#starts.push(start);
    this.#serviceMs += (serviceMs - this.#serviceMs) * (this.#serviceMs ? 0.02 : 1);
    return start;
  }

  #waiting(now: number): number {
    let gone = 0;
    while (gone < this.#starts.length && this.#starts[gone] <= now) gone++;
    if (gone) this.#starts.splice(0, gone);
    return this.#starts.length;
  }

  /** What an outage leaves is an empty pool. */
  #pass(now: number): void {
    const outage = this.world.outages[this.#outage];
    if (!outage || outage.to > now) return;
    this.#outage++;
    this.#free.fill(outage.to);
    this.#starts = [];
  }

  #scale(now: number): void {
    while (this.#coming.length && this.#coming[0] <= now) this.#free.unshift(this.#coming.shift()!);
    this.#free.sort((a, b) => a - b);
    const slots = this.#free.length;
    const all = slots + this.#coming.length;
    const running = this.#free.filter((it) => it > now).length;
    if (running + this.#waiting(now) > all * 0.8 && all < this.#most) {
      const more = Math.min(this.#most - all, Math.max(1, Math.ceil(slots / 4)));
      for (let i = 0; i < more; i++) this.#coming.push(now + COLD_START_MS);
    }
    if (running > slots * 0.4) this.#idleSince = now;
    if (now - this.#idleSince > IDLE_MS && slots > this.#least && this.#free[0] <= now) {
      this.#free.shift();
      this.#idleSince = now;
    }
  }
}
