/**
 * The state machine of a job, as plain values: queued -> running -> done | failed | cancelled, for the job and for each of
 * its items. Nothing here reads a clock or a store; `Jobs` writes every step down by compare-and-set.
 */

/** Where a job or an item stands; the last three are final. */
export type JobStatus = "queued" | "running" | "done" | "failed" | "cancelled";

/** Why an item failed. */
export interface ItemError {
  readonly code: string;
  readonly message: string;
}

/** One item, without its body and its result, which lie in blobs. */
export interface ItemState {
  readonly status: JobStatus;
  /** How often it was begun. */
  readonly attempts: number;
  /** The job's revision when it last changed. */
  readonly revision: number;
  readonly error?: ItemError;
}

/** What belongs to whoever made it. */
export interface Owned {
  /** Tells one caller from another; none where callers have no keys, and in what was written before they had. */
  readonly owner?: string;
}

/** Whether a caller may know of something: of its own, and of what is nobody's. */
export function isFor(caller: string | undefined, { owner }: Owned): boolean {
  return owner === undefined || owner === caller;
}

/** Where the end of a job is announced. */
export interface WebhookTarget {
  readonly url: string;
  /** `whsec_…`, several with spaces between; without it the server's own. */
  readonly secret?: string;
}

/** A job as it is stored. Times are milliseconds since 1970. */
export interface Job extends Owned {
  readonly id: string;
  readonly status: JobStatus;
  /** Counts every change of an item or of the job: no two changes have the same. */
  readonly revision: number;
  /** The revision at which the status last changed. */
  readonly statusRevision: number;
  readonly items: readonly ItemState[];
  readonly createdAt: number;
  readonly finishedAt?: number;
  readonly webhook?: WebhookTarget;
  /** Trace that the request belonged to, for whoever hears of the job. */
  readonly traceparent?: string;
  /** Key of the record that tells a repeated request from a new one. */
  readonly idempotency?: string;
}

/** Whether nothing more happens to it. */
export function isFinal(status: JobStatus): boolean {
  return status !== "queued" && status !== "running";
}

/** A job that nobody has begun. */
export function newJob(
  count: number,
  rest: Pick<Job, "id" | "owner" | "createdAt" | "webhook" | "traceparent" | "idempotency">,
): Job {
  const items = Array.from(
    { length: count },
    () => ({ status: "queued", attempts: 0, revision: 0 } as const),
  );
  return { ...rest, status: "queued", revision: 0, statusRevision: 0, items };
}

/**
 * The next item to work on: one that ran when its worker died, or the first that waits. Undefined when there is none.
 */
export function nextItem({ items }: Job): number | undefined {
  const index = items.findIndex((it) => it.status === "running");
  const next = index < 0 ? items.findIndex((it) => it.status === "queued") : index;
  return next < 0 ? undefined : next;
}

/** The job with an item begun, once more. */
export function begin(job: Job, index: number): Job {
  const { attempts } = job.items[index];
  return withItem(job, index, { status: "running", attempts: attempts + 1 });
}

/** Whether an item is still in the hands of the attempt that began it. */
export function isCurrent({ items }: Job, index: number, attempts: number): boolean {
  return items[index].status === "running" && items[index].attempts === attempts;
}

/** The job with an item done, or failed for a reason. */
export function finish(job: Job, index: number, now: number, error?: ItemError): Job {
  const { attempts } = job.items[index];
  const status = error ? "failed" : "done";
  return settled(withItem(job, index, { status, attempts, ...error && { error: brief(error) } }), now);
}

/** The job with an item given back, to be begun again; `uncounted` when it was not the item's fault. */
export function giveBack(job: Job, index: number, uncounted: boolean): Job {
  const attempts = job.items[index].attempts - (uncounted ? 1 : 0);
  return withItem(job, index, { status: "queued", attempts });
}

/** The job with everything cancelled that is not final. */
export function cancel(job: Job, now: number): Job {
  const open = job.items.keys().filter((i) => !isFinal(job.items[i].status));
  const items = open.reduce((it, i) => {
    return withItem(it, i, { status: "cancelled", attempts: it.items[i].attempts });
  }, job);
  return { ...withStatus(items, "cancelled"), finishedAt: now };
}

function withItem(job: Job, index: number, state: Omit<ItemState, "revision">): Job {
  const revision = job.revision + 1;
  const changed = { ...job, revision, items: job.items.with(index, { ...state, revision }) };
  return job.status === "queued" && state.status === "running" ? withStatus(changed, "running") : changed;
}

/** A job whose items are all final is done, if any of them is. */
function settled(job: Job, now: number): Job {
  if (!job.items.every((it) => isFinal(it.status))) return job;
  const status = job.items.some((it) => it.status === "done") ? "done" : "failed";
  return { ...withStatus(job, status), finishedAt: now };
}

function withStatus(job: Job, status: JobStatus): Job {
  const revision = job.revision + 1;
  return { ...job, status, revision, statusRevision: revision };
}

/** A record holds a hundred of these. */
const ERROR_BYTES = 300;

function brief({ code, message }: ItemError): ItemError {
  const bytes = (text: string) => new TextEncoder().encode(JSON.stringify(text)).length;
  if (bytes(message) <= ERROR_BYTES) return { code, message };
  let end = Math.min(message.length, ERROR_BYTES);
  while (bytes(message.slice(0, end)) > ERROR_BYTES) end = Math.floor(end * 0.9);
  return { code, message: `${message.slice(0, end).toWellFormed()}…` };
}
