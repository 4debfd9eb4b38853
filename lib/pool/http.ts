/**
 * A pool of workers behind one address, seen from the server that asks: one worker, or a cluster with its own balancer
 * such as Ray Serve.
 *
 * ```text
 * POST {url}/work          deadline-ms and max-tokens as headers, where they are known
 *   the message of work.ts, then its signature (signature.ts) in ASCII up to the end of the body
 * 200                      predicted-ms as header, application/x-ndjson: events, or `refused` where one breaks off;
 *                          an empty line every second says that the answer is still computed
 * all of ours              how busy the worker was with others' answers, as orca.ts writes it
 * other statuses           application/problem+json with `code` and `predictedMs`, and Retry-After for 503
 * ```
 *
 * The signature holds the message's sha256, which is known when its last block is; it stands behind the message, not in a
 * header, so that the first block leaves while the last is still computed. Whoever goes away cancels.
 */

import { Breakers } from "./breaker.ts";
import { Checker } from "./checker.ts";
import {
  type Pool,
  PoolError,
  poolError,
  type PoolErrorCode,
  type PoolEvent,
  type Present,
  type SubmitOptions,
  type Work,
} from "./pool.ts";
import { HeardLoad } from "./orca.ts";
import { ending } from "./relay.ts";
import type { Sign } from "./signature.ts";
import { encodeWork, type ModelShape } from "./work.ts";

/** How often a worker that has nothing to say says so. */
export const HEARTBEAT_MS = 1000;
/** A worker that says nothing for so long is given up. */
const SILENCE_MS = 5000;
/** How many times longer than predicted a token may take, and what it may take in any case. */
const PATIENCE = 10;
const PATIENCE_MS = 5000;
const MOST_PATIENCE_MS = 120_000;
/** Of a line or of a refusal, characters: 100 candidates take 10,000. */
const MAX_LINE = 1 << 17;

/** What a worker says of work, and the status it says it with. */
export const STATUS: Partial<Readonly<Record<PoolErrorCode, number>>> = {
  magic: 400,
  version: 400,
  malformed: 400,
  shape: 400,
  length: 400,
  sum: 400,
  number: 400,
  norm: 400,
  unsigned: 401,
  forbidden: 403,
  revision: 404,
  failed: 500,
  busy: 503,
  late: 503,
};

/** What a line of an answer is. */
export type Line =
  | PoolEvent
  | {
    readonly type: "refused";
    readonly code: PoolErrorCode;
    readonly message: string;
    readonly predictedMs?: number;
  };

/** What a pool is asked with. */
export interface HttpPoolParts {
  readonly model: ModelShape;
  readonly sign: Sign;
  readonly fetch?: (url: string, init: RequestInit) => Promise<Response>;
  /** Whether to leave it alone; known to this pool alone by default. */
  readonly breakers?: Breakers;
}

/** The workers of one model behind one address. */
export class HttpPool implements Pool {
  readonly #url: string;
  readonly #breakers: Breakers;
  readonly #load = new HeardLoad();
  /** Until when it asked to be left alone. */
  #fullUntil = 0;

  /** @param url up to `/work`. */
  constructor(url: string, private readonly parts: HttpPoolParts) {
    this.#url = url.replace(/\/*$/, "/work");
    this.#breakers = parts.breakers ?? new Breakers();
  }

  /** Nobody while it is left alone; otherwise what it last said of its load. */
  present(): Present | undefined {
    if (this.#breakers.open(this.#url) || performance.now() < this.#fullUntil) return { workers: [] };
    const worker = this.#load.worker(this.#url);
    return worker && { workers: [worker] };
  }

  /** One try. */
  async *submit(work: Work, { signal, deadlineMs }: SubmitOptions = {}): AsyncGenerator<PoolEvent, void> {
    const imageTokens = work.images.shape[0] * this.parts.model.imageTokens;
    let count = work.given.length;
    if (signal?.aborted) return yield* ending(work, count, "cancelled", imageTokens);
    if (this.#breakers.open(this.#url)) {
      throw new PoolError("nobody", "Cannot reach the pool: it failed a moment ago");
    }
    if (performance.now() < this.#fullUntil) {
      throw new PoolError("busy", "Cannot take work: the pool is full");
    }
    const check = new Checker(work, this.parts.model);
    const watch = new Watch();
    const abort = () => watch.stop.abort();
    signal?.addEventListener("abort", abort, { once: true });
    try {
      const response = await this.#post(work, watch, deadlineMs);
      for await (const line of lines(response, watch)) {
        const event = parsed(line);
        if (event.type === "refused") throw new PoolError(event.code, event.message, event.predictedMs);
        check.take(event);
        watch.event();
        if (event.type === "token") count++;
        yield event;
        if (event.type !== "done") continue;
        this.#breakers.succeeded(this.#url);
        return;
      }
      throw new PoolError("gone", "The worker's answer broke off");
    } catch (cause) {
      if (signal?.aborted) return yield* ending(work, count, "cancelled", imageTokens);
      const error = watch.silent ?? poolError(cause);
      this.#breakers.lost(this.#url, error);
      throw error;
    } finally {
      signal?.removeEventListener("abort", abort);
      watch.end();
    }
  }

  async #post(work: Work, watch: Watch, deadlineMs?: number): Promise<Response> {
    const response = await (this.parts.fetch ?? fetch)(this.#url, {
      method: "POST",
      headers: {
        "content-type": "application/octet-stream",
        "max-tokens": `${work.forced.length + work.maxTokens - work.given.length}`,
        ...deadlineMs !== undefined && { "deadline-ms": `${Math.max(0, Math.floor(deadlineMs))}` },
      },
      body: ReadableStream.from(this.#body(work, watch)),
      redirect: "manual", // which is no answer; Workers know no "error"
      signal: watch.stop.signal,
      // Without it browsers and Node refuse a body that is not yet there.
      ...{ duplex: "half" },
    });
    this.#load.take(response.headers);
    watch.predicted(Number(response.headers.get("predicted-ms")) || 0);
    if (response.status === 200) return response;
    const error = await refusal(response, watch);
    if (error.code === "busy") {
      const seconds = Number(response.headers.get("retry-after")) || 0;
      this.#fullUntil = performance.now() + 1000 * Math.min(60, seconds);
    }
    throw error;
  }

