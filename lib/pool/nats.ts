/**
 * A pool of workers behind NATS, seen from the server that asks. Workers connect outwards only, so they may stand behind
 * NAT. Subjects, R the model's revision, W a worker, J an answer:
 *
 * ```text
 * pool.R.work              an answer for whoever of the queue group gets it; its first part as payload
 * pool.R.at.W.work         the same for one worker
 * pool.R.at.W.part.J       the other parts
 * pool.R.at.W.ping.J       is the answer still computed? Without a worker the broker says so at once
 * pool.R.at.W.cancel.J     it is not wanted any more
 * pool.R.at.W.gone.J       from the broker: nobody listens to the answer any more
 * ```
 *
 * Parts have the header `final` on the last, and there `authorization`, the signature; the first has `deadline-ms` where
 * there is one. What comes back, to the inbox of the request, is numbered JSON: {@link Reply}. Workers announce
 * themselves in a key-value bucket whose values live for seconds.
 */

import { StorageType } from "@nats-io/jetstream";
import { Kvm } from "@nats-io/kv";
import { createInbox, headers, type Msg, type NatsConnection } from "@nats-io/nats-core";
import { Breakers } from "./breaker.ts";
import {
  type Pool,
  PoolError,
  type PoolErrorCode,
  type PoolEvent,
  type SubmitOptions,
  type Work,
} from "./pool.ts";
import { ending } from "./relay.ts";
import type { Load } from "./serving.ts";
import type { Sign } from "./signature.ts";
import { encodeWork, type ModelShape } from "./work.ts";

/** The key-value bucket, and how long an announcement lives without being repeated. */
export const BUCKET = "pool_workers";
export const ANNOUNCEMENT_MS = 5000;

/** Bytes of one part: well below NATS's usual limit of a message, 1 MiB, and a picture of 224 pixels at once. */
const PART_BYTES = 256 * 1024;

/** After so long without a word, a worker is asked whether it is there; it may take its time with a word, not with that. */
const SILENCE_MS = 100;
const PONG_MS = 3000;
/** How many times longer than announced a token may take, and what it may take in any case. */
const PATIENCE = 10;
const PATIENCE_MS = 5000;
const MOST_PATIENCE_MS = 120_000;

/** What a worker says of itself. */
export interface Announcement extends Load {
  readonly worker: string;
}

/** What a worker answers, numbered from 0. */
export type Reply =
  & { readonly n: number }
  & (
    | {
      readonly type: "accepted";
      readonly worker: string;
      readonly job: string;
      readonly predictedMs: number;
    }
    | {
      readonly type: "refused";
      readonly code: PoolErrorCode;
      readonly message: string;
      readonly predictedMs?: number;
    }
    | PoolEvent
  );

/** Prefixes of inboxes by role, so that a worker can send a server its answers but not listen to other workers'. */
export const INBOX = { server: "_INBOX.server", worker: "_INBOX.worker" };

/** Where a model's workers listen. */
export function subjects(revision: string) {
  return {
    work: `pool.${revision}.work`,
    at: (worker: string, what: string) => `pool.${revision}.at.${worker}.${what}`,
  };
}

/** Opens the bucket of announcements, which any of those that use it may make. */
export function openBucket(connection: NatsConnection) {
  return new Kvm(connection).create(BUCKET, {
    ttl: ANNOUNCEMENT_MS,
    history: 1,
    storage: StorageType.Memory,
  });
}

/** What a pool is asked with. */
export interface NatsPoolParts {
  readonly model: ModelShape;
  readonly sign: Sign;
  /** Told what does an answer no harm: announcements that cannot be read. */
  readonly onError?: (error: unknown) => void;
}

/** The workers of one model. */
export class NatsPool implements Pool {
  readonly #breakers = new Breakers();
  readonly #workers = new Map<string, { readonly load: Announcement; readonly at: number }>();
  /** Fail the answers under way. */
  readonly #cut = new Set<(error: PoolError) => void>();
  #connected = true;

