/** What a Deno server keeps between runs: where it lies, and who works it off. */

import { join, resolve } from "@std/path";
import type { Outbound } from "../lib/http/outbound.ts";
import { consume } from "../lib/jobs/consume.ts";
import { Hooks } from "../lib/jobs/hooks.ts";
import { Jobs } from "../lib/jobs/jobs.ts";
import { JobStore } from "../lib/jobs/job_store.ts";
import { Runner, type RunnerParts } from "../lib/jobs/runner.ts";
import { SCHEDULE, Webhooks } from "../lib/jobs/webhooks.ts";
import { RequestError } from "../lib/mod.ts";
import { openKvStore } from "../lib/store/deno_kv.ts";
import { createFileBlobs } from "../lib/store/files.ts";
import type { PullQueue, Store } from "../lib/store/store.ts";

/** Jobs that compute at once; the pipeline answers one question at a time, so more only wait in its line. */
const JOBS_AT_ONCE = 2;
const WEBHOOKS_AT_ONCE = 8;

/** From the look-up to the answer's status; Standard Webhooks recommends 15 to 30 s. */
const WEBHOOK_TIMEOUT_MS = 20_000;

/** How long a job can be asked for after its end: a week. */
const KEEP_MS = 7 * 24 * 3_600_000;

/**
 * Opens the store: records and queues in `kv.sqlite`, blobs in `blobs/` of the directory. On Deno Deploy, whose disks do
 * not last, everything is in the platform's KV unless a directory is named.
 *
 * @throws {RequestError} `storage_failed` when it cannot be opened.
 */
export async function openStore(
  directory: string | undefined,
  onCorrupt: (error: unknown) => void,
): Promise<Store<PullQueue>> {
  if (directory === undefined && Deno.env.has("DENO_DEPLOYMENT_ID")) return await openKvStore({ onCorrupt });
  const place = resolve(directory ?? userData());
  try {
    // Pictures and secrets of this user.
    await Deno.mkdir(place, { recursive: true, mode: 0o700 });
  } catch (cause) {
    throw new RequestError("storage_failed", `Cannot make ${place}: ${(cause as Error).message}`, { cause });
  }
  const { records, queue } = await openKvStore({ path: join(place, "kv.sqlite"), onCorrupt });
  return { records, queue, blobs: createFileBlobs(join(place, "blobs")) };
}

/** The directory for data of programs, as each system has it. */
function userData(): string {
  const home = Deno.env.get("HOME") ?? Deno.env.get("USERPROFILE") ?? ".";
  switch (Deno.build.os) {
    case "darwin":
      return join(home, "Library/Application Support/paligemma-edge");
    case "windows":
      return join(Deno.env.get("LOCALAPPDATA") ?? join(home, "AppData/Local"), "paligemma-edge");
    default:
      return join(Deno.env.get("XDG_DATA_HOME") || join(home, ".local/share"), "paligemma-edge");
  }
}

/** What a server's jobs and hooks are made with. */
export interface WorkParts extends Pick<RunnerParts, "work" | "onError"> {
  readonly outbound: Outbound;
  /** Of this server, for webhooks that have no secret of their own. */
  readonly secrets: readonly string[];
}

/** The jobs and hooks of a store, and what works them off once there is a model. */
export function createWork(store: Store<PullQueue>, { work, outbound, secrets, onError }: WorkParts) {
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
    /** Works until the signal aborts, and ends when what was begun is put down. */
    async run(signal: AbortSignal): Promise<void> {
      const options = { signal, onError };
      await Promise.all([
        runner.recover().catch(onError),
        consume(store.queue("jobs"), runner.handle, { concurrency: JOBS_AT_ONCE, ...options }),
        consume(store.queue("webhooks"), webhooks.handle, { concurrency: WEBHOOKS_AT_ONCE, ...options }),
      ]);
    },
  };
}
