/** One answer, token by token, wherever its logits come from: what was asked for, and how far it is. */

import type { Constraint, Sampling, Span } from "../types.ts";
import type { ModelConfig } from "../weights/config.ts";
import type { Found, Near, TurnChoice } from "./decoder.ts";
import type { PrefixWork } from "./prefix_cache.ts";
import { type Choice, choose, neverSampled, randomFrom } from "./sampler.ts";

/** What to decode and until when. */
export interface DecodeWork extends PrefixWork {
  readonly maxTokens: number;
  readonly sampling: Sampling;
  readonly ignoreEos: boolean;
  readonly topLogits: number;
  /** Tokens that the answer starts with; they do not count to `maxTokens`. */
  readonly forced?: readonly number[];
  /** Tokens that the answer begins with because they came before: nothing of them is yielded again. */
  readonly given?: readonly number[];
  /** Asked before every token that is not forced, told every token. */
  readonly constraint?: Constraint;
  readonly near?: Near;
}

/** The tokens of one answer. */
export class Sequence {
  /** Tokens that it has at most. */
  readonly most: number;
  #count = 0;
  readonly #random: () => number;
  /** Of the tokens to come: every token takes one, in their order, whatever it comes to and whenever it is asked for. */
  readonly #drawn: number[] = [];

  constructor(private readonly config: ModelConfig, private readonly work: DecodeWork) {
    const { sampling, constraint, forced = [], given = [] } = work;
    this.most = forced.length + work.maxTokens;
    this.#random = sampling.temperature > 0 ? randomFrom(sampling.seed) : () => 0;
    for (const id of given) this.#went(id, constraint);
  }

  /** Whether it has all its tokens, or will with so many more. */
  full(more = 0): boolean {
    return this.#count + more >= this.most;
  }

  /** How a backend may choose the token so many after the next; undefined where that takes the logits. */
  choice(ahead = 0): TurnChoice | undefined {
    const { topLogits, constraint, sampling, near } = this.work;
    if (topLogits || constraint || this.#forced(ahead) !== undefined) return undefined;
    return { ...sampling, random: this.#number(ahead), near };
  }

  /** The next token from what was found; undefined at the end of the sequence, whose token is none of the answer's. */
  take(found: Found): Choice | undefined {
    const { constraint, sampling, topLogits, near, ignoreEos } = this.work;
    const { imageTokenId, eosIds } = this.config;
    const forced = this.#forced();
    let choice: Choice;
    if (found instanceof Float32Array) {
      const spans: readonly Span[] | undefined = forced === undefined
        ? constraint?.allowed()
        : [[forced, forced + 1]];
      const never = neverSampled(this.config);
      choice = choose(found, imageTokenId, never, sampling, () => this.#number(), topLogits, spans, near?.of);
    } else choice = { ...found, top: [] };
    this.#went(choice.id, constraint);
    return !ignoreEos && forced === undefined && eosIds.includes(choice.id) ? undefined : choice;
  }

  #forced(ahead = 0): number | undefined {
    return this.work.forced?.[this.#count + ahead];
  }

  #number(ahead = 0): number {
    while (this.#drawn.length <= ahead) this.#drawn.push(this.#random());
    return this.#drawn[ahead];
  }

  #went(id: number, constraint: Constraint | undefined): void {
    constraint?.advance(id);
    this.#number();
    this.#drawn.shift();
    this.#count++;
  }
}
