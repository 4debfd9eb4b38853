/** The jobs and hooks of a store, put together. */

import type { Outbound } from "../lib/http/outbound.ts";
import type { Handler } from "../lib/jobs/consume.ts";
import { Hooks } from "../lib/jobs/hooks.ts";
import { Jobs } from "../lib/jobs/jobs.ts";
import { JobStore } from "../lib/jobs/job_store.ts";
import { Runner, type RunnerParts } from "../lib/jobs/runner.ts";
import { SCHEDULE, Webhooks } from "../lib/jobs/webhooks.ts";
import type { Metrics } from "../lib/metrics.ts";
import type { Store } from "../lib/store/store.ts";

/** From the look-up to the answer's status; Standard Webhooks recommends 15 to 30 s. */
const WEBHOOK_TIMEOUT_MS = 20_000;

/** How long a job can be asked for after its end: a week. */
const KEEP_MS = 7 * 24 * 3_600_000;

/** What they are made with. */
export interface WorkParts extends Pick<RunnerParts, "work" | "onError"> {
  readonly outbound: Outbound;
  /** Of this server, for webhooks that have no secret of their own. */
  readonly secrets: readonly string[];
}

/** What routes ask of them, and what handles the messages of their queues. */
export interface Work {
  readonly jobs: Jobs;
  readonly webhooks: Webhooks;
  readonly hooks: Hooks;
  readonly handlers: Readonly<Record<"jobs" | "webhooks", Handler>>;
  /** Queues again what its queue may have lost. */
  recover(): Promise<void>;
}

/** Puts them together; nothing is worked off yet. */
export function createWork(store: Store, { work, outbound, secrets, onError }: WorkParts): Work {
  const now = Date.now;
  const webhooks = new Webhooks({
    records: store.records,
    queue: store.queue("webhooks"),
    post: (url, request) =>
      outbound.fetch(url, { method: "POST", maxBytes: 0, timeoutMs: WEBHOOK_TIMEOUT_MS, ...request }),
    secrets,
    now,
    schedule: SCHEDULE,
  });
  const stored = new JobStore(store);
  const runner = new Runner({ jobs: stored, webhooks, work, onError, now, keepMs: KEEP_MS });
  const jobs = new Jobs(stored, now, secrets.length > 0);
  return {
    jobs,
    webhooks,
    hooks: new Hooks(store.records, jobs, secrets),
    handlers: { jobs: runner.handle, webhooks: webhooks.handle },
    recover: () => runner.recover(),
  };
}

/** Tells how much there is to do in a store. */
export async function measureBacklog(store: Store, { backlog }: Metrics): Promise<void> {
  backlog.set(await store.queue("jobs").depth("jobs/"), "jobs");
  backlog.set(await store.queue("webhooks").depth("letters/"), "webhooks");
}
