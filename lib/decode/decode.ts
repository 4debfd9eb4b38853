/** The loop: prefill once, then one token after another until the model, the limit or the caller says stop. */

import type { Tensor } from "../backend/backend.ts";
import type { FinishReason, Pause, Sampling } from "../types.ts";
import type { ModelConfig } from "../weights/config.ts";
import type { Decoder } from "./gemma.ts";
import { type Choice, choose, randomFrom } from "./sampler.ts";

/** What to decode and until when. */
export interface DecodeWork {
  /** [T, D]: image tokens, then room for the text; used up. */
  readonly prefix: Tensor;
  /** BOS, prompt, newline. */
  readonly ids: readonly number[];
  readonly maxTokens: number;
  readonly sampling: Sampling;
  readonly ignoreEos: boolean;
  readonly topLogits: number;
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
  const cache = decoder.cache(work.prefix.rows + work.maxTokens - 1);
  try {
    let logits = await decoder.prefill(cache, work.prefix, work.ids, pause);
    for (let count = 1;; count++) {
      const choice = choose(logits, config.imageTokenId, never, work.sampling, random, work.topLogits);
      if (!work.ignoreEos && config.eosIds.includes(choice.id)) return "stop";
      yield choice;
      if (count === work.maxTokens) return "length";
      logits = await decoder.step(cache, choice.id, pause);
    }
  } finally {
    cache.free();
  }
}
