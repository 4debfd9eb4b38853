/** Who has how much of a memory that ends whoever overdraws it, such as an isolate's. */

import { RequestError } from "../errors.ts";
import type { Memory } from "../types.ts";

/** The memory's accountant. It knows what it is told; what that comes to, bytes. */
export class Ledger implements Memory {
  #taken = 0;
  #mostBytes = 0;

  /**
   * @param limitBytes of everything together.
   * @param held what is held whatever is asked: weights, working memory at its largest, caches, the program.
   */
  constructor(readonly limitBytes: number, private readonly held: () => number) {}

  /** Held and set aside now. */
  get bytes(): number {
    const bytes = this.held() + this.#taken;
    this.#mostBytes = Math.max(this.#mostBytes, bytes);
    return bytes;
  }

  /** The most so far. */
  get mostBytes(): number {
    return Math.max(this.#mostBytes, this.bytes);
  }

  take(bytes: number, what: string): Disposable {
    const free = this.limitBytes - this.bytes;
    if (bytes > free) {
      const [code, now] = bytes > free + this.#taken
        ? ["memory_exceeded", ""] as const
        : ["overloaded", " now"] as const;
      const [needed, left, all] = [bytes, Math.max(0, free), this.limitBytes].map((it) =>
        `${(it / 1e6).toFixed(1)} MB`
      );
      throw new RequestError(
        code,
        `Cannot ${what}${now}: it takes ${needed}, of ${all} there are ${left} left`,
      );
    }
    this.#taken += bytes;
    this.#mostBytes = Math.max(this.#mostBytes, this.bytes);
    let open = true;
    return {
      [Symbol.dispose]: () => {
        if (open) this.#taken -= bytes;
        open = false;
      },
    };
  }
}
