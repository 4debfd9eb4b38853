/**
 * The serving end of a pool, whatever brings the work: so many answers computed at once, so many waiting, and none begun
 * that cannot be in time. A new answer does not wait for the others' ends; the engine computes together what it is given.
 */

import { type Pool, PoolError, type PoolEvent, type SubmitOptions, type Work } from "./pool.ts";
import type { ModelShape } from "./work.ts";

/** How much a worker takes. */
export interface Capacity {
  /** Answers computed at once. */
  readonly maxActive: number;
  /** Answers that may wait for one of these to end; more are refused as `busy`. */
  readonly maxWaiting: number;
}

/** How busy a worker is, and how fast. */
export interface Load extends Capacity {
  readonly active: number;
  readonly waiting: number;
  /** Means: milliseconds from the turn of an answer alone to its first token, and of each further one. */
  readonly firstMs: number;
  readonly tokenMs: number;
  /** By how many milliseconds every other answer that is computed at once lengthens a token. */
  readonly addedMs: number;
  /** Tokens of an answer, a mean. */
  readonly tokens: number;
}

/** Work to measure a worker's speed with before anybody asks: a grey picture and 16 tokens. */
export function trialWork({ revision, imageSize, context, imageTokens }: ModelShape): Work {
  const grey = new Uint8Array(imageSize * imageSize * 3).fill(128);
  return {
    revision,
    images: { stage: "pixels", dtype: "u8", shape: [1, imageSize, imageSize, 3], blocks: () => [grey] },
    ids: [2, 108],
    sampling: { temperature: 0, topK: 0, topP: 1, seed: 0 },
    maxTokens: Math.min(16, context - imageTokens - 2),
    ignoreEos: true,
    topLogits: 0,
    forced: [],
    given: [],
  };
}

/** How much the newest answer counts in the means. */
const NEWEST = 1 / 8;

/** A place among those being computed or waiting. */
export interface Seat {
  /** Gives the place up. */
  leave(): void;
}

/** Bounds, measures and drains what an engine does. */
export class Serving implements Pool {
  #active = 0;
  #seated = 0;
  #draining = false;
  readonly #waiting: (() => void)[] = [];
  #means = { firstMs: 0, tokenMs: 0, addedMs: 0, tokens: 16 };
  readonly #idle = new Set<() => void>();

  /** @param onChange told whenever the load changed. */
  constructor(
    private readonly engine: Pool,
    private readonly capacity: Capacity,
    private readonly onChange: () => void = () => {},
    private readonly now: () => number = () => performance.now(),
  ) {}

  load(): Load {
    const { maxActive, maxWaiting } = this.capacity;
    return {
      maxActive,
      maxWaiting,
      active: this.#active,
      waiting: this.#seated - this.#active,
      ...this.#means,
    };
  }

  /** Milliseconds that an answer of so many tokens would take from now, with those that are before it. */
  predictMs(tokens: number): number {
    const { firstMs, tokenMs, addedMs, tokens: mean } = this.#means;
    const maxActive = Math.max(1, this.capacity.maxActive); // none for a worker that only refuses
    const others = Math.min(maxActive - 1, this.#active);
    const ahead = Math.max(0, this.#seated + 1 - maxActive);
    const first = firstMs * (others + 1);
    const answer = first + Math.min(tokens, Math.max(1, mean)) * (tokenMs + others * addedMs);
    return answer * (1 + ahead / maxActive);
  }

  /**
   * Takes a place for an answer that is about to come.
   *
   * @throws {PoolError} `busy` or `late`, with the time it would have taken.
   */
  enter(tokens: number, deadlineMs = Infinity): Seat {
    const predicted = this.predictMs(tokens);
    const { maxActive, maxWaiting } = this.capacity;
    if (this.#draining) throw new PoolError("busy", "Cannot take work: the worker is stopping");
    if (this.#seated >= maxActive + maxWaiting) {
      throw new PoolError(
        "busy",
        `Cannot take work: ${this.#seated} answers are computed or wait`,
        predicted,
      );
    }
    if (predicted > deadlineMs) {
      throw new PoolError(
        "late",
        `Cannot take work: it is wanted within ${Math.round(deadlineMs)} ms and would take ${
          Math.round(predicted)
        } ms`,
        predicted,
      );
    }
    this.#seated++;
    this.onChange();
    let left = false;
    return {
      leave: () => {
        if (left) return;
        left = true;
        this.#seated--;
        if (!this.#seated) { for (const wake of this.#idle) wake(); }
        this.onChange();
      },
    };
  }

  async *submit(work: Work, options: SubmitOptions = {}): AsyncGenerator<PoolEvent, void> {
    const seat = this.enter(work.maxTokens, options.deadlineMs);
    try {
      yield* this.run(work, options);
    } finally {
      seat.leave();
    }
  }

  /** Computes an answer that has a place. */
  async *run(work: Work, { signal }: SubmitOptions = {}): AsyncGenerator<PoolEvent, void> {
    await this.#turn(signal);
    const since = this.now();
    let first: number | undefined;
    let [tokens, together] = [0, 0];
    try {
      for await (const event of this.engine.submit(work, { signal })) {
        if (event.type === "token") {
          first ??= this.now();
          tokens++;
          together += this.#active;
        } else if (event.type === "done" && first !== undefined && event.finishReason !== "cancelled") {
          const perToken = tokens > 1 ? (this.now() - first) / (tokens - 1) : undefined;
          this.#measured(first - since, perToken, together / tokens - 1, work.given.length + tokens);
        }
        yield event;
      }
    } finally {
      this.#active--;
      this.#waiting.shift()?.();
      this.onChange();
    }
  }

  /** Takes no more work, and ends when what was begun is over. */
  async drain(): Promise<void> {
    this.#draining = true;
    if (!this.#seated) return;
    await new Promise<void>((wake) => this.#idle.add(wake));
  }

  async #turn(signal?: AbortSignal): Promise<void> {
    if (this.#active >= this.capacity.maxActive) {
      await new Promise<void>((resolve, reject) => {
        const abort = () => {
          this.#waiting.splice(this.#waiting.indexOf(go), 1);
          reject(new PoolError("gone", "The caller went away before its turn came"));
        };
        const go = () => {
          signal?.removeEventListener("abort", abort);
          resolve();
        };
        this.#waiting.push(go);
        signal?.addEventListener("abort", abort, { once: true });
      });
    }
    this.#active++;
    this.onChange();
  }

  /** Takes what an answer took that was computed with so many others, in the mean. */
  #measured(firstMs: number, tokenMs: number | undefined, others: number, tokens: number): void {
    const before = this.#means;
    const mean = (before: number, now: number) => before ? before + NEWEST * (now - before) : now;
    const now = { ...before, tokens: mean(before.tokens, tokens) };
    now.firstMs = mean(before.firstMs, firstMs / (others + 1));
    if (tokenMs !== undefined && (others < 0.5 || !before.tokenMs)) {
      now.tokenMs = mean(
        before.tokenMs,
        before.tokenMs ? tokenMs - others * before.addedMs : tokenMs / (others + 1),
      );
      // As long as nothing else was seen, as if one were computed after the other.
      now.addedMs = before.addedMs || now.tokenMs;
    } else if (tokenMs !== undefined) {
      now.addedMs = mean(before.addedMs, Math.max(0, tokenMs - before.tokenMs) / others);
    }
    this.#means = now;
  }
}