  async *#body(work: Work, watch: Watch): AsyncGenerator<Uint8Array> {
    let last = new Uint8Array();
    for await (const block of watch.meanwhile(encodeWork(work))) yield last = block as typeof last;
    yield new TextEncoder().encode(await this.parts.sign(work.revision, last));
  }
}

/** Sees that a worker goes on speaking. */
class Watch {
  /** Ends the exchange. */
  readonly stop = new AbortController();
  /** Why it was ended. */
  silent: PoolError | undefined;
  #lastWord = performance.now();
  #lastEvent = performance.now();
  #patienceMs = PATIENCE_MS;
  #own = false;
  readonly #timer = setInterval(() => this.#look(), HEARTBEAT_MS / 4);

  word(): void {
    this.#lastWord = performance.now();
  }

  event(): void {
    this.#lastEvent = performance.now();
  }

  predicted(ms: number): void {
    this.#patienceMs = Math.min(MOST_PATIENCE_MS, PATIENCE_MS + PATIENCE * ms);
    this.word();
    this.event();
  }

  /** Gives what this side computes; that it takes its time is not the worker's silence. */
  async *meanwhile(blocks: AsyncGenerator<Uint8Array>): AsyncGenerator<Uint8Array> {
    try {
      while (true) {
        this.#own = true;
        const { done, value } = await blocks.next();
        this.#own = false;
        this.word();
        this.event();
        if (done) return;
        yield value;
      }
    } finally {
      this.#own = false;
      await blocks.return(undefined);
    }
  }

  end(): void {
    clearInterval(this.#timer);
    this.stop.abort();
  }

  #look(): void {
    if (this.#own) return;
    const now = performance.now();
    if (now - this.#lastWord > SILENCE_MS) {
      this.silent = new PoolError("silent", `The worker said nothing for ${SILENCE_MS} ms`);
    } else if (now - this.#lastEvent > this.#patienceMs) {
      this.silent = new PoolError(
        "silent",
        `The worker gave no token for ${Math.round(this.#patienceMs)} ms`,
      );
    }
    if (this.silent) this.stop.abort();
  }
}

/** What a worker says, piece by piece. */
async function* said({ body }: Response, watch: Watch): AsyncGenerator<string> {
  for await (const text of body?.pipeThrough(new TextDecoderStream()) ?? []) {
    watch.word();
    yield text;
  }
}

/** The lines of an answer but the empty ones; what has no end is none. */
async function* lines(response: Response, watch: Watch): AsyncGenerator<string> {
  let rest = "";
  for await (const text of said(response, watch)) {
    const all = (rest + text).split("\n");
    rest = all.pop()!;
    if (rest.length > MAX_LINE) throw new PoolError("broken", "The worker sent a line without an end");
    yield* all.filter(Boolean);
  }
}

function parsed(line: string): Line {
  try {
    const value = JSON.parse(line);
    if (typeof value === "object" && value !== null) return value;
  } catch {
    // said below
  }
  throw new PoolError("broken", "The worker sent what is no JSON object");
}

/** What a worker, or whatever stands before it, says instead of an answer. */
async function refusal(response: Response, watch: Watch): Promise<PoolError> {
  const { status } = response;
  let text = "";
  for await (const it of said(response, watch)) if (text.length < MAX_LINE) text += it;
  let problem: { code?: PoolErrorCode; detail?: string; predictedMs?: number } = {};
  try {
    problem = JSON.parse(text);
  } catch {
    // not one of ours: a balancer speaks in its own words
  }
  const code = problem?.code && problem.code in STATUS
    ? problem.code
    : status === 503 || status === 429
    ? "busy"
    : status === 401
    ? "unsigned"
    : status === 403
    ? "forbidden"
    : "failed";
  return new PoolError(
    code,
    problem?.detail ?? `The pool answered with status ${status}`,
    problem?.predictedMs,
  );
}
