/** Image tokens of pictures seen lately, so that several questions about one picture pay for SigLIP once. */

import type { Backend } from "../backend/backend.ts";
import type { Pixels } from "../types.ts";
import type { Vision } from "./siglip.ts";

/**
 * What image tokens depend on: the pixels after preprocessing, which stand for the file and every setting of the
 * resize, and the weights.
 */
async function featureKey(pixels: Pixels, revision: string): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", pixels.data as Float32Array<ArrayBuffer>);
  return `${new Uint8Array(digest).toHex()} ${pixels.size} ${revision} image-tokens`;
}

/** Rows by key, the least recently used forgotten first. */
export class FeatureCache {
  /** In the order of use, oldest first. */
  readonly #rows = new Map<string, Float32Array>();
  #sizeBytes = 0;

  /** @param maxBytes of all rows together; 0 keeps nothing. */
  constructor(readonly maxBytes: number) {}

  /** Bytes of all rows held now. */
  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** The rows [P, D] under a key, f32 row-major, not to be written to. */
  get(key: string): Float32Array | undefined {
    const rows = this.#rows.get(key);
    if (rows) {
      this.#rows.delete(key);
      this.#rows.set(key, rows);
    }
    return rows;
  }

  /** Keeps rows, unless they alone exceed the limit. */
  set(key: string, rows: Float32Array): void {
    this.#drop(key);
    if (rows.byteLength > this.maxBytes) return;
    this.#rows.set(key, rows);
    this.#sizeBytes += rows.byteLength;
    for (const oldest of this.#rows.keys()) {
      if (this.#sizeBytes <= this.maxBytes) break;
      this.#drop(oldest);
    }
  }

  #drop(key: string): void {
    this.#sizeBytes -= this.#rows.get(key)?.byteLength ?? 0;
    this.#rows.delete(key);
  }
}

/**
 * An encoder that looks a picture up before it computes.
 *
 * @param revision tells the weights apart where encoders share a cache.
 */
export function remembering(vision: Vision, backend: Backend, cache: FeatureCache, revision: string): Vision {
  if (cache.maxBytes === 0) return vision;
  return {
    imageTokens: vision.imageTokens,
    async encode(out, pixels, pause) {
      const key = await featureKey(pixels, revision);
      const known = cache.get(key);
      if (known) return backend.write(out, known);
      await vision.encode(out, pixels, pause);
      cache.set(key, await backend.read(out));
    },
  };
}