  constructor(private readonly connection: NatsConnection, private readonly parts: NatsPoolParts) {
    this.#watchConnection();
    this.#watchWorkers();
  }

  /** The workers that announced themselves within the last seconds. */
  workers(): Announcement[] {
    const now = performance.now();
    for (const [worker, { at }] of this.#workers) {
      if (now - at > ANNOUNCEMENT_MS) this.#workers.delete(worker);
    }
    return [...this.#workers.values()].map((it) => it.load);
  }

  /** One try at one worker. */
  async *submit(work: Work, { signal, deadlineMs }: SubmitOptions = {}): AsyncGenerator<PoolEvent, void> {
    if (!this.#connected || this.connection.isClosed()) {
      throw new PoolError("nobody", "Cannot reach the pool: there is no connection");
    }
    const subject = this.#choose();
    const imageTokens = work.images.shape[0] * this.parts.model.imageTokens;
    const exchange = new Exchange(this.connection, work, this.parts);
    const cut = (error: PoolError) => exchange.fail(error);
    const abort = () => exchange.cancel();
    this.#cut.add(cut);
    signal?.addEventListener("abort", abort, { once: true });
    try {
      if (signal?.aborted) return yield* ending(work, work.given.length, "cancelled", imageTokens);
      let count = work.given.length;
      for await (const event of exchange.run(subject, deadlineMs)) {
        if (event.type === "token") count++;
        yield event;
      }
      if (exchange.cancelled) return yield* ending(work, count, "cancelled", imageTokens);
      if (exchange.worker) this.#breakers.succeeded(exchange.worker);
    } catch (error) {
      if (error instanceof PoolError && exchange.worker) {
        if (["silent", "broken", "failed"].includes(error.code)) this.#breakers.failed(exchange.worker);
        if (error.code === "gone") this.#workers.delete(exchange.worker);
      }
      throw error;
    } finally {
      this.#cut.delete(cut);
      signal?.removeEventListener("abort", abort);
      exchange.close();
    }
  }

  /** Any worker, unless there is one to leave alone: then the one with the most room among the others. */
  #choose(): string {
    const { work, at } = subjects(this.parts.model.revision);
    const workers = this.workers();
    if (!this.#breakers.some) return work;
    const [best] = workers.filter((it) => !this.#breakers.open(it.worker)).sort((a, b) =>
      crowd(a) - crowd(b)
    );
    if (!best) throw new PoolError("nobody", "Cannot reach the pool: its workers failed a moment ago");
    return at(best.worker, "work");
  }

  async #watchConnection(): Promise<void> {
    for await (const { type } of this.connection.status()) {
      if (type === "disconnect" || type === "staleConnection") {
        this.#connected = false;
        for (const cut of this.#cut) cut(new PoolError("gone", "The connection to the pool broke"));
      } else if (type === "reconnect") this.#connected = true;
    }
    this.#connected = false;
  }

  /** Follows the announcements; where that breaks off, as with the broker, it begins anew. */
  async #watchWorkers(): Promise<void> {
    const { revision } = this.parts.model;
    while (!this.connection.isClosed()) {
      try {
        const bucket = await openBucket(this.connection);
        for await (const { key, operation, value } of await bucket.watch({ key: `${revision}.*` })) {
          const worker = key.slice(revision.length + 1);
          if (operation !== "PUT") this.#workers.delete(worker);
          else {this.#workers.set(worker, {
              load: JSON.parse(new TextDecoder().decode(value)),
              at: performance.now(),
            });}
        }
      } catch (error) {
        if (!this.connection.isClosed()) this.parts.onError?.(error);
      }
      await new Promise((wake) => setTimeout(wake, 500));
    }
  }
}

/** How full a worker is. */
function crowd({ active, waiting, maxActive }: Announcement): number {
  return (active + waiting) / maxActive;
}

