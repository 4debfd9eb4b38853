/** The serving end of a pool behind NATS; the subjects and messages stand in exchange.ts. */

import { headers, type Msg, type NatsConnection } from "@nats-io/nats-core";
import type { WorkerMetrics } from "../metrics.ts";
import { type Reply, subjects } from "./exchange.ts";
import { type Announcement, ANNOUNCEMENT_MS, openBucket } from "./nats.ts";
import { type Pool, PoolError } from "./pool.ts";
import { type Capacity, type Seat, Serving } from "./serving.ts";
import type { Verify } from "./signature.ts";
import { decodeWork, messageBytes, type ModelShape } from "./work.ts";

/** How often a worker announces itself, changed or not, and how soon after a change. */
const ANNOUNCE_MS = ANNOUNCEMENT_MS / 5;
const CHANGED_MS = 50;
/** A part that takes longer than this does not come. */
const PART_MS = 10_000;

/** What a worker is made of. */
export interface WorkerParts {
  readonly engine: Pool;
  readonly model: ModelShape;
  readonly capacity: Capacity;
  readonly verify: Verify;
  readonly metrics: WorkerMetrics;
  /** Told what went wrong here, not what was wrong with work. */
  readonly onError: (error: unknown) => void;
}

/** An answer on its way through a worker. */
interface Job {
  readonly id: string;
  readonly reply: string;
  readonly seat: Seat;
  readonly stop: AbortController;
  /** Of the whole message, filled up to `filled`. */
  readonly bytes: Uint8Array;
  filled: number;
  timer?: ReturnType<typeof setTimeout>;
  n: number;
}

/** One worker of one model. */
export class NatsWorker {
  readonly worker = crypto.randomUUID();
  readonly serving: Serving;
  readonly #jobs = new Map<string, Job>();
  readonly #at: (what: string) => string;
  readonly #subscriptions;
  #announcing: ReturnType<typeof setTimeout> | undefined;
  #due = 0;
  #bucket: Awaited<ReturnType<typeof openBucket>> | undefined;
  #leaving = false;

