/** How another machine is listened to: line by line, and for as long as it may take. */

import { PoolError } from "./pool.ts";

/** How many times longer than predicted a token may take, and what it may take in any case. */
const PATIENCE = 10;
const PATIENCE_MS = 5000;
const MOST_PATIENCE_MS = 120_000;

/** How long a token may take of a worker that predicted so much. */
export function tokenPatienceMs(predictedMs: number): number {
  return Math.min(MOST_PATIENCE_MS, PATIENCE_MS + PATIENCE * predictedMs);
}

/** What is waited for, and what it means that it does not come. */
const LATE = {
  word: (ms: number) => new PoolError("silent", `The worker said nothing for ${ms} ms`),
  token: (ms: number) => new PoolError("silent", `The worker gave no token for ${ms} ms`),
  answer: (ms: number) => new PoolError("late", `The answer was not there within ${ms} ms`),
};

/** Ends an exchange in which something does not come in time. */
export class Patience {
  /** Ends the exchange. */
  readonly signal: AbortSignal;
  /** Why it was ended, where the caller did not end it. */
  lost: PoolError | undefined;
  readonly #stop = new AbortController();
  readonly #timers: Partial<Record<keyof typeof LATE, ReturnType<typeof setTimeout>>> = {};
  #paused = false;

  constructor(signal?: AbortSignal) {
    this.signal = signal ? AbortSignal.any([signal, this.#stop.signal]) : this.#stop.signal;
  }

  /** Gives something so long from now on, whatever it had left. */
  within(what: keyof typeof LATE, ms: number): void {
    if (this.signal.aborted) return;
    clearTimeout(this.#timers[what]);
    this.#timers[what] = setTimeout(() => {
      if (this.#paused) return this.within(what, ms);
      this.lost ??= LATE[what](Math.round(ms));
      this.#stop.abort();
    }, Math.max(0, ms));
  }

  /** Waits for what this side computes; that it takes its time is not the other's silence. */
  async pausing<T>(work: Promise<T>): Promise<T> {
    this.#paused = true;
    try {
      return await work;
    } finally {
      this.#paused = false;
    }
  }

  end(): void {
    for (const timer of Object.values(this.#timers)) clearTimeout(timer);
    this.#stop.abort();
  }
}

/** Text as it comes. */
async function* said({ body }: Response, onWord?: () => void): AsyncGenerator<string> {
  for await (const text of body?.pipeThrough(new TextDecoderStream()) ?? []) {
    onWord?.();
    yield text;
  }
}

/** All of a refusal that is worth reading: some `most` characters. */
export async function refusalText(response: Response, most: number, onWord?: () => void): Promise<string> {
  let all = "";
  for await (const text of said(response, onWord)) if ((all += text).length > most) break;
  return all;
}

/** Lines but the empty ones; what has no end is none. @throws {PoolError} `broken` for one beyond `most` characters. */
export async function* lines(response: Response, most: number, onWord: () => void): AsyncGenerator<string> {
  let rest = "";
  for await (const text of said(response, onWord)) {
    const all = (rest + text).split(/\r?\n/);
    rest = all.pop()!;
    if (rest.length > most) throw new PoolError("broken", "The worker sent a line without an end");
    yield* all.filter(Boolean);
  }
}

/** @throws {PoolError} `broken` */
export function parsedObject<T extends object>(text: string): T {
  try {
    const value = JSON.parse(text);
    if (typeof value === "object" && value !== null) return value;
  } catch {
    // said below
  }
  throw new PoolError("broken", "The worker sent what is no JSON object");
}
