/** The loop: prefill once, then one token after another until the model, the limit or the caller says stop. */

import type { Constraint, FinishReason, Pause, Sampling, Span } from "../types.ts";
import type { ModelConfig } from "../weights/config.ts";
import type { Decoder } from "./gemma.ts";
import { prefill, type PrefixWork } from "./prefix_cache.ts";
import { type Choice, choose, randomFrom } from "./sampler.ts";

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
  /** The ids that mean what an id means, itself among them, where there are such. */
  readonly near?: (id: number) => readonly Span[] | undefined;
}

/**
 * Yields one choice per token and returns why it ended. The end-of-sequence token itself is not yielded, unless
 * `ignoreEos` is set.
 */
export async function* decode(
  decoder: Decoder,
  config: ModelConfig,
  work: DecodeWork,
  pause: Pause,
): AsyncGenerator<Choice, Exclude<FinishReason, "cancelled">> {
  const random = randomFrom(work.sampling.seed);
  const never = [config.padId, config.bosId];
  const { forced = [], given = [], constraint, sampling } = work;
  const most = forced.length + work.maxTokens;
  if (given.length >= most) return "length";
  const cache = decoder.cache(work.prefix.rows + most - 1);
  try {
    let logits = await prefill(decoder, cache, work, pause);
    for (const id of given) {
      constraint?.advance(id);
      if (sampling.temperature > 0) random(); // as every choice takes one number, whatever it comes to
      logits = await decoder.step(cache, id, pause);
    }
    for (let count = given.length + 1;; count++) {
      const next = forced[count - 1];
      const spans: readonly Span[] | undefined = next === undefined
        ? constraint?.allowed()
        : [[next, next + 1]];
      const { imageTokenId, eosIds } = config;
      const choice = choose(logits, imageTokenId, never, sampling, random, work.topLogits, spans, work.near);
      constraint?.advance(choice.id);
      if (!work.ignoreEos && next === undefined && eosIds.includes(choice.id)) return "stop";
      yield choice;
      if (count === most) return "length";
      logits = await decoder.step(cache, choice.id, pause);
    }
  } finally {
    cache.free();
  }
}
