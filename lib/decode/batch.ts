/**
 * Answers that are computed at once, in one loop: every pass reads the weights once and brings each of them one token.
 * New ones join when their prefix is through, and leave, at the end of a pass. Continuous batching, as in Orca (Yu et al.,
 * OSDI 2022).
 */

import type { FinishReason, Pause } from "../types.ts";
import type { ModelConfig } from "../weights/config.ts";
import { type DecodeWork, Sequence } from "./decode.ts";
import type { Cache, Decoder, Found, Turn } from "./decoder.ts";
import { prefill } from "./prefix_cache.ts";
import type { Choice } from "./sampler.ts";

/** Sequences of one pass: as many as backends multiply with weights read once. */
const TOGETHER = 16;

/** Tokens that are computed before anybody asks for them, so that one who is slow to ask does not hold up the others. */
const AHEAD = 8;

type End = Exclude<FinishReason, "cancelled">;

/** All answers of one decoder. With one, it is decoded as if there were no others. */
export class Batch {
  readonly #runs = new Set<Run>();
  #looping = false;

  /** @param pause between the layers of a pass. */
  constructor(
    private readonly decoder: Decoder,
    private readonly config: ModelConfig,
    private readonly pause: Pause,
  ) {}

  /**
   * Yields one choice per token and returns why it ended. The end-of-sequence token itself is not yielded, unless
   * `ignoreEos` is set.
   *
   * @param pause between the layers of this answer's prefix.
   * @param signal ends the answer with the pass that is under way, and at once where nobody else is in it.
   */
  async *decode(work: DecodeWork, pause: Pause, signal?: AbortSignal): AsyncGenerator<Choice, End> {
    const sequence = new Sequence(this.config, work);
    if (sequence.full) return "length";
    const cache = this.decoder.cache(work.prefix.rows + sequence.most - 1);
    const run = new Run(sequence, cache, signal);
    try {
      const logits = await prefill(this.decoder, cache, work, pause);
      const { given = [] } = work;
      if (given.length) await this.decoder.extend(cache, given.slice(0, -1), pause);
      run.begin(given.at(-1) ?? logits);
      this.#runs.add(run);
      while (true) {
        if (!this.#looping) this.#loop();
        const next = await run.next();
        if (typeof next === "string") return next;
        yield next;
      }
    } finally {
      this.#runs.delete(run);
      await run.leave();
      cache.free();
    }
  }

  /** Passes until no answer wants one. */
  async #loop(): Promise<void> {
    this.#looping = true;
    while (true) {
      const runs = [...this.#runs].filter((it) => it.wants()).slice(0, this.decoder.steps ? TOGETHER : 1);
      if (!runs.length) break;
      for (const it of runs) {
        this.#runs.delete(it);
        this.#runs.add(it); // to the end, so that all have their turn
      }
      const pass = this.#pass(runs);
      for (const it of runs) it.pass = pass;
      await pass;
    }
    this.#looping = false;
  }

  async #pass(runs: readonly Run[]): Promise<void> {
    const pause = async () => {
      await this.pause();
      if (runs.every((it) => it.gone)) throw new Error("Nobody is left in this pass");
    };
    try {
      const found = await this.#steps(runs.map((it) => it.turn), pause);
      runs.forEach((it, i) => it.take(found[i]));
    } catch (error) {
      for (const it of runs) it.fail(error);
    }
  }

  async #steps(turns: readonly Turn[], pause: Pause): Promise<Found[]> {
    if (this.decoder.steps) return await this.decoder.steps(turns, pause);
    const [{ cache, id }] = turns;
    return [await this.decoder.step(cache, id, pause)];
  }
}

/** One answer in the loop. */
class Run {
  /** The last pass that it was in, until it is over. */
  pass: Promise<void> | undefined;
  #id = -1;
  readonly #choices: Choice[] = [];
  #end: { readonly reason: End } | { readonly error: unknown } | undefined;
  #left = false;
  #wake = () => {};

  constructor(
    private readonly sequence: Sequence,
    private readonly cache: Cache,
    private readonly signal?: AbortSignal,
  ) {}

  /** Whether nobody waits for it any more. */
  get gone(): boolean {
    return this.#left || !!this.signal?.aborted;
  }

  get turn(): Turn {
    return { cache: this.cache, id: this.#id, choice: this.sequence.choice };
  }

  /** With logits after the prefix, or with a token that came before and is not in the cache yet. */
  begin(from: Found | number): void {
    if (typeof from === "number") this.#id = from;
    else this.take(from);
  }

  /** Whether it goes on with the next pass. */
  wants(): boolean {
    if (this.gone) this.#wake();
    return !this.gone && !this.#end && this.#choices.length < AHEAD;
  }

  /** What the pass found after the last token. What is wrong with that is this answer's affair, not the others'. */
  take(found: Found): void {
    try {
      const choice = this.sequence.take(found);
      if (choice) {
        this.#choices.push(choice);
        this.#id = choice.id;
      }
      if (!choice) this.#end = { reason: "stop" };
      else if (this.sequence.full) this.#end = { reason: "length" };
      this.#wake();
    } catch (error) {
      this.fail(error);
    }
  }

  fail(error: unknown): void {
    this.#end = { error };
    this.#wake();
  }

  /** The next token, or why there is none. @throws when it was cancelled, and what made its pass fail. */
  async next(): Promise<Choice | End> {
    while (true) {
      this.signal?.throwIfAborted();
      const choice = this.#choices.shift();
      if (choice) return choice;
      if (this.#end && "error" in this.#end) throw this.#end.error;
      if (this.#end) return this.#end.reason;
      await new Promise<void>((wake) => this.#wake = wake);
    }
  }

  /** Wants nothing any more; returns when nothing is computed for it either. */
  async leave(): Promise<void> {
    this.#left = true;
    await this.pass;
  }
}
