/** Whose turn it is: one question computes at a time, the others wait in order, and none holds the thread for long. */

import { RequestError } from "../errors.ts";
import type { Pause } from "../types.ts";

/** Computation holds the thread; after this long, other work gets a turn. */
const PAUSE_EVERY_MS = 20;

/** On Cloudflare a clock stands still while a Worker computes: then it is so many layers. */
const PAUSE_EVERY_CALLS = 16;

/**
 * Turns of the event loop in a pause, none of which begins after so long. Deno looks at the network in one of 61 while there is
 * always another to come, so that with one or two a client that goes away is noticed only when its answer is over. So many take
 * 0.3 ms, when nothing else is to do; a timer of 0 ms takes 1.2 to 2.
 */
const [PAUSE_TURNS, PAUSE_MS] = [128, 2];

/** A question that waits for another's end asks for nothing itself, which workerd takes for a hang and cuts. */
const STILL_HERE_MS = 1000;

/** A pause that lets other work run after every few milliseconds of computation, and throws once `signal` aborts. */
export function createPause(signal?: AbortSignal): Pause {
  let last = performance.now();
  let calls = 0;
  return async () => {
    const now = performance.now();
    calls = now === last ? calls + 1 : 0;
    if (now - last > PAUSE_EVERY_MS || calls >= PAUSE_EVERY_CALLS) {
      await others(calls === 0);
      last = performance.now();
      calls = 0;
    }
    signal?.throwIfAborted();
  };
}

/** Lets other work run: for some turns of the loop where they can be had, and it is not one whose clock stands still. */
async function others(turns: boolean): Promise<void> {
  const { setImmediate } = globalThis as { setImmediate?: (callback: () => void) => unknown };
  if (!turns || !setImmediate) return await new Promise((resolve) => setTimeout(resolve));
  const since = performance.now();
  for (let i = 0; i < PAUSE_TURNS && performance.now() - since < PAUSE_MS; i++) {
    await new Promise<void>((resolve) => setImmediate(() => resolve()));
  }
}

/** One at a time, first come, first served, and only so many in line. */
export class Line {
  #inside = 0;
  #busy = false;
  readonly #waiting: (() => void)[] = [];
  /** What those who compute or wait said, and since when they compute. */
  readonly #expected = new Set<{ readonly ms: number; since?: number }>();
  #spare: AbortController | undefined;

  /** @param onChange told by how much the number of questions inside changed. */
  constructor(
    private readonly maxWaiting: number,
    private readonly onChange: (by: 1 | -1) => void = () => {},
  ) {}

  /** Counts a question in, before anything is decoded for it; call what it returns when the question is over. */
  enter(): () => void {
    if (this.#inside > this.maxWaiting) {
      throw new RequestError(
        "overloaded",
        `Cannot answer: ${this.#inside} questions are being answered or wait already`,
      );
    }
    this.#inside++;
    this.#spare?.abort();
    this.onChange(1);
    return () => {
      this.#inside--;
      this.onChange(-1);
    };
  }

  /**
   * Counts a question in while it is prepared, waits for its turn and does its work.
   *
   * @param what the work, for messages.
   * @throws {RequestError} `cancelled` when the caller goes away; and what `prepare` and `work` throw.
   */
  async take<S, T>(
    what: string,
    signal: AbortSignal | undefined,
    prepare: () => Promise<S>,
    work: (prepared: S, pause: Pause) => Promise<T>,
  ): Promise<T> {
    const leave = this.enter();
    try {
      const prepared = await prepare();
      const release = await this.turn(signal);
      try {
        return await work(prepared, createPause(signal));
      } finally {
        release();
      }
    } catch (error) {
      if (!signal?.aborted || error instanceof RequestError) throw error;
      throw new RequestError("cancelled", `Cannot ${what}: the caller went away`, { cause: error });
    } finally {
      leave();
    }
  }

  /** How long until a question that comes now has its turn, milliseconds, as far as those before it said. */
  waitMs(now = performance.now()): number {
    let sum = 0;
    // Who takes longer than it said will take a little longer still.
    for (const { ms, since = now } of this.#expected) sum += Math.max(ms - (now - since), ms / 10);
    return sum;
  }

  /** A turn while nobody is here, with a signal that aborts when somebody comes; undefined while somebody is. */
  async spare(): Promise<{ readonly signal: AbortSignal; release(): void } | undefined> {
    if (this.#inside || this.#busy) return undefined;
    const { signal } = this.#spare = new AbortController();
    return { signal, release: await this.turn() };
  }

  /**
   * Waits for the turn; call what it returns to pass it on. A caller that went away gives up its place at once.
   *
   * @param expectedMs how long it will take, for those behind.
   */
  async turn(signal?: AbortSignal, expectedMs = 0): Promise<() => void> {
    const expected: { readonly ms: number; since?: number } = { ms: expectedMs };
    this.#expected.add(expected);
    try {
      await this.#come(signal);
    } catch (error) {
      this.#expected.delete(expected);
      throw error;
    }
    expected.since = performance.now();
    return () => {
      this.#expected.delete(expected);
      const next = this.#waiting.shift();
      if (next) next();
      else this.#busy = false;
    };
  }

  async #come(signal?: AbortSignal): Promise<void> {
    const cancelled = () => new RequestError("cancelled", "The caller went away before its turn came");
    if (signal?.aborted) throw cancelled();
    if (this.#busy) {
      const here = setInterval(() => {}, STILL_HERE_MS);
      try {
        await new Promise<void>((resolve, reject) => {
          const abort = () => {
            this.#waiting.splice(this.#waiting.indexOf(go), 1);
            reject(cancelled());
          };
          const go = () => {
            signal?.removeEventListener("abort", abort);
            resolve();
          };
          this.#waiting.push(go);
          signal?.addEventListener("abort", abort, { once: true });
        });
      } finally {
        clearInterval(here);
      }
    }
    this.#busy = true;
  }
}
