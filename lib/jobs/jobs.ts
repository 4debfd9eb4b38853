/**
 * Jobs: up to a hundred questions that outlive the connection they came by, and this process.
 *
 * What is accepted is written before it is answered for; every step is a compare-and-set of the job's record; a result is
 * stored before its item is called done, so that a process killed between the two finds it and does not compute it again.
 */

import { RequestError } from "../errors.ts";
import { Bell } from "../store/bell.ts";
import { type Delivery, type Queue, type Store, update, type Versioned } from "../store/store.ts";
import { backoff, type Handler } from "./consume.ts";
import * as state from "./job.ts";
import type { ItemError, Job, JobStatus, WebhookTarget } from "./job.ts";
import { readSecrets } from "./signature.ts";
import { type Post, SCHEDULE, Webhooks } from "./webhooks.ts";

/** What jobs are made with. */
export interface JobsParts {
  readonly store: Store<Queue>;
  /**
   * Answers one item. A `RequestError` is the item's end, unless it is one that passes.
   *
   * @returns JSON.
   */
  readonly work: (item: unknown, signal: AbortSignal) => Promise<unknown>;
  readonly post: Post;
  /** Sign webhooks that have no secret of their own. */
  readonly secrets?: readonly string[];
  /** Told everything that goes wrong and is not the caller's. */
  readonly onError: (error: unknown) => void;
  /** Milliseconds since 1970. */
  readonly now?: () => number;
  /** Milliseconds between the attempts of a webhook. */
  readonly schedule?: readonly number[];
  /** How long a job is kept after its end, milliseconds; a week by default. */
  readonly keepMs?: number;
}

/** A request for a job. */
export interface JobRequest {
  /** 1 to 100, each JSON. */
  readonly items: readonly unknown[];
  readonly webhook?: WebhookTarget;
  readonly traceparent?: string;
  /** The caller's word that this is one request, however often it comes; and a digest of it. */
  readonly idempotency?: { readonly key: string; readonly digest: string };
}

/** A job as callers see it. */
export interface JobView {
  readonly id: string;
  readonly status: JobStatus;
  readonly items: readonly ItemView[];
  /** ISO 8601. */
  readonly createdAt: string;
  readonly finishedAt?: string;
}

/** An item as callers see it. */
export interface ItemView {
  readonly index: number;
  readonly status: JobStatus;
  readonly result?: unknown;
  readonly error?: ItemError;
  readonly attempts: number;
}

/** Something that changed. Of several changes of one thing since the last look, only the last is told. */
export type JobChange =
  | { readonly revision: number; readonly event: "item"; readonly data: ItemView }
  | { readonly revision: number; readonly event: "job"; readonly data: Pick<JobView, "id" | "status"> };

/** Most items of one job. */
export const MAX_ITEMS = 100;

/** How often an item is begun before it is taken for what kills its worker, or fails for what may pass. */
const MAX_CRASHES = 10;
const MAX_FAILURES = 3;

/** How long one job works before it lets another one begin. */
const SLICE_MS = 30_000;

/** How long a repeated request is known for one; `Idempotency-Key` is an IETF draft that leaves it to the server. */
const IDEMPOTENCY_MS = 24 * 3_600_000;
const WEEK_MS = 7 * 24 * 3_600_000;

/** Longest webhook, as Standard Webhooks has it; results that make it longer are left out. */
const MAX_PAYLOAD_BYTES = 20_000;

/** Changes of other processes are looked for so often. */
const WATCH_MS = 1000;

const jobKey = (id: string) => `jobs/${id}`;
const itemKey = (id: string, index: number) => `jobs/${id}/items/${index}`;
const resultKey = (id: string, index: number) => `jobs/${id}/results/${index}`;
const letterId = (id: string) => id.replace("job_", "msg_");

/** The jobs of one store. */
export class Jobs {
  readonly webhooks: Webhooks;
  readonly #bell = new Bell();
  /** Those being worked on here. */
  readonly #running = new Map<string, AbortController>();
  readonly #now: () => number;

