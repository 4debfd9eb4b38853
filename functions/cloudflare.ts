/** The Worker on Cloudflare. Settings are the Worker's variables and secrets, by the names of settings.ts. */

import { resolve4, resolve6 } from "node:dns/promises";
import { createApp } from "../lib/http/app.ts";
import { createLog } from "../lib/http/guard/log.ts";
import { hookRoutes } from "../lib/http/hooks.ts";
import { JOB_OPERATIONS } from "../lib/http/job_schemas.ts";
import { itemWork, jobRoutes } from "../lib/http/jobs.ts";
import { createOutbound, type Network } from "../lib/http/outbound.ts";
import { SharedRecordings } from "../lib/http/shared_recordings.ts";
import { handleOne, LEASE_MS } from "../lib/jobs/consume.ts";
import { createMetrics } from "../lib/metrics.ts";
import { createPipeline, createWasmBackend, type LocalPipeline, type ModelFiles } from "../lib/mod.ts";
import {
  createCloudflareStore,
  type ObjectNamespace,
  type QueueBinding,
  type QueueMessage,
  type R2Bucket,
} from "../lib/store/cloudflare.ts";
import { createObjectJournals } from "../lib/store/journals.ts";
import { relaxed, simd } from "../wasm/kernels.js";
import { readSettings } from "./settings.ts";
import tiny from "./tiny.js";
import { createWork, measureBacklog } from "./work.ts";

export { RecordsObject } from "../lib/store/cloudflare.ts";
export { JournalObject } from "../lib/store/journals.ts";

/** What an isolate of 128 MB leaves room for, beside the bundled model. */
const ROOM = { maxPixels: 4_000_000, maxWaiting: 32, prefixCacheBytes: 4 * 2 ** 20 };
const MAX_BODY_BYTES = 16 * 2 ** 20;

/** How soon a message comes again that could not even be looked at. */
const RETRY_SECONDS = 10;

/** The Worker's bindings, beside which are its variables and secrets. */
interface Env {
  readonly RECORDS: ObjectNamespace;
  readonly JOURNALS: ObjectNamespace;
  readonly BLOBS: R2Bucket;
  readonly JOBS: QueueBinding;
  readonly WEBHOOKS: QueueBinding;
  readonly [variable: string]: unknown;
}

/** What outlives a request's connection. */
interface Context {
  waitUntil(work: Promise<unknown>): void;
}

/** What a queue brings. */
interface Batch {
  readonly queue: string;
  readonly messages: readonly QueueMessage[];
}

/** The bundled model's files, as the library sees a directory. */
const bundled: ModelFiles = {
  place: "the bundled model",
  list: () => Promise.resolve(Object.keys(tiny)),
  size: (name) => Promise.resolve(tiny[name]?.byteLength),
  read: (name, start = 0, end) =>
    Promise.resolve(new Uint8Array(tiny[name], start, (end ?? tiny[name].byteLength) - start)),
};

/** The way out: Cloudflare's network does not lead into private ones, and `fetch` chooses the address itself. */
const network: Network = {
  async lookup(host) {
    const found = await Promise.allSettled([resolve4(host), resolve6(host)]);
    return found.flatMap((it) => it.status === "fulfilled" ? it.value : []);
  },
  fetch: (url, init) => fetch(url, init),
};

async function open(env: Env) {
  const { logLevel, allowPrivateUrls, webhookSecrets, backend, ...guard } = readSettings((name) => {
    const value = env[name];
    return typeof value === "string" ? value : undefined;
  });
  if (backend !== "wasm") throw new RangeError(`expected BACKEND to be wasm in a Worker, found "${backend}"`);
  // deno-lint-ignore no-console -- where a Worker's log goes
  const log = createLog(logLevel, (line) => console.log(line));
  const onError = (error: unknown) => log("error", "failure", { error });
  const metrics = createMetrics();
  const outbound = createOutbound(network, { allowPrivate: allowPrivateUrls });
  const store = createCloudflareStore({
    records: env.RECORDS,
    blobs: env.BLOBS,
    queues: { jobs: env.JOBS, webhooks: env.WEBHOOKS },
  });
  const pipeline: LocalPipeline = await createPipeline({
    backend: createWasmBackend({ simd, relaxed }),
    files: bundled,
    name: "tiny",
    metrics,
    blobs: store.blobs,
    onError,
    ...ROOM,
  });
  const work = createWork(store, {
    work: itemWork(() => pipeline, outbound),
    outbound,
    secrets: webhookSecrets,
    onError,
  });
  const app = createApp({
    pipeline: () => pipeline,
    maxBodyBytes: MAX_BODY_BYTES,
    outbound,
    metrics,
    measure: (metrics) => measureBacklog(store, metrics),
    log,
    recordings: new SharedRecordings(createObjectJournals(env.JOURNALS), onError),
    rooms: [
      jobRoutes({ ...work, outbound, maxBodyBytes: MAX_BODY_BYTES }),
      hookRoutes({ ...work, outbound }),
    ],
    operations: JOB_OPERATIONS,
    ...guard,
  });
  return { app, store, work, onError };
}

/** Made by the first request: a Worker may not read or compute anything before there is one. */
let worker: ReturnType<typeof open> | undefined;

/** The worker of this isolate; where it cannot be made, the next request tries again. */
function opened(env: Env, context: Context): ReturnType<typeof open> {
  worker ??= open(env).catch((error) => {
    worker = undefined;
    throw error;
  });
  context.waitUntil(worker);
  return worker;
}

export default {
  async fetch(request: Request, env: Env, context: Context): Promise<Response> {
    const { app } = await opened(env, context);
    return await app.fetch(request, { waitUntil: (work) => context.waitUntil(work) });
  },

  async queue({ queue, messages }: Batch, env: Env, context: Context): Promise<void> {
    const { store, work, onError } = await opened(env, context);
    const name = queue.endsWith("webhooks") ? "webhooks" : "jobs";
    const { signal } = new AbortController();
    await Promise.all(messages.map(async (message) => {
      try {
        const delivery = await store.take(name, message, LEASE_MS);
        if (delivery) await handleOne(delivery, work.handlers[name], { signal, onError });
      } catch (error) {
        onError(error);
        message.retry({ delaySeconds: RETRY_SECONDS });
      }
    }));
  },

  async scheduled(_event: unknown, env: Env, context: Context): Promise<void> {
    await (await opened(env, context)).work.recover();
  },
};
