/**
 * Jobs: up to a hundred questions that outlive the connection they came by, and this process. What is accepted is written
 * before it is answered for.
 */

import { sha256 } from "../digest.ts";
import { RequestError } from "../errors.ts";
import type { Versioned } from "../store/store.ts";
import { cancel, isFinal, isFor, type Job, newJob, type Owned, type WebhookTarget } from "./job.ts";
import type { ItemView, JobStore, JobView } from "./job_store.ts";
import { readSecrets } from "./signature.ts";

/** A request for a job. */
export interface JobRequest extends Owned {
  /** 1 to 100, each JSON. */
  readonly items: readonly unknown[];
  readonly webhook?: WebhookTarget;
  readonly traceparent?: string;
  /** The owner's word that this is one request, however often it comes; and a digest of it. */
  readonly idempotency?: { readonly key: string; readonly digest: string };
}

/** Something that changed. Of several changes of one thing since the last look, only the last is told. */
export type JobChange =
  | { readonly revision: number; readonly event: "item"; readonly data: ItemView }
  | { readonly revision: number; readonly event: "job"; readonly data: Pick<JobView, "id" | "status"> };

/** Most items of one job. */
export const MAX_ITEMS = 100;

/** How long a repeated request is known for one; the IETF draft of `Idempotency-Key` leaves it to the server. */
const IDEMPOTENCY_MS = 24 * 3_600_000;

/** Changes of other processes are looked for so often. */
const WATCH_MS = 1000;

/** What callers may do with the jobs of one store. To whoever may not know of a job, there is none. */
export class Jobs {
  /** @param signed whether the server has a secret of its own for webhooks without one. */
  constructor(
    private readonly store: JobStore,
    private readonly now: () => number,
    private readonly signed: boolean,
  ) {}

  /**
   * Accepts a job. When this returns, it is written and will be done.
   *
   * @throws {RequestError} `parameter_invalid` for a webhook that nothing would sign, `idempotency_mismatch` for a key that
   * stands for another request, `storage_failed` when there is no room: then nothing is left of it.
   */
  async create(request: JobRequest): Promise<JobView> {
    const { owner, items, webhook, traceparent, idempotency } = request;
    if (items.length < 1 || items.length > MAX_ITEMS) {
      throw new RangeError(`Job: expected 1 to ${MAX_ITEMS} items, found ${items.length}`);
    }
    if (webhook?.secret !== undefined) readSecrets(webhook.secret, "webhook.secret");
    else if (webhook && !this.signed) {
      throw new RequestError(
        "parameter_invalid",
        "Cannot read webhook: expected a secret to sign with (this server has none of its own), found none",
      );
    }
    const claim = idempotency && await this.#claim(idempotency, owner);
    const id = claim?.id ?? newId();
    const known = claim && await this.store.read(id);
    if (known) return await this.store.view(known);
    const job = newJob(items.length, {
      id,
      owner,
      createdAt: this.now(),
      webhook,
      traceparent,
      idempotency: claim?.key,
    });
    await this.store.add(job, items);
    await this.store.queue(id);
    return await this.store.view(job);
  }

  /** A job with the results of what is done; undefined when there is none. */
  async get(id: string, caller?: string): Promise<JobView | undefined> {
    const job = await this.#read(id, caller);
    return job && await this.#unlessDropped(job, this.store.view(job));
  }

  /** Cancels what is not finished, and tells what then is; a job that has ended stays as it is. */
  async cancel(id: string, caller?: string): Promise<JobView | undefined> {
    if (!await this.#read(id, caller)) return undefined;
    const job = await this.store.change(
      id,
      (it) => isFinal(it.status) ? undefined : cancel(it, this.now()),
    );
    return job && await this.#unlessDropped(job, this.store.view(job));
  }

  /**
   * Changes of a job after a revision, in order, until it has ended. A caller that has seen revision n and comes back
   * misses nothing.
   */
  async *watch(
    id: string,
    after: number,
    signal: AbortSignal,
    caller?: string,
  ): AsyncGenerator<JobChange, void> {
    while (!signal.aborted) {
      const job = await this.#read(id, caller);
      if (!job) return;
      const changes: JobChange[] = [];
      for (const [index, { revision }] of job.items.entries()) {
        if (revision <= after) continue;
        const data = await this.#unlessDropped(job, this.store.itemView(job, index));
        if (!data) return;
        changes.push({ revision, event: "item", data });
      }
      if (job.statusRevision > after) {
        changes.push({ revision: job.statusRevision, event: "job", data: { id, status: job.status } });
      }
      yield* changes.sort((a, b) => a.revision - b.revision);
      after = Math.max(after, job.revision);
      if (isFinal(job.status)) return;
      await this.store.changed.wait(WATCH_MS, signal);
    }
  }

  /** What is read of a job; undefined when the job was removed meanwhile. */
  async #unlessDropped<T>({ id }: Job, reading: Promise<T>): Promise<T | undefined> {
    try {
      return await reading;
    } catch (error) {
      if (await this.store.read(id)) throw error;
    }
  }

  async #read(id: string, caller: string | undefined): Promise<Job | undefined> {
    const job = await this.store.read(id);
    return job && isFor(caller, job) ? job : undefined;
  }

  /**
   * The job's id that a key of an owner stands for, and the key of that record; claimed for a new job where it was free.
   */
  async #claim(
    { key, digest }: { key: string; digest: string },
    owner = "anonymous",
  ): Promise<{ id: string; key: string }> {
    const { records } = this.store.store;
    const record = `idempotency/${(await sha256(`${owner} ${key}`)).toHex()}`;
    while (true) {
      const found = await records.get(record) as
        | Versioned<{ id: string; digest: string; at: number }>
        | undefined;
      if (found && this.now() - found.value.at < IDEMPOTENCY_MS) {
        if (found.value.digest === digest) return { id: found.value.id, key: record };
        throw new RequestError(
          "idempotency_mismatch",
          "Cannot take the job: expected the request that its Idempotency-Key was first used for, found another",
        );
      }
      const claim = { id: newId(), digest, at: this.now() };
      if (await records.set(record, claim, found?.version) !== undefined) {
        return { id: claim.id, key: record };
      }
    }
  }
}

function newId(): string {
  return `job_${crypto.getRandomValues(new Uint8Array(16)).toHex()}`;
}