  constructor(private readonly parts: JobsParts) {
    const { store, post, secrets = [], now = Date.now, schedule = SCHEDULE } = parts;
    this.#now = now;
    const queue = store.queue("webhooks");
    this.webhooks = new Webhooks({ records: store.records, queue, post, secrets, now, schedule });
  }

  /**
   * Accepts a job. When this returns, it is written and will be done.
   *
   * @throws {RequestError} `parameter_invalid` for a webhook that nothing would sign, `idempotency_mismatch` for a key that
   * stands for another request, `storage_failed` when there is no room: then nothing is left of it.
   */
  async create(request: JobRequest): Promise<JobView> {
    const { records, blobs } = this.parts.store;
    const { items, webhook, traceparent, idempotency } = request;
    if (items.length < 1 || items.length > MAX_ITEMS) {
      throw new RangeError(`Job: expected 1 to ${MAX_ITEMS} items, found ${items.length}`);
    }
    if (webhook?.secret !== undefined) readSecrets(webhook.secret, "webhook.secret");
    else if (webhook && !this.parts.secrets?.length) {
      throw new RequestError(
        "parameter_invalid",
        "Cannot read webhook: expected a secret to sign with (this server has none of its own), found none",
      );
    }
    const claim = idempotency && await this.#claim(idempotency);
    const id = claim?.id ?? newId();
    const known = claim && await this.#read(id);
    if (known) return await this.#view(known);
    const job = state.newJob(items.length, {
      id,
      createdAt: this.#now(),
      webhook,
      traceparent,
      idempotency: claim?.key,
    });
    try {
      for (const [i, item] of items.entries()) await blobs.put(itemKey(id, i), encode(item));
      await records.set(jobKey(id), job, undefined);
    } catch (error) {
      await this.#drop(job).catch(this.parts.onError);
      throw error;
    }
    await this.#queue(id);
    return await this.#view(job);
  }

  /** A job with the results of what is done; undefined when there is none. */
  async get(id: string): Promise<JobView | undefined> {
    const job = await this.#read(id);
    return job && await this.#view(job);
  }

  /** Cancels what is not finished, and tells what then is; a job that has ended stays as it is. */
  async cancel(id: string): Promise<JobView | undefined> {
    const job = await this.#change(
      id,
      (it) => state.isFinal(it.status) ? undefined : state.cancel(it, this.#now()),
    );
    this.#running.get(id)?.abort();
    return job && await this.#view(job);
  }

