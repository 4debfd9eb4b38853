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
  /** A place did not do it, or not to its end. @param forGood whether it is not asked again for this answer. */
  left?(place: string, error: PoolError, given: number, forGood: boolean): void;
  /** Another place gave the first token before this one. */
  overtaken?(place: string): void;
}

/** A second place that begins as well when the first has given nothing for too long; who gives first goes on. */
export interface Hedge {
  readonly place: Place;
  readonly afterMs: number;
  /** Whether it may be begun now. */
  take(): boolean;
}

/** Looks after an answer that is under way: its rest may come from elsewhere, once. */
export interface Handover {
  /** How often it is looked at while no token comes, milliseconds; and after each that does. */
  readonly everyMs: number;
  /**
   * Where the rest is to come from; undefined as long as it goes on where it is.
   *
   * @param place where it is. @param given tokens so far, 1 or more.
   */
  next(place: string, given: number): Place | undefined;
}

/** An answer that was begun, and its first event. */
interface Begun {
  readonly place: Place;
  readonly events: AsyncIterator<PoolEvent>;
  readonly first: Promise<IteratorResult<PoolEvent>>;
  /** Ends it, and is through when all that it held is given back. */
  stop(): Promise<unknown>;
}

/**
 * Goes from place to place. A place is left for the next when it is not there, is full, breaks or does not understand; and
 * asked again, as often as it may, where another of its workers could do better; or left because another is to be quicker
 * for the rest.
 *
 * @throws {PoolError} of the last place when none is left.
 */
export class Relay implements Pool {
  constructor(
    private readonly places: readonly Place[],
    private readonly listener: RelayListener = {},
    private readonly hedge?: Hedge,
    private readonly handover?: Handover,
  ) {}

  async *submit(work: Work, options: SubmitOptions = {}): AsyncGenerator<PoolEvent, void> {
    const given = [...work.given];
    const since = performance.now();
    const { signal, deadlineMs } = options;
    let { hedge, handover } = this;
    let last: PoolError | undefined;
    let next: Place | undefined;
    const begin = (place: Place): Begun => {
      const left = deadlineMs === undefined ? undefined : deadlineMs - (performance.now() - since);
      return begun(place, { ...work, given: [...given] }, { signal, deadlineMs: left });
    };
    const places = [...this.places];
    for (let place = places.shift(); place; place = places.shift()) {
      const attempts = place.attempts ?? 1;
      for (let attempt = 1; attempt <= attempts; attempt++) {
        let one = begin(place);
        try {
          if (hedge) one = await this.#first(one, hedge, begin);
          hedge = undefined;
          const leave = () => {
            if (given.length > work.given.length) next = handover?.next(one.place.name, given.length);
            return next !== undefined;
          };
          for await (const event of restOf(one, handover && { everyMs: handover.everyMs, leave })) {
            if (event.type === "token") given.push(event.id);
            else if (event.type === "done") this.listener.answered?.(one.place.name);
            yield event;
          }
          if (!next) return;
          // Where it was left it still goes on, should it not go on there.
          places.unshift(next, one.place);
          next = handover = undefined;
          break;
        } catch (error) {
          hedge = undefined;
          if (signal?.aborted && given.length) return yield* ending(work, given.length, "cancelled");
          if (!(error instanceof PoolError)) throw error;
          last = error;
          const forGood = one.place !== place || attempt === attempts || OF_THE_WORK.includes(error.code);
          this.listener.left?.(one.place.name, error, given.length, forGood);
          if (OF_THE_WORK.includes(error.code)) break;
        }
      }
    }
    throw last ?? new PoolError("nobody", "Cannot compute: there is no place to do it");
  }

  /** The first of two answers that gives anything; the second is begun only when it is time. @throws what the first throws. */
  async #first(one: Begun, hedge: Hedge, begin: (place: Place) => Begun): Promise<Begun> {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const late = new Promise<"late">((wake) => timer = setTimeout(() => wake("late"), hedge.afterMs));
    const early = await Promise.race([late, one.first.then(() => "early", () => "early")]);
    clearTimeout(timer);
    if (early === "early" || !hedge.take()) return one;
    const two = begin(hedge.place);
    try {
      const winner = await Promise.any([one.first.then(() => one), two.first.then(() => two)]);
      const loser = winner === one ? two : one;
      loser.stop().catch(() => {}); // it is not awaited: a place may take its time to notice
      this.listener.overtaken?.(loser.place.name);
      return winner;
    } catch {
      await two.first.catch((error) => {
        if (!(error instanceof PoolError)) throw error;
        this.listener.left?.(two.place.name, error, 0, false);
      });
      return one; // whose error is told where it is read
    }
  }
}

function begun(place: Place, work: Work, { signal, deadlineMs }: SubmitOptions): Begun {
  const over = new AbortController();
  const until = signal ? AbortSignal.any([signal, over.signal]) : over.signal;
  const events = place.submit(work, { signal: until, deadlineMs })[Symbol.asyncIterator]();
  const first = events.next();
  first.catch(() => {}); // whoever reads it is told
  const stop = async () => {
    over.abort();
    await events.return?.();
  };
  return { place, events, first, stop };
}

/** All events of an answer, or those until it is left; it is stopped when nobody reads on. */
async function* restOf({ events, first, stop }: Begun, leaving?: Leaving): AsyncGenerator<PoolEvent, void> {
  let over = false;
  try {
    for (let next = first;; next = events.next()) {
      const it = await (leaving ? unlessLeft(next, leaving) : next);
      if (!it) {
        over = true;
        stop().catch(() => {}); // it is not awaited: a place may take its time to notice
        return;
      }
      if (it.done) break;
      yield it.value;
    }
    over = true;
  } catch (error) {
    over = true;
    throw error;
  } finally {
    if (!over) await stop();
  }
}

/** Whether an answer is left where it is. */
interface Leaving {
  readonly everyMs: number;
  leave(): boolean;
}

/** What comes next; undefined where that is not waited for. */
async function unlessLeft<T>(next: Promise<T>, { everyMs, leave }: Leaving): Promise<T | undefined> {
  next.catch(() => {}); // whoever reads it is told
  while (!leave()) {
    let timer: ReturnType<typeof setTimeout> | undefined;
    const quiet = new Promise<undefined>((wake) => timer = setTimeout(() => wake(undefined), everyMs));
    const it = await Promise.race([next, quiet]);
    clearTimeout(timer);
    if (it !== undefined) return it;
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
