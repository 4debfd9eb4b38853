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

import { Address } from "./address.ts";
import type { Breakers } from "./breaker.ts";
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
import { lines, parsedObject, Patience, refusalText, tokenPatienceMs } from "./patience.ts";
import { ending } from "./relay.ts";
import type { Sign } from "./signature.ts";
import { encodeWork, type ModelShape } from "./work.ts";

/** How often a worker that has nothing to say says so. */
export const HEARTBEAT_MS = 1000;
/** A worker that says nothing for so long is given up. */
const SILENCE_MS = 5000;
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
  readonly #address: Address;

  /** @param url up to `/work`. */
  constructor(url: string, private readonly parts: HttpPoolParts) {
    this.#address = new Address(url.replace(/\/*$/, "/work"), parts.breakers);
  }

  present(): Present | undefined {
    return this.#address.present();
  }

  /** One try. */
  async *submit(work: Work, { signal, deadlineMs }: SubmitOptions = {}): AsyncGenerator<PoolEvent, void> {
    const imageTokens = work.images.shape[0] * this.parts.model.imageTokens;
    let count = work.given.length;
    if (signal?.aborted) return yield* ending(work, count, "cancelled", imageTokens);
    this.#address.check();
    const check = new Checker(work, this.parts.model);
    const watch = new Watch(signal);
    try {
      const response = await this.#post(work, watch, deadlineMs);
      for await (const line of lines(response, MAX_LINE, watch.word)) {
        const event = parsedObject<Line>(line);
        if (event.type === "refused") throw new PoolError(event.code, event.message, event.predictedMs);
        check.take(event);
        watch.event();
        if (event.type === "token") count++;
        yield event;
        if (event.type !== "done") continue;
        this.#address.succeeded();
        return;
      }
      throw new PoolError("gone", "The worker's answer broke off");
    } catch (cause) {
      if (signal?.aborted) return yield* ending(work, count, "cancelled", imageTokens);
      const error = watch.lost ?? poolError(cause);
      this.#address.lost(error);
      throw error;
    } finally {
      watch.end();
    }
  }

  async #post(work: Work, watch: Watch, deadlineMs?: number): Promise<Response> {
    const response = await (this.parts.fetch ?? fetch)(this.#address.url, {
      method: "POST",
      headers: {
        "content-type": "application/octet-stream",
        "max-tokens": `${work.forced.length + work.maxTokens - work.given.length}`,
        ...deadlineMs !== undefined && { "deadline-ms": `${Math.max(0, Math.floor(deadlineMs))}` },
      },
      body: ReadableStream.from(this.#body(work, watch)),
      redirect: "manual", // which is no answer; Workers know no "error"
      signal: watch.signal,
      // Without it browsers and Node refuse a body that is not yet there.
      ...{ duplex: "half" },
    });
    this.#address.heard(response.headers);
    watch.predicted(Number(response.headers.get("predicted-ms")) || 0);
    if (response.status === 200) return response;
    const error = await refusal(response, watch);
    this.#address.refused(error, response.headers);
    throw error;
  }

  async *#body(work: Work, watch: Watch): AsyncGenerator<Uint8Array> {
    let last = new Uint8Array();
    for await (const block of watch.meanwhile(encodeWork(work))) yield last = block as typeof last;
    yield new TextEncoder().encode(await this.parts.sign(work.revision, last));
  }
}

/** Sees that a worker goes on speaking. */
class Watch extends Patience {
  #tokenMs = tokenPatienceMs(0);
  readonly word = () => this.within("word", SILENCE_MS);

  constructor(signal?: AbortSignal) {
    super(signal);
    this.event();
  }

  event(): void {
    this.word();
    this.within("token", this.#tokenMs);
  }

  predicted(ms: number): void {
    this.#tokenMs = tokenPatienceMs(ms);
    this.event();
  }

  /** Gives what this side computes. */
  async *meanwhile(blocks: AsyncGenerator<Uint8Array>): AsyncGenerator<Uint8Array> {
    try {
      while (true) {
        const { done, value } = await this.pausing(blocks.next());
        this.event();
        if (done) return;
        yield value;
      }
    } finally {
      await blocks.return(undefined);
    }
  }
}

/** What a worker, or whatever stands before it, says instead of an answer. */
async function refusal(response: Response, watch: Watch): Promise<PoolError> {
  const { status } = response;
  const text = await refusalText(response, MAX_LINE, watch.word);
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