  /**
   * Changes of a job after a revision, in order, until it has ended. A caller that has seen revision n and comes back
   * misses nothing.
   */
  async *watch(id: string, after: number, signal: AbortSignal): AsyncGenerator<JobChange, void> {
    while (!signal.aborted) {
      const job = await this.#read(id);
      if (!job) return;
      const changes: JobChange[] = [];
      for (const [index, { revision }] of job.items.entries()) {
        if (revision <= after) continue;
        changes.push({ revision, event: "item", data: await this.#item(job, index) });
      }
      if (job.statusRevision > after) {
        changes.push({ revision: job.statusRevision, event: "job", data: { id, status: job.status } });
      }
      yield* changes.sort((a, b) => a.revision - b.revision);
      after = Math.max(after, job.revision);
      if (state.isFinal(job.status)) return;
      await this.#bell.wait(WATCH_MS, signal);
    }
  }

  /** Queues again what its queue may have lost, and drops what was never accepted. To be called when a server starts. */
  async recover(): Promise<void> {
    const { records, blobs } = this.parts.store;
    for await (const key of records.keys("jobs/")) {
      const id = key.slice("jobs/".length);
      const job = await this.#read(id).catch(this.parts.onError);
      if (job && !state.isFinal(job.status)) await this.#queue(id);
    }
    for await (const { id } of this.webhooks.list("pending")) await this.webhooks.queue(id);
    const kept = new Map<string, boolean>();
    for await (const { key, writtenAt } of blobs.list("jobs/")) {
      const [, id] = key.split("/");
      // A younger one may belong to a job that is being accepted.
      if (this.#now() - writtenAt < 3_600_000) continue;
      if (!kept.has(id)) kept.set(id, await records.get(jobKey(id)).then((it) => !!it, () => true));
      if (!kept.get(id)) await blobs.delete(key);
    }
  }

  /** Handlers of the store's queues. */
  readonly handlers: { readonly jobs: Handler; readonly webhooks: Handler } = {
    jobs: async (delivery, signal) => {
      const { job, expired } = delivery.body as { job?: string; expired?: string };
      if (expired) await this.#expire(expired, delivery);
      else if (job) await this.#run(job, delivery, signal);
    },
    webhooks: (delivery, signal) => this.webhooks.handle(delivery, signal),
  };

  async #run(id: string, delivery: Delivery, signal: AbortSignal): Promise<void> {
    const stop = new AbortController();
    const abort = () => stop.abort();
    signal.addEventListener("abort", abort, { once: true });
    if (signal.aborted) abort();
    this.#running.set(id, stop);
    const until = this.#now() + SLICE_MS;
    try {
      while (true) {
        const pause = await this.#step(id, stop.signal);
        if (pause === "end") break;
        if (pause !== undefined) return void await delivery.retry(pause);
        if (this.#now() > until || signal.aborted) return void await delivery.retry(0);
      }
    } catch (error) {
      // A job that cannot be read cannot be done either, however often it comes.
      if (!(error instanceof RequestError) || error.code !== "record_corrupt") throw error;
      this.parts.onError(error);
      return void await delivery.ack();
    } finally {
      signal.removeEventListener("abort", abort);
      this.#running.delete(id);
    }
    await this.#announce(id);
    await this.parts.store.queue("jobs").send(
      { id: `expired/${id}`, body: { expired: id } },
      this.parts.keepMs ?? WEEK_MS,
    );
    await delivery.ack();
  }

  /** Does one item. `end` when there is none left; milliseconds when the job is to come again after them. */
  async #step(id: string, signal: AbortSignal): Promise<"end" | number | undefined> {
    const { blobs } = this.parts.store;
    let index: number | undefined;
    const begun = await this.#change(id, (job) => {
      index = state.isFinal(job.status) ? undefined : state.nextItem(job);
      return index === undefined ? undefined : state.begin(job, index);
    });
    if (!begun || index === undefined) return "end";
    const at = index;
    const { attempts } = begun.items[at];
    /** Changes the job, if this attempt is still the one that counts. */
    const settle = (change: (job: Job) => Job) =>
      this.#change(id, (job) => state.isCurrent(job, at, attempts) ? change(job) : undefined);
    try {
      // Computed before, by a worker that died before it could say so.
      if (!await blobs.get(resultKey(id, at))) {
        if (attempts > MAX_CRASHES) {
          const error = {
            code: "worker_died",
            message: `Cannot answer: ${MAX_CRASHES} workers died over it`,
          };
          return void await settle((job) => state.finish(job, at, this.#now(), error));
        }
        const item = decode(await blobs.get(itemKey(id, at)), itemKey(id, at));
        await blobs.put(resultKey(id, at), encode(await this.parts.work(item, signal)));
      }
      await settle((job) => state.finish(job, at, this.#now()));
    } catch (error) {
      const code = error instanceof RequestError ? error.code : "internal";
      if (signal.aborted || code === "cancelled") {
        await settle((job) => state.giveBack(job, at, true));
        return signal.aborted ? undefined : 0;
      }
      if (["overloaded", "storage_failed"].includes(code)) {
        if (code === "storage_failed") this.parts.onError(error);
        await settle((job) => state.giveBack(job, at, true));
        return backoff(3);
      }
      if (code === "internal") this.parts.onError(error);
      if (["internal", "url_failed"].includes(code) && attempts < MAX_FAILURES) {
        await settle((job) => state.giveBack(job, at, false));
        return backoff(attempts);
      }
      const message = error instanceof RequestError ? error.message : "The server failed; its log tells why";
      await settle((job) => state.finish(job, at, this.#now(), { code, message }));
    }
  }

  /** Tells the job's end to its webhook, once. */
  async #announce(id: string): Promise<void> {
    const job = await this.#read(id);
    if (!job?.webhook) return;
    const { url, secret } = job.webhook;
    const view = await this.#view(job);
    const payload = (data: unknown) =>
      JSON.stringify({ type: `job.${job.status}`, timestamp: new Date(job.finishedAt!).toISOString(), data });
    // Each shorter than the one before; the last fits for a hundred items.
    const bodies = [
      view,
      { ...view, items: view.items.map(({ result: _, ...it }) => it) },
      { ...view, items: view.items.map(({ index, status, attempts }) => ({ index, status, attempts })) },
    ].map(payload);
    await this.webhooks.send({
      id: letterId(id),
      job: id,
      url,
      type: `job.${job.status}`,
      body: bodies.find((it) => encode(it).length <= MAX_PAYLOAD_BYTES) ?? bodies[2],
      ...secret !== undefined && { secrets: readSecrets(secret) },
      traceparent: job.traceparent,
    });
  }

  async #expire(id: string, delivery: Delivery): Promise<void> {
    const job = await this.#read(id);
    if (job) {
      await this.webhooks.delete(letterId(id));
      await this.#drop(job);
    }
    await delivery.ack();
  }

  /** Removes all there is of a job, its record last. */
  async #drop({ id, items, idempotency }: Job): Promise<void> {
    const { records, blobs } = this.parts.store;
    for (const index of items.keys()) {
      await blobs.delete(itemKey(id, index));
      await blobs.delete(resultKey(id, index));
    }
    if (idempotency) await records.delete(idempotency);
    await records.delete(jobKey(id));
  }

  /** The job's id that a key stands for, and the key of that record; claimed for a new job where it was free. */
  async #claim({ key, digest }: { key: string; digest: string }): Promise<{ id: string; key: string }> {
    const { records } = this.parts.store;
    const hash = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(key));
    const record = `idempotency/${new Uint8Array(hash).toHex()}`;
    while (true) {
      const found = await records.get(record) as
        | Versioned<{ id: string; digest: string; at: number }>
        | undefined;
      if (found && this.#now() - found.value.at < IDEMPOTENCY_MS) {
        if (found.value.digest === digest) return { id: found.value.id, key: record };
        throw new RequestError(
          "idempotency_mismatch",
          "Cannot take the job: expected the request that its Idempotency-Key was first used for, found another",
        );
      }
      const claim = { id: newId(), digest, at: this.#now() };
      if (await records.set(record, claim, found?.version) !== undefined) {
        return { id: claim.id, key: record };
      }
    }
  }

  async #change(id: string, change: (job: Job) => Job | undefined): Promise<Job | undefined> {
    const job = await update<Job>(this.parts.store.records, jobKey(id), change);
    this.#bell.ring();
    return job;
  }

  async #queue(id: string): Promise<void> {
    await this.parts.store.queue("jobs").send({ id: jobKey(id), body: { job: id } });
  }