/** One answer with one worker. */
class Exchange {
  worker: string | undefined;
  cancelled = false;
  readonly #inbox: string;
  readonly #subscription;
  readonly #events: (PoolEvent | PoolError)[] = [];
  #wake: () => void = () => {};
  #job: string | undefined;
  #accepted = Promise.withResolvers<void>();
  #next = 0;
  #lastWord = performance.now();
  #lastEvent = performance.now();
  #pinged: number | undefined;
  #patienceMs = PATIENCE_MS;
  #watching: ReturnType<typeof setInterval> | undefined;

  constructor(
    private readonly connection: NatsConnection,
    private readonly work: Work,
    private readonly parts: NatsPoolParts,
  ) {
    // The broker's word that there is no worker comes to the inbox as well.
    this.#inbox = createInbox(INBOX.server);
    this.#subscription = connection.subscribe(this.#inbox, {
      callback: (_error, message) => this.#take(message),
    });
    this.#accepted.promise.catch(() => {});
  }

  fail(error: PoolError): void {
    this.#events.push(error);
    this.#accepted.reject(error);
    this.#wake();
  }

  cancel(): void {
    this.cancelled = true;
    this.#tell("cancel");
    this.#accepted.reject(new PoolError("gone", "The caller went away"));
    this.#wake();
  }

  close(): void {
    clearInterval(this.#watching);
    this.#subscription.unsubscribe();
    this.#accepted.promise.then(() => this.cancelled || this.#tell("cancel"), () => {});
  }

  /** Sends the work and gives what comes back. */
  async *run(subject: string, deadlineMs?: number): AsyncGenerator<PoolEvent, void> {
    const check = new Checker(this.work, this.parts.model);
    this.#watching = setInterval(() => this.#watch(), SILENCE_MS / 2);
    this.#send(subject, deadlineMs).catch((error) => {
      if (!this.cancelled) {
        this.fail(
          error instanceof PoolError
            ? error
            : new PoolError("gone", `Cannot send work: ${error}`, undefined, { cause: error }),
        );
      }
    });
    while (true) {
      if (this.cancelled) return;
      const event = this.#events.shift();
      if (event instanceof PoolError) throw event;
      if (event) {
        check.take(event);
        yield event;
        if (event.type === "done") return;
      } else await new Promise<void>((wake) => this.#wake = wake);
    }
  }

  async #send(subject: string, deadlineMs?: number): Promise<void> {
    let to = subject;
    for await (const { bytes, sum } of parts(encodeWork(this.work))) {
      const header = headers();
      if (sum) {
        header.set("final", "1");
        header.set("authorization", `Bearer ${await this.parts.sign(this.work.revision, sum)}`);
      }
      const first = to === subject;
      if (first && deadlineMs !== undefined) header.set("deadline-ms", `${Math.floor(deadlineMs)}`);
      if (first) {
        header.set("max-tokens", `${this.work.forced.length + this.work.maxTokens - this.work.given.length}`);
      }
      this.connection.publish(to, bytes, { headers: header, ...first && { reply: this.#inbox } });
      if (first) {
        this.#lastWord = this.#lastEvent = performance.now();
        if (sum) return;
        await this.#accepted.promise;
        to = subjects(this.parts.model.revision).at(this.worker!, `part.${this.#job}`);
      }
      if (this.cancelled) return;
    }
  }

  #take(message: Msg): void {
    this.#lastWord = performance.now();
    if (message.headers?.code === 503) {
      return this.fail(new PoolError(this.worker ? "gone" : "nobody", "No worker is there"));
    }
    if (message.headers?.has("pong")) {
      this.#pinged = undefined;
      if (message.headers.get("pong") !== "1") {
        this.fail(new PoolError("gone", "The worker does not know the answer"));
      }
      return;
    }
    let reply: Reply;
    try {
      reply = message.json<Reply>();
    } catch (cause) {
      return this.fail(new PoolError("broken", "The worker sent what is no JSON", undefined, { cause }));
    }
    if (reply.n !== this.#next++) {
      return this.fail(new PoolError("broken", `Expected message ${this.#next - 1}, found ${reply.n}`));
    }
    this.#lastEvent = this.#lastWord;
    this.#pinged = undefined;
    if (reply.type === "accepted") {
      this.worker = reply.worker;
      this.#job = reply.job;
      this.#patienceMs = Math.min(
        MOST_PATIENCE_MS,
        PATIENCE_MS + PATIENCE * (Number(reply.predictedMs) || 0),
      );
      this.#accepted.resolve();
      if (this.cancelled) this.#tell("cancel");
    } else if (reply.type === "refused") {
      this.fail(new PoolError(reply.code, reply.message, reply.predictedMs));
    } else {
      const { n: _, ...event } = reply;
      this.#events.push(event);
      this.#wake();
    }
  }

  #watch(): void {
    const now = performance.now();
    if (now - this.#lastWord > SILENCE_MS && this.#job && this.#pinged === undefined) {
      this.#pinged = now;
      this.#tell("ping");
    }
    if (this.#pinged !== undefined && now - this.#pinged > PONG_MS) {
      this.fail(new PoolError("silent", `The worker said nothing for ${PONG_MS} ms`));
    } else if (now - this.#lastEvent > this.#patienceMs) {
      this.fail(new PoolError("silent", `The worker gave no token for ${Math.round(this.#patienceMs)} ms`));
    }
  }

  #tell(what: "ping" | "cancel"): void {
    if (!this.#job || this.connection.isClosed()) return;
    const subject = subjects(this.parts.model.revision).at(this.worker!, `${what}.${this.#job}`);
    this.connection.publish(subject, undefined, what === "ping" ? { reply: this.#inbox } : {});
  }
}

/** Whether what a worker says can be an answer to the work. */
export class Checker {
  #count: number;

  constructor(private readonly work: Work, private readonly model: ModelShape) {
    this.#count = work.given.length;
  }

  /** @throws {PoolError} `broken` */
  take(event: PoolEvent): void {
    const { forced, maxTokens, ignoreEos, topLogits } = this.work;
    const most = forced.length + maxTokens;
    const broken = (what: string) => new PoolError("broken", `The worker answered ${what}`);
    const chance = (value: unknown) => typeof value === "number" && value <= 0;
    if (event.type === "token") {
      const { id, logprob, nearLogprob, top = [] } = event;
      if (!Number.isInteger(id) || id < 0 || id >= this.model.vocabulary) throw broken(`token ${id}`);
      if (this.#count < forced.length && id !== forced[this.#count]) {
        throw broken(`${id} instead of what was forced`);
      }
      if (!chance(logprob) || !chance(nearLogprob)) throw broken(`probabilities ${logprob}, ${nearLogprob}`);
      if (top.length !== Math.min(topLogits, this.model.vocabulary)) throw broken(`${top.length} candidates`);
      if (++this.#count > most) throw broken(`more than ${most} tokens`);
    } else if (event.type === "done") {
      const { finishReason } = event;
      if (finishReason === "cancelled") throw new PoolError("gone", "The worker gave the answer up");
      const whole = this.#count === most;
      const fits = finishReason === "length" ? whole : finishReason === "stop" && !ignoreEos;
      if (!fits) throw broken(`${finishReason} after ${this.#count} of ${most} tokens`);
    } else if (event.type !== "usage") throw broken("something else");
  }
}

/** The blocks of a message in parts of at most so many bytes; the last part comes with the message's sha256. */
async function* parts(
  blocks: AsyncIterable<Uint8Array>,
): AsyncGenerator<{ readonly bytes: Uint8Array; readonly sum?: Uint8Array }> {
  let held: Uint8Array = new Uint8Array();
  let last = held;
  for await (const block of blocks) {
    last = block;
    if (held.length && held.length + block.length > PART_BYTES) {
      yield { bytes: held };
      held = new Uint8Array();
    }
    let at = 0;
    for (; block.length - at > PART_BYTES; at += PART_BYTES) {
      yield { bytes: block.subarray(at, at + PART_BYTES) };
    }
    const joined = new Uint8Array(held.length + block.length - at);
    joined.set(held);
    joined.set(block.subarray(at), held.length);
    held = joined;
  }
  yield { bytes: held, sum: last };
}
