/**
 * Answers that are computed at once, in one loop: every pass reads the weights once and brings each of them one token.
 * New ones join when their prefix is through, and leave, at the end of a pass. Continuous batching, as in Orca (Yu et al.,
 * OSDI 2022).
 *
 * Where the decoder chooses, a pass is issued before the one ahead of it is read: what that chose goes on to the next
 * without coming here. So what it takes to issue and to read is hidden behind what is computed.
 */

import type { FinishReason, Pause } from "../types.ts";
import type { ModelConfig } from "../weights/config.ts";
import { type DecodeWork, Sequence } from "./decode.ts";
import type { Cache, Decoder, Found, Issued, Turn } from "./decoder.ts";
import { prefill } from "./prefix_cache.ts";
import type { Choice } from "./sampler.ts";

/** Sequences of one pass: as many as backends multiply with weights read once. */
const TOGETHER = 16;

/** Tokens that are computed before anybody asks for them, so that one who is slow to ask does not hold up the others. */
const AHEAD = 8;

/**
 * Passes that are issued and not read: while one is read, the next is computed. An answer that ends where nobody knew
 * wastes a row of each but the first; with 4, Deno's own WebGPU, whose reads take 11 ms, was hardly faster than with 2.
 */
const DEPTH = 2;

type End = Exclude<FinishReason, "cancelled">;

/** A pass under way. */
interface Pass extends Issued {
  readonly runs: readonly Run[];
}

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
   * @param signal ends the answer with the passes that are under way, and at once where nobody else is in the last.
   */
  async *decode(work: DecodeWork, pause: Pause, signal?: AbortSignal): AsyncGenerator<Choice, End> {
    const sequence = new Sequence(this.config, work);
    if (sequence.full()) return "length";
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
    const passes: Pass[] = []; // the oldest first
    while (true) {
      const runs = this.#next(passes.length);
      if (runs.length) await this.#issue(runs, passes);
      else if (passes.length) await land(passes.shift()!);
      else break;
    }
    this.#looping = false;
  }

  /** Those of the next pass, while so many are under way; none where one of these has to land first. */
  #next(passes: number): Run[] {
    const { chooses, steps } = this.decoder;
    const runs = [...this.#runs].filter((it) => it.wants());
    // One that has to know its last token would be in every other pass only, and these no faster for being smaller.
    const ahead = chooses && passes < DEPTH && !runs.some((it) => it.waits);
    if (passes && !ahead) return [];
    runs.splice(steps ? TOGETHER : 1);
    for (const it of runs) {
      this.#runs.delete(it);
      this.#runs.add(it); // to the end, so that all have their turn
    }
    return runs;
  }

  async #issue(runs: readonly Run[], passes: Pass[]): Promise<void> {
    const pause = async () => {
      await this.pause();
      if (runs.every((it) => it.gone)) throw new Error("Nobody is left in this pass");
    };
    try {
      const { found } = await this.#steps(runs.map((it) => it.join()), pause);
      found.catch(() => {}); // is heard when it is this pass's turn to land
      passes.push({ runs, found });
    } catch (error) {
      // What those before it find comes first, and nothing goes on from what failed.
      for (const it of passes.splice(0)) await land(it);
      for (const it of runs) it.fail(error);
    }
  }

  async #steps(turns: readonly Turn[], pause: Pause): Promise<Issued> {
    if (this.decoder.steps) return await this.decoder.steps(turns, pause);
    const [{ cache, id }] = turns;
    return { found: Promise.resolve([await this.decoder.step(cache, id!, pause)]) };
  }
}

/** Waits for a pass and hands out what it found. */
async function land({ runs, found }: Pass): Promise<void> {
  try {
    const all = await found;
    runs.forEach((it, i) => it.land(all[i]));
  } catch (error) {
    for (const it of runs) it.fail(error);
  }
}

/** One answer in the loop. */
class Run {
  /** Under way, each with one token of it. */
  #passes = 0;
  #id = -1;
  /** Logits that were looked at. */
  #room: Float32Array | undefined;
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

  /** With logits after the prefix, or with a token that came before and is not in the cache yet. */
  begin(from: Found | number): void {
    if (typeof from === "number") this.#id = from;
    else this.#take(from);
  }

  /** Whether it goes on with the next pass. */
  wants(): boolean {
    if (this.gone) this.#wake();
    const { length } = this.#choices;
    return !this.gone && !this.#end && !this.sequence.full(this.#passes) && length + this.#passes < AHEAD;
  }

  /** Whether the next pass has to be told what the last one found for it. */
  get waits(): boolean {
    return this.#passes > 0 && !this.sequence.choice(this.#passes - 1);
  }

  /** Its turn in the next pass. */
  join(): Turn {
    const passes = this.#passes++;
    const choice = this.sequence.choice(passes);
    if (passes) return { cache: this.cache, choice };
    return { cache: this.cache, id: this.#id, choice, room: this.#room };
  }

  /** A pass is over; what it found is nothing to one that had ended when that was not known. */
  land(found: Found): void {
    this.#passes--;
    if (!this.#end) this.#take(found);
    this.#wake();
  }

  /** A pass went wrong. */
  fail(error: unknown): void {
    this.#passes--;
    this.#end ??= { error };
    this.#wake();
  }

  /** What is found after the last token. What is wrong with that is this answer's affair, not the others'. */
  #take(found: Found): void {
    try {
      const choice = this.sequence.take(found);
      if (found instanceof Float32Array) this.#room = found;
      if (choice) {
        this.#choices.push(choice);
        this.#id = choice.id;
      }
      if (!choice) this.#end = { reason: "stop" };
      else if (this.sequence.full()) this.#end = { reason: "length" };
    } catch (error) {
      this.#end = { error };
    }
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
    while (this.#passes) await new Promise<void>((wake) => this.#wake = wake);
  }
}