  constructor(private readonly connection: NatsConnection, private readonly parts: WorkerParts) {
    const { work, at } = subjects(parts.model.revision);
    this.#at = (what) => at(this.worker, what);
    this.serving = new Serving(parts.engine, parts.capacity, () => this.#announceIn(CHANGED_MS));
    const take = { callback: (_: unknown, message: Msg) => this.#begin(message) };
    this.#subscriptions = [
      connection.subscribe(work, { queue: "workers", ...take }),
      connection.subscribe(this.#at("work"), take),
    ];
    connection.subscribe(this.#at("*.*"), { callback: (_, message) => this.#hear(message) });
    this.#watchConnection();
    this.#announceIn(0);
  }

  /** Takes no more work, ends what was begun or, after `graceMs`, gives it up, so that it goes on elsewhere. */
  async leave(graceMs: number): Promise<void> {
    this.#leaving = true;
    for (const it of this.#subscriptions) it.unsubscribe();
    clearTimeout(this.#announcing);
    await this.#bucket?.delete(`${this.parts.model.revision}.${this.worker}`).catch(() => {});
    const late = setTimeout(() => this.#giveUp(), graceMs);
    await this.serving.drain();
    clearTimeout(late);
    await this.connection.drain();
  }

  #giveUp(): void {
    for (const { stop } of this.#jobs.values()) stop.abort();
  }

  /** The first part of an answer's work. */
  #begin(message: Msg): void {
    const { reply, data } = message;
    if (!reply) return;
    let job: Job | undefined;
    try {
      const size = messageBytes(data, this.parts.model);
      const number = (name: string) => Number(message.headers?.get(name) || Infinity);
      const seat = this.serving.enter(number("max-tokens"), number("deadline-ms"));
      const id = crypto.randomUUID();
      job = { id, reply, seat, stop: new AbortController(), bytes: new Uint8Array(size), filled: 0, n: 0 };
      this.#jobs.set(id, job);
      const predictedMs = this.serving.predictMs(number("max-tokens"));
      this.#send(job, { type: "accepted", worker: this.worker, job: id, predictedMs });
      this.#fill(job, message);
    } catch (error) {
      this.#refuse(job ?? { reply, n: 0 }, error);
      if (job) this.#end(job);
    }
  }

  /** A word about an answer that was begun. */
  #hear({ subject, reply, data, headers: header, ...message }: Msg): void {
    const [what, id] = subject.split(".").slice(-2);
    const job = this.#jobs.get(id);
    if (what === "ping" && reply) {
      const pong = headers();
      pong.set("pong", job ? "1" : "0");
      this.connection.publish(reply, undefined, { headers: pong });
    } else if (job && what === "part") {
      try {
        this.#fill(job, { subject, reply, data, headers: header, ...message } as Msg);
      } catch (error) {
        this.#refuse(job, error);
        this.#end(job);
      }
    } else if (job && (what === "cancel" || what === "gone")) {
      job.stop.abort();
      if (job.timer !== undefined) this.#end(job); // nothing is computed yet that would end it
    }
  }

  #fill(job: Job, { data, headers: header }: Msg): void {
    clearTimeout(job.timer);
    job.timer = undefined;
    if (job.filled + data.length > job.bytes.length) {
      throw new PoolError("length", `Cannot take work: expected ${job.bytes.length} bytes, found more`);
    }
    job.bytes.set(data, job.filled);
    job.filled += data.length;
    if (header?.has("final")) {
      this.#compute(job, header.get("authorization").replace(/^Bearer /, ""));
    } else {
      job.timer = setTimeout(() => {
        this.#refuse(job, new PoolError("length", `Cannot take work: no part came within ${PART_MS} ms`));
        this.#end(job);
      }, PART_MS);
    }
  }

  async #compute(job: Job, token: string): Promise<void> {
    const { signal } = job.stop;
    try {
      const { model, verify, metrics } = this.parts;
      const bytes = job.bytes.subarray(0, job.filled);
      // The sum that was signed is the message's last bytes; whether it is the message's sum is seen next.
      const key = await verify(token, model.revision, bytes.subarray(-32));
      const work = await decodeWork(bytes, model);
      if (work.images.stage !== "pixels" && !key.features) {
        throw new PoolError("forbidden", `Cannot take ${work.images.stage} of ${key.kid}: expected pixels`);
      }
      const since = performance.now();
      let first = true;
      for await (const event of this.serving.run(work, { signal })) {
        if (event.type === "token") {
          if (first) metrics.timeToFirstToken.observe((performance.now() - since) / 1000);
          first = false;
          metrics.tokens.add(1);
        } else if (event.type === "done") metrics.answers.add(1, event.finishReason);
        this.#send(job, event);
      }
    } catch (error) {
      if (!signal.aborted) this.#refuse(job, error);
    } finally {
      this.#end(job);
    }
  }

  #end(job: Job): void {
    clearTimeout(job.timer);
    this.#jobs.delete(job.id);
    job.seat.leave();
  }

  #refuse(job: Pick<Job, "reply" | "n">, error: unknown): void {
    if (!(error instanceof PoolError)) this.parts.onError(error);
    const { code, message, predictedMs } = error instanceof PoolError
      ? error
      : new PoolError("failed", "The worker failed");
    this.parts.metrics.answers.add(1, code);
    this.#send(job, { type: "refused", code, message, predictedMs });
  }

  #send(job: Pick<Job, "reply" | "n"> & { id?: string }, reply: OmitN<Reply>): void {
    if (this.connection.isClosed()) return;
    // Where nobody listens any more, the broker answers to `gone`.
    const gone = job.id === undefined ? {} : { reply: this.#at(`gone.${job.id}`) };
    this.connection.publish(job.reply, JSON.stringify({ n: job.n++, ...reply }), gone);
  }

  /** Whoever waited for answers over a connection that broke has gone elsewhere. */
  async #watchConnection(): Promise<void> {
    for await (const { type } of this.connection.status()) {
      if (type === "disconnect") this.#giveUp();
      else if (type === "reconnect") {
        this.#bucket = undefined; // it may have been lost with the broker
        this.#announceIn(0);
      }
    }
  }

  /** Announces after so long, or earlier where that was meant already. */
  #announceIn(ms: number): void {
    const due = performance.now() + ms;
    if (this.#leaving || this.#announcing !== undefined && this.#due <= due) return;
    clearTimeout(this.#announcing);
    this.#due = due;
    this.#announcing = setTimeout(() => this.#announce(), ms);
  }

  async #announce(): Promise<void> {
    this.#announcing = undefined;
    const announcement: Announcement = { worker: this.worker, ...this.serving.load() };
    try {
      this.#bucket ??= await openBucket(this.connection);
      await this.#bucket.put(`${this.parts.model.revision}.${this.worker}`, JSON.stringify(announcement));
    } catch (error) {
      this.#bucket = undefined;
      if (!this.connection.isClosed() && !this.#leaving) this.parts.onError(error);
    }
    this.#announceIn(ANNOUNCE_MS);
  }
}

type OmitN<T> = T extends unknown ? Omit<T, "n"> : never;