  async #read(id: string): Promise<Job | undefined> {
    if (!/^job_[0-9a-f]{32}$/.test(id)) return undefined;
    return (await this.parts.store.records.get(jobKey(id)) as Versioned<Job> | undefined)?.value;
  }

  async #view(job: Job): Promise<JobView> {
    const { id, status, createdAt, finishedAt } = job;
    return {
      id,
      status,
      items: await Promise.all(job.items.map((_, i) => this.#item(job, i))),
      createdAt: new Date(createdAt).toISOString(),
      ...finishedAt !== undefined && { finishedAt: new Date(finishedAt).toISOString() },
    };
  }

  async #item({ id, items }: Job, index: number): Promise<ItemView> {
    const { status, attempts, error } = items[index];
    const key = resultKey(id, index);
    const result = status === "done" ? decode(await this.parts.store.blobs.get(key), key) : undefined;
    return { index, status, ...status === "done" && { result }, ...error && { error }, attempts };
  }
}

function newId(): string {
  return `job_${crypto.getRandomValues(new Uint8Array(16)).toHex()}`;
}

function encode(value: unknown): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(value));
}

/** @throws {RequestError} `record_corrupt` for bytes that are not there, or not what was put there. */
function decode(bytes: Uint8Array | undefined, key: string): unknown {
  try {
    if (bytes) return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    // Told below.
  }
  throw new RequestError(
    "record_corrupt",
    `Cannot read ${key}: expected JSON, found ${bytes ? "other bytes" : "nothing"}`,
  );
}
