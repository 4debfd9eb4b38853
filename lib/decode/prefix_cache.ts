/**
 * Keys and values of prefixes seen before. Within its prefix every row sees every other, so they are good for the
 * identical pictures and prompt, and for nothing else: not for another question about the same picture.
 */

import type { Tensor } from "../backend/backend.ts";
import { Recent } from "../store/recent.ts";
import type { Pause } from "../types.ts";
import type { Cache, Decoder, Prefilled } from "./decoder.ts";

/** Prefilled prefixes by what they were made of. */
export class PrefixCache {
  readonly #prefixes: Recent<Prefilled>;

  /** @param maxBytes of all prefixes together; 0 keeps nothing. */
  constructor(maxBytes: number) {
    this.#prefixes = new Recent(
      maxBytes,
      ({ logits, rows }) => rows.reduce((sum, it) => sum + it.byteLength, logits.byteLength),
    );
  }

  /** The place of one prefix. `pictures` are words that tell image tokens apart. */
  entry(pictures: readonly string[], ids: readonly number[]): PrefixEntry {
    const key = `${pictures.join(" ")} ${ids.join(",")}`;
    return {
      get: () => this.#prefixes.get(key),
      set: (it) => this.#prefixes.set(key, it),
      kept: this.#prefixes.maxBytes > 0,
    };
  }
}

/** One prefix in the cache, whether it is there or not. */
export interface PrefixEntry {
  get(): Prefilled | undefined;
  set(prefilled: Prefilled): void;
  /** Whether there is any use in `set`. */
  readonly kept: boolean;
}

/** What {@link prefill} works on. */
export interface PrefixWork {
  /** [T, D]: image tokens, then room for the text; used up. Where the prefix is known, only its number of rows counts. */
  readonly prefix: Tensor;
  /** BOS, prompt, newline. */
  readonly ids: readonly number[];
  readonly known?: PrefixEntry;
}

/** Brings a prefix into an empty cache, computed or known from before, and gives the logits [V] after it. */
export async function prefill(
  decoder: Decoder,
  cache: Cache,
  { prefix, ids, known }: PrefixWork,
  pause: Pause,
): Promise<Float32Array> {
  const before = known?.get();
  if (before && decoder.restore) return decoder.restore(cache, before);
  const logits = await decoder.prefill(cache, prefix, ids, pause);
  if (known?.kept && decoder.save) known.set(await decoder.save(cache, logits));
  return logits;
}
