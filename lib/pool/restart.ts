/** A worker whose engine may be lost under it, as a GPU's device is when its driver resets: it starts anew. */

/** A worker from its start until its engine is lost. */
export interface Life {
  /** Settles, with the reason, when the engine computes no more; absent where that does not happen. */
  readonly lost?: Promise<string>;
  /** Takes no more work. What was begun has failed, or ends. */
  leave(): Promise<void>;
}

/** How often and how soon. */
export interface RestartOptions {
  /** Starts in a row that come to nothing, or to an engine that is soon lost, before it is given up; 6 by default. */
  readonly tries?: number;
  /** Rest before the first of them, doubled with each; a second by default. */
  readonly restMs?: number;
  /** An engine that lived for so long was not lost in a row; five minutes by default. */
  readonly steadyMs?: number;
  /** Told what happened, and how long it rests now. */
  readonly onLost: (reason: unknown, restMs: number) => void;
}

/**
 * Starts a worker, and again whenever its engine was lost.
 *
 * @param start begins a life; what it throws at the first time is thrown here.
 * @throws the last reason when it is given up.
 */
export async function keepStarted(
  start: () => Promise<Life>,
  { tries = 6, restMs = 1000, steadyMs = 300_000, onLost }: RestartOptions,
): Promise<never> {
  for (let [begun, failures] = [false, 0];;) {
    const since = performance.now();
    let reason: unknown;
    try {
      const life = await start();
      begun = true;
      reason = new Error(await (life.lost ?? new Promise<never>(() => {})));
      await life.leave();
    } catch (error) {
      if (!begun) throw error;
      reason = error;
    }
    failures = performance.now() - since > steadyMs ? 1 : failures + 1;
    if (failures > tries) throw reason;
    const ms = restMs * 2 ** (failures - 1);
    onLost(reason, ms);
    await new Promise((wake) => setTimeout(wake, ms));
  }
}
