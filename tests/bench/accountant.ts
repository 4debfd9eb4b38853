/** Counts what a streamed encoder holds and where its time goes. */

import type { WasmBackend } from "../../lib/backend/wasm.ts";
import type { ModelFiles } from "../../lib/types.ts";

/** What was seen. */
export interface Account {
  /**
   * The most that lay at any one time in WASM memory, JavaScript's heap and its buffers, those included that nobody
   * needs any more and the engine has not yet given back.
   */
  readonly peakBytes: number;
  /** Parts of that moment. */
  readonly peak: { readonly wasmBytes: number; readonly heapBytes: number; readonly bufferBytes: number };
  readonly rssBytes: number;
  /** Milliseconds in which at least one read was under way. */
  readonly readMs: number;
  readonly readBytes: number;
  readonly reads: number;
}

/** Samples memory whenever a read begins and ends, and whenever it is asked to. */
export class Accountant {
  #peak = { wasmBytes: 0, heapBytes: 0, bufferBytes: 0 };
  #rssBytes = 0;
  #readMs = 0;
  #readBytes = 0;
  #reads = 0;
  #under = 0;
  #since = 0;

  constructor(private readonly backend: WasmBackend) {}

  sample(): void {
    const { heapUsed: heapBytes, external: bufferBytes, rss } = Deno.memoryUsage();
    const now = { wasmBytes: this.backend.memoryBytes, heapBytes, bufferBytes };
    if (sum(now) > sum(this.#peak)) this.#peak = now;
    this.#rssBytes = Math.max(this.#rssBytes, rss);
  }

  /** The same files, their reads counted. */
  watch(files: ModelFiles): ModelFiles {
    return {
      ...files,
      read: async (name, start, end, room) => {
        this.sample();
        if (this.#under++ === 0) this.#since = performance.now();
        try {
          const bytes = await files.read(name, start, end, room);
          this.#readBytes += bytes.length;
          return bytes;
        } finally {
          this.#reads++;
          if (--this.#under === 0) this.#readMs += performance.now() - this.#since;
          this.sample();
        }
      },
    };
  }

  /** Forgets times and reads, not the peak. */
  restart(): void {
    [this.#readMs, this.#readBytes, this.#reads] = [0, 0, 0];
  }

  get account(): Account {
    return {
      peakBytes: sum(this.#peak),
      peak: this.#peak,
      rssBytes: this.#rssBytes,
      readMs: this.#readMs,
      readBytes: this.#readBytes,
      reads: this.#reads,
    };
  }
}

function sum(it: Account["peak"]): number {
  return it.wasmBytes + it.heapBytes + it.bufferBytes;
}
