/**
 * Works jobs off. Every step is a compare-and-set of the job's record; a result is stored before its item is called done, so
 * that a process killed between the two finds it and does not compute it again.
 */

import { RequestError } from "../errors.ts";
import type { Delivery } from "../store/store.ts";
import { backoff, type Handler } from "./consume.ts";
import { begin, finish, giveBack, isCurrent, isFinal, type Job, nextItem } from "./job.ts";
import type { JobStore } from "./job_store.ts";
import { readSecrets } from "./signature.ts";
import type { Webhooks } from "./webhooks.ts";

/** What jobs are worked off with. */
export interface RunnerParts {
  readonly jobs: JobStore;
  readonly webhooks: Webhooks;
  /**
   * Answers one item, in the trace of its job's request where there is one. A `RequestError` is the item's end, unless it
   * is one that passes.
   *
   * @returns JSON.
   */
  readonly work: (
    item: unknown,
    signal: AbortSignal,
    job: Pick<Job, "createdAt" | "traceparent">,
  ) => Promise<unknown>;
  /** Told everything that goes wrong and is not the caller's. */
  readonly onError: (error: unknown) => void;
  /** Milliseconds since 1970. */
  readonly now: () => number;
  /** How long a job is kept after its end, milliseconds. */
  readonly keepMs: number;
}

/** How often an item is begun before it is taken for what kills its worker, or fails for what may pass. */
const MAX_CRASHES = 10;
const MAX_FAILURES = 3;

/** How long one job works before it lets another one begin. */
const SLICE_MS = 30_000;

/** How soon a job stops that somebody cancels; at once when it is in this process. */
const LOOK_MS = 1000;

/** Longest webhook, as Standard Webhooks has it. */
const MAX_PAYLOAD_BYTES = 20_000;

const letterId = (id: string) => id.replace("job_", "msg_");

/** The worker of one store; there may be others in other processes. */
export class Runner {
  constructor(private readonly parts: RunnerParts) {}

  /** Takes a message of the queue `jobs`. */
  readonly handle: Handler = async (delivery, signal) => {
    const { job, expired } = delivery.body as { job?: string; expired?: string };
    if (expired) await this.#expire(expired, delivery);
    else if (job) await this.#run(job, delivery, signal);
  };

  /** Queues again what its queue may have lost, and drops what was never accepted. To be called when a server starts. */
  async recover(): Promise<void> {
    const { jobs, webhooks, onError, now } = this.parts;
    for await (const id of jobs.ids()) {
      const job = await jobs.read(id).catch(onError);
      if (job && !isFinal(job.status)) await jobs.queue(id);
    }
    await webhooks.recover();
    await jobs.sweep(now());
  }

