/** Where jobs lie in a store: a record each, a blob for every item and every result. */

import { RequestError } from "../errors.ts";
import { Bell } from "../store/bell.ts";
import { type Queue, type Store, update, type Versioned } from "../store/store.ts";
import type { ItemError, Job, JobStatus } from "./job.ts";

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

const jobKey = (id: string) => `jobs/${id}`;
const itemKey = (id: string, index: number) => `jobs/${id}/items/${index}`;
const resultKey = (id: string, index: number) => `jobs/${id}/results/${index}`;

/** Callers may ask for anything. */
const isId = (id: string) => /^job_[0-9a-f]{32}$/.test(id);

/** The jobs of one store, read and written. */
export class JobStore {
  /** Rings when a job changes in this process. */
  readonly changed = new Bell();

  constructor(readonly store: Store<Queue>) {}

  /** A job; undefined when there is none, also for what is no id. */
  async read(id: string): Promise<Job | undefined> {
    if (!isId(id)) return undefined;
    return (await this.store.records.get(jobKey(id)) as Versioned<Job> | undefined)?.value;
  }

  /** Changes a job as `update` does. */
  async change(id: string, change: (job: Job) => Job | undefined): Promise<Job | undefined> {
    if (!isId(id)) return undefined;
    const job = await update<Job>(this.store.records, jobKey(id), change);
    this.changed.ring();
    return job;
  }

  /** Writes a new job, items first; when that fails, nothing is left of it. One that is there already stays. */
  async add(job: Job, items: readonly unknown[]): Promise<void> {
    try {
      for (const [i, item] of items.entries()) await this.store.blobs.put(itemKey(job.id, i), encode(item));
      await this.store.records.set(jobKey(job.id), job, undefined);
    } catch (error) {
      // Another request with the same idempotency key may have been luckier. What is left is swept when a server starts.
      if (!await this.read(job.id).catch(() => job)) await this.drop(job).catch(() => {});
      throw error;
    }
  }

  /** Has a job worked on, if nobody is about to. */
  async queue(id: string): Promise<void> {
    await this.store.queue("jobs").send({ id: jobKey(id), body: { job: id } });
  }

  /** Removes all there is of a job, its record first: who then misses a result finds that the job is gone. */
  async drop({ id, items, idempotency }: Job): Promise<void> {
    const { records, blobs } = this.store;
    if (idempotency) await records.delete(idempotency);
    await records.delete(jobKey(id));
    for (const index of items.keys()) {
      await blobs.delete(itemKey(id, index));
      await blobs.delete(resultKey(id, index));
    }
  }

  /** Ids of all jobs. */
  async *ids(): AsyncGenerator<string> {
    for await (const key of this.store.records.keys("jobs/")) yield key.slice("jobs/".length);
  }

  /** Removes items and results that belong to no job: their acceptance was cut short, more than an hour ago. */
  async sweep(now: number): Promise<void> {
    const known = new Set(await Array.fromAsync(this.ids()));
    for await (const { key, writtenAt } of this.store.blobs.list("jobs/")) {
      const [, id] = key.split("/");
      if (!known.has(id) && now - writtenAt > 3_600_000) await this.store.blobs.delete(key);
    }
  }

  /** The body of an item. @throws {RequestError} `record_corrupt` when it is not there, or no JSON. */
  async item(id: string, index: number): Promise<unknown> {
    const key = itemKey(id, index);
    return decode(await this.store.blobs.get(key), key);
  }

  async hasResult(id: string, index: number): Promise<boolean> {
    return await this.store.blobs.get(resultKey(id, index)) !== undefined;
  }

  async putResult(id: string, index: number, result: unknown): Promise<void> {
    await this.store.blobs.put(resultKey(id, index), encode(result));
  }

  /** A job as callers see it. */
  async view(job: Job): Promise<JobView> {
    const { id, status, createdAt, finishedAt } = job;
    return {
      id,
      status,
      items: await Promise.all(job.items.keys().map((i) => this.itemView(job, i))),
      createdAt: new Date(createdAt).toISOString(),
      ...finishedAt !== undefined && { finishedAt: new Date(finishedAt).toISOString() },
    };
  }

  /** An item as callers see it. */
  async itemView({ id, items }: Job, index: number): Promise<ItemView> {
    const { status, attempts, error } = items[index];
    const key = resultKey(id, index);
    const result = status === "done" ? decode(await this.store.blobs.get(key), key) : undefined;
    return { index, status, ...status === "done" && { result }, ...error && { error }, attempts };
  }
}

function encode(value: unknown): Uint8Array {
  return new TextEncoder().encode(JSON.stringify(value));
}

function decode(bytes: Uint8Array | undefined, key: string): unknown {
  try {
    if (bytes) return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    // Told below.
  }
  const found = bytes ? "other bytes" : "nothing";
  throw new RequestError("record_corrupt", `Cannot read ${key}: expected JSON, found ${found}`);
}
