/** Takes messages from a queue and has them handled, so many at once, until told to stop. */

import type { Delivery, PullQueue } from "../store/store.ts";

/**
 * Does what a message asks for, and acknowledges it or gives it back. When it throws, the message comes again, later
 * every time.
 */
export type Handler = (delivery: Delivery, signal: AbortSignal) => Promise<void>;

/** How a queue is consumed. */
export interface ConsumeOptions {
  readonly concurrency: number;
  readonly signal: AbortSignal;
  readonly onError: (error: unknown) => void;
}

/** Long enough for a pause of the event loop, short enough to wait for after a crash of somebody else. */
export const LEASE_MS = 15_000;

/** How soon a message is noticed that another process sent. */
const POLL_MS = 1000;

/** Runs until the signal aborts; then waits for the handlers, which hear of it too. */
export async function consume(queue: PullQueue, handle: Handler, options: ConsumeOptions): Promise<void> {
  const { concurrency, signal, onError } = options;
  const running = new Set<Promise<void>>();
  while (!signal.aborted) {
    const limit = concurrency - running.size;
    const deliveries = await queue.receive({ limit, leaseMs: LEASE_MS }).catch((error) => {
      onError(error);
      return undefined;
    });
    for (const delivery of deliveries ?? []) {
      const work = handleOne(delivery, handle, options).finally(() => running.delete(work));
      running.add(work);
    }
    if (running.size === concurrency) await Promise.race(running);
    // A full hand may mean that there is more.
    else if ((deliveries?.length ?? 0) < limit) await Promise.race([queue.wait(POLL_MS, signal), ...running]);
  }
  await Promise.all(running);
}

/** Has one message handled; its lease is renewed meanwhile, and a handler that throws gives it back. */
export async function handleOne(
  delivery: Delivery,
  handle: Handler,
  { signal, onError }: Omit<ConsumeOptions, "concurrency">,
): Promise<void> {
  const lost = new AbortController();
  const abort = () => lost.abort();
  signal.addEventListener("abort", abort, { once: true });
  if (signal.aborted) abort();
  const renewal = setInterval(() => {
    // Whoever has lost the message must not go on: somebody else is at it.
    delivery.extend(LEASE_MS).then((held) => held || abort(), onError);
  }, LEASE_MS / 3);
  try {
    await handle(delivery, lost.signal);
  } catch (error) {
    onError(error);
    await delivery.retry(backoff(delivery.attempts)).catch(onError);
  } finally {
    clearInterval(renewal);
    signal.removeEventListener("abort", abort);
  }
}

/** One second, doubled with every attempt up to a minute. */
export function backoff(attempts: number): number {
  return Math.min(60_000, 1000 * 2 ** (attempts - 1));
}