  async #run(id: string, delivery: Delivery, signal: AbortSignal): Promise<void> {
    const { jobs, onError, now, keepMs } = this.parts;
    const until = now() + SLICE_MS;
    try {
      while (true) {
        const pause = await this.#step(id, signal);
        if (pause === "end") break;
        if (pause !== undefined) return void await delivery.retry(pause);
        if (signal.aborted || now() > until) return void await delivery.retry(0);
      }
    } catch (error) {
      // A job that cannot be read cannot be done either, however often it comes.
      if (!(error instanceof RequestError) || error.code !== "record_corrupt") throw error;
      onError(error);
      return void await delivery.ack();
    }
    await this.#announce(id);
    await jobs.store.queue("jobs").send({ id: `expired/${id}`, body: { expired: id } }, keepMs);
    await delivery.ack();
  }

  /** Does one item. `end` when there is none left; milliseconds when the job is to come again after them. */
  async #step(id: string, signal: AbortSignal): Promise<"end" | number | undefined> {
    const { jobs, work, now } = this.parts;
    let next: number | undefined;
    const begun = await jobs.change(id, (job) => {
      next = isFinal(job.status) ? undefined : nextItem(job);
      return next === undefined ? undefined : begin(job, next);
    });
    if (!begun || next === undefined) return "end";
    const index = next;
    const { attempts } = begun.items[index];
    const isOurs = (job: Job) => isCurrent(job, index, attempts);
    const settle = (change: (job: Job) => Job) =>
      jobs.change(id, (job) => isOurs(job) ? change(job) : undefined);
    using stop = this.#stopping(id, isOurs, signal);
    try {
      // There is one when a worker died before it could say so.
      if (!await jobs.hasResult(id, index)) {
        if (attempts > MAX_CRASHES) {
          const error = {
            code: "worker_died",
            message: `Cannot answer: ${MAX_CRASHES} workers died over it`,
          };
          return void await settle((job) => finish(job, index, now(), error));
        }
        const result = await work(await jobs.item(id, index), stop.signal, begun);
        await jobs.putResult(id, index, result);
      }
      await settle((job) => finish(job, index, now()));
    } catch (error) {
      const failure = this.#failure(error, attempts, stop.signal);
      await settle((job) => {
        return failure.error
          ? finish(job, index, now(), failure.error)
          : giveBack(job, index, failure.uncounted);
      });
      return failure.pause;
    }
  }

  /** What becomes of an item that was not answered: given back, perhaps after a pause, or failed with an error. */
  #failure(error: unknown, attempts: number, { aborted }: AbortSignal): {
    readonly pause?: number;
    readonly uncounted: boolean;
    readonly error?: { readonly code: string; readonly message: string };
  } {
    const code = error instanceof RequestError ? error.code : "internal";
    if (aborted) return { uncounted: true };
    if (["internal", "storage_failed"].includes(code)) this.parts.onError(error);
    if (["overloaded", "storage_failed", "cancelled"].includes(code)) {
      return { uncounted: true, pause: backoff(3) };
    }
    if (["internal", "url_failed"].includes(code) && attempts < MAX_FAILURES) {
      return { uncounted: false, pause: backoff(attempts) };
    }
    const message = error instanceof RequestError ? error.message : "The server failed; its log tells why";
    return { uncounted: false, error: { code, message } };
  }

  /** A signal that also aborts when the item is no longer ours: its job was cancelled, here or elsewhere. */
  #stopping(
    id: string,
    isOurs: (job: Job) => boolean,
    signal: AbortSignal,
  ): { signal: AbortSignal } & Disposable {
    const { jobs } = this.parts;
    const stop = new AbortController();
    const abort = () => stop.abort();
    signal.addEventListener("abort", abort, { once: true });
    if (signal.aborted) abort();
    (async () => {
      while (!stop.signal.aborted) {
        await jobs.changed.wait(LOOK_MS, stop.signal);
        const job = await jobs.read(id).catch(() => undefined); // whoever settles the item will be told
        if (!job || !isOurs(job)) abort();
      }
    })();
    return {
      signal: stop.signal,
      [Symbol.dispose]() {
        signal.removeEventListener("abort", abort);
        abort();
      },
    };
  }

  /** Tells the job's end to its webhook, once. */
  async #announce(id: string): Promise<void> {
    const { jobs, webhooks } = this.parts;
    const job = await jobs.read(id);
    if (!job?.webhook) return;
    const { url, secret } = job.webhook;
    const view = await jobs.view(job);
    const payload = (data: unknown) =>
      JSON.stringify({ type: `job.${job.status}`, timestamp: new Date(job.finishedAt!).toISOString(), data });
    // Each shorter than the one before; the last fits for a hundred items.
    const bodies = [
      view,
      { ...view, items: view.items.map(({ result: _, ...it }) => it) },
      { ...view, items: view.items.map(({ index, status, attempts }) => ({ index, status, attempts })) },
    ].map(payload);
    await webhooks.send({
      id: letterId(id),
      owner: job.owner,
      job: id,
      url,
      type: `job.${job.status}`,
      body: bodies.find((it) => new TextEncoder().encode(it).length <= MAX_PAYLOAD_BYTES) ?? bodies[2],
      ...secret !== undefined && { secrets: readSecrets(secret) },
      traceparent: job.traceparent,
    });
  }

  async #expire(id: string, delivery: Delivery): Promise<void> {
    const { jobs, webhooks } = this.parts;
    const job = await jobs.read(id);
    if (job) {
      await webhooks.delete(letterId(id));
      await jobs.drop(job);
    }
    await delivery.ack();
  }
}
