/** How those who wait for a queue hear of new messages in their own process at once. */

/** Wakes whoever waits. */
export class Bell {
  #waiting: (() => void)[] = [];

  /** Wakes all who wait now. */
  ring(): void {
    for (const wake of this.#waiting.splice(0)) wake();
  }

  /** Ends after a `ring`, after `ms`, or when the signal aborts. */
  wait(ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const wake = () => {
        clearTimeout(timer);
        signal?.removeEventListener("abort", wake);
        this.#waiting = this.#waiting.filter((it) => it !== wake);
        resolve();
      };
      const timer = setTimeout(wake, ms);
      this.#waiting.push(wake);
      signal?.addEventListener("abort", wake, { once: true });
      if (signal?.aborted) wake();
    });
  }
}
