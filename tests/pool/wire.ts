/** A worker without a network: it has the work as bytes, as behind every wire. */

import type { Engine } from "../../lib/engine.ts";
import { type Pool, PoolError, type Work } from "../../lib/pool/pool.ts";
import { decodeWork, encodeWork, type ModelShape } from "../../lib/pool/work.ts";

/** What happens on the way to a worker. */
export interface Wire {
  /** Sees the work that is asked for, before its first block. */
  asked?(work: Work): void | Promise<void>;
  /** Sees each block, counted from 1. */
  block?(block: Uint8Array, n: number): void;
}

/** A pool of one worker; what cannot be sent looks like a broken way. */
export function wired(engine: Engine, { asked, block }: Wire = {}): (model: ModelShape) => Pool {
  return (model) => ({
    async *submit(work, options) {
      await asked?.(work);
      const parts: Uint8Array[] = [];
      try {
        for await (const it of encodeWork(work)) {
          parts.push(it);
          block?.(it, parts.length);
        }
      } catch (cause) {
        if (cause instanceof PoolError) throw cause;
        throw new PoolError("gone", "The way to the worker broke", undefined, { cause });
      }
      const message = new Uint8Array(await new Blob(parts as BlobPart[]).arrayBuffer());
      yield* engine.submit({ ...await decodeWork(message, model), given: work.given }, options);
    },
  });
}
