/**
 * One answer of one worker, over NATS. Subjects, R the model's revision, W a worker, J an answer:
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
 * there is one. What comes back, to the inbox of the request, is numbered JSON: {@link Reply}.
 */

import { createInbox, headers, type Msg, type NatsConnection } from "@nats-io/nats-core";
import { Checker } from "./checker.ts";
import { tokenPatienceMs } from "./patience.ts";
import { PoolError, type PoolErrorCode, type PoolEvent, type Work } from "./pool.ts";
import type { Sign } from "./signature.ts";
import { encodeWork, type ModelShape } from "./work.ts";

/** Bytes of one part: well below NATS's usual limit of a message, 1 MiB, and a picture of 224 pixels at once. */
const PART_BYTES = 256 * 1024;

/** After so long without a word, a worker is asked whether it is there; it may take its time with a word, not with that. */
const SILENCE_MS = 100;
const PONG_MS = 3000;
/** Names of workers and answers, which become parts of subjects. */
const NAME = /^[\w-]{1,64}$/;

/** A worker says at once whether it takes work; one that was killed meanwhile does not. */
const ACCEPT_MS = 1500;

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

/** One answer with one worker, from the first part to `done`. */
export class Exchange {
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
  /** When the first ping was sent that is not answered, and the last. */
  #pinged: number | undefined;
  #lastPing = 0;
  #patienceMs = tokenPatienceMs(0);
  #over = false;
  #watching: ReturnType<typeof setInterval> | undefined;

  constructor(
    private readonly connection: NatsConnection,
    private readonly work: Work,
    private readonly parts: { readonly model: ModelShape; readonly sign: Sign },
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

  /** Listens no more; an answer that is not over is not wanted any more. */
  close(): void {
    clearInterval(this.#watching);
    this.#subscription.unsubscribe();
    if (!this.#over && !this.cancelled) this.#tell("cancel");
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
        this.#over = event.type === "done";
        yield event;
        if (this.#over) return;
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
      if (![reply.worker, reply.job].every((it) => NAME.test(it))) {
        return this.fail(new PoolError("broken", "The worker has no name that can be"));
      }
      this.worker = reply.worker;
      this.#job = reply.job;
      this.#patienceMs = tokenPatienceMs(Number(reply.predictedMs) || 0);
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
    if (!this.#job && now - this.#lastWord > ACCEPT_MS) {
      return this.fail(new PoolError("silent", `No worker took the work within ${ACCEPT_MS} ms`));
    }
    if (this.#job && now - Math.max(this.#lastWord, this.#lastPing) > SILENCE_MS) {
      // Again and again: a worker may be killed between a ping and its answer, and only the next one tells.
      this.#pinged ??= now;
      this.#lastPing = now;
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
