/** The Worker on Cloudflare. Settings are the Worker's variables and secrets, by the names of settings.ts. */

import { resolve4, resolve6 } from "node:dns/promises";
import { createApp } from "../lib/http/app.ts";
import { createLog } from "../lib/http/guard/log.ts";
import { hookRoutes } from "../lib/http/hooks.ts";
import { JOB_OPERATIONS } from "../lib/http/job_schemas.ts";
import { itemWork, jobRoutes } from "../lib/http/jobs.ts";
import { createOutbound, type Network } from "../lib/http/outbound.ts";
import { SharedRecordings } from "../lib/http/shared_recordings.ts";
import { uploadRoutes, UPLOADS } from "../lib/http/uploads.ts";
import { handleOne, LEASE_MS } from "../lib/jobs/consume.ts";
import { createMetrics, type Metrics } from "../lib/metrics.ts";
import {
  createPipeline,
  createWasmBackend,
  type LocalPipeline,
  type ModelFiles,
  type PipelineParts,
  RequestError,
} from "../lib/mod.ts";
import { Ledger } from "../lib/schedule/ledger.ts";
import {
  createCloudflareStore,
  type ObjectNamespace,
  type QueueBinding,
  type QueueMessage,
  type R2Bucket,
} from "../lib/store/cloudflare.ts";
import { createObjectJournals } from "../lib/store/journals.ts";
import { createR2Files, type ModelBucket } from "../lib/store/r2_models.ts";
import { describe } from "../models/inspect.ts";
import { relaxed, simd } from "../wasm/kernels.js";
import { openPool } from "./cloudflare_pool.ts";
import { settingsOf } from "./settings.ts";
import tiny from "./tiny.js";
import { createWork, measureBacklog } from "./work.ts";

export { RecordsObject } from "../lib/store/cloudflare.ts";
export { JournalObject } from "../lib/store/journals.ts";
export { PoolObject } from "./cloudflare_pool.ts";

/**
 * Where the 128 MB of an isolate go. `tests/bench/isolate.ts` measures what is counted here against what V8
 * has, WebAssembly's memories included.
 */
const ISOLATE = {
  /** All that is counted, requests included; the rest is for what is not: garbage, 12 MB of it where it was measured. */
  limitBytes: 120e6,
  /** Of that, what a model may hold whatever is asked of it. */
  modelBytes: 100e6,
  /**
   * The program: its code and objects. Measured: 8.5 MB before there is a model, 11.3 with one's tokenizer and what was
   * asked.
   */
  programBytes: 14e6,
  /** Weights and working memory of a model that is held whole. */
  wasmBytes: 48 * 2 ** 20,
  featureCacheBytes: 4 * 2 ** 20,
  prefixCacheBytes: 4 * 2 ** 20,
  maxBodyBytes: 16 * 2 ** 20,
  maxPixels: 4_000_000,
  maxWaiting: 32,
};

/** What the program brings along: the bundled model's files, which lie in buffers whether it is loaded or not. */
const BUNDLED_BYTES = Object.values(tiny).reduce((sum, it) => sum + it.byteLength, 0);

/** How soon a message comes again that could not even be looked at. */
const RETRY_SECONDS = 10;

/** The Worker's bindings, beside which are its variables and secrets. */
interface Env {
  readonly RECORDS: ObjectNamespace;
  readonly JOURNALS: ObjectNamespace;
  readonly POOL: ObjectNamespace;
  readonly MODELS: ModelBucket;
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

/**
 * Loads a model whole or, where it has no room, so that its SigLIP is streamed.
 *
 * @throws {RequestError} `model_too_large` before anything is loaded, where even that has no room.
 */
async function load(parts: Omit<PipelineParts, "backend">) {
  const { memory: { peakBytes, copiesBytes }, streamedVisionBytes, files } = await describe(parts.files);
  const whole = peakBytes <= ISOLATE.wasmBytes;
  // The vocabulary and the mask decoder, as they are read and as they are kept.
  const others = files.filter((it) => !/^model.*\.safetensors$/.test(it.name));
  const own = ISOLATE.programBytes + BUNDLED_BYTES + ISOLATE.featureCacheBytes +
    (whole ? ISOLATE.prefixCacheBytes : 0) +
    2 * others.reduce((sum, it) => sum + it.sizeBytes, 0);
  const needed = own + (whole ? peakBytes + copiesBytes : streamedVisionBytes);
  if (needed > ISOLATE.modelBytes) {
    const [all, room] = [needed, ISOLATE.modelBytes].map((it) => `${(it / 1e6).toFixed(0)} MB`);
    throw new RequestError(
      "model_too_large",
      `Cannot load the model in ${parts.files.place}: its SigLIP, layer by layer, would bring the isolate to ${all}, ` +
        `expected at most ${room}; it has to be int8, and of few pixels`,
    );
  }
  const backend = createWasmBackend({ simd, relaxed }, { maxBytes: ISOLATE.wasmBytes });
  const residence = whole ? "resident" : "streamed";
  const pipeline = await createPipeline({ ...parts, backend, residence, ...ISOLATE });
  const holding = () => Math.max(needed, own + backend.memoryBytes + backend.copiesBytes);
  return { pipeline, residence, holding };
}

/** Tells what the accountant has. */
function tell(memory: Ledger, { isolate }: Metrics): void {
  isolate.set(memory.bytes, "now");
  isolate.set(memory.mostBytes, "most");
  isolate.set(memory.limitBytes, "limit");
}

function open(env: Env) {
  const settings = settingsOf(env);
  const { model, uploadKey, logLevel, allowPrivateUrls, webhookSecrets, backend, ...guard } = settings;
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
  const read = (bytes: number, ms: number) => {
    metrics.modelReadBytes.add(bytes);
    metrics.modelReadSeconds.add(ms / 1000);
  };
  const files = model ? createR2Files(env.MODELS, model, { changed: openAnew, read }) : bundled;
  let pipeline: () => LocalPipeline | undefined = () => undefined;
  let holding = () => ISOLATE.programBytes + BUNDLED_BYTES;
  const memory = new Ledger(ISOLATE.limitBytes, () => holding());
  const parts = {
    files,
    name: model ?? "tiny",
    metrics,
    blobs: store.blobs,
    records: store.records,
    onError,
    memory,
    pool: openPool(settings, env.POOL),
    poolImages: settings.pool?.images,
    poolPrice: settings.pool?.price,
  };
  const loaded = load(parts).then((it) => {
    pipeline = () => it.pipeline;
    holding = it.holding;
    log("info", "memory", { model: parts.name, residence: it.residence, bytes: memory.bytes });
  }, (error) => {
    onError(error);
    // The requests that wait for it are told why; the next one tries again.
    pipeline = () => {
      throw error;
    };
    openAnew();
  });
  const work = createWork(store, {
    work: itemWork(() => pipeline(), outbound),
    outbound,
    secrets: webhookSecrets,
    onError,
  });
  const app = createApp({
    pipeline: () => pipeline(),
    maxBodyBytes: ISOLATE.maxBodyBytes,
    outbound,
    metrics,
    async measure(metrics) {
      tell(memory, metrics);
      await measureBacklog(store, metrics);
    },
    memory,
    log,
    recordings: new SharedRecordings(createObjectJournals(env.JOURNALS), onError),
    rooms: [
      jobRoutes({ ...work, outbound, maxBodyBytes: ISOLATE.maxBodyBytes }),
      hookRoutes({ ...work, outbound }),
      uploadRoutes(env.MODELS, uploadKey),
    ],
    operations: JOB_OPERATIONS,
    ...guard,
  });
  return { app, store, work, onError, loaded };
}

/** Made by the first request: a Worker may not read or compute anything before there is one. */
let worker: ReturnType<typeof open> | undefined;

/** The worker of this isolate; its model may still be loading. */
function opened(env: Env, context: Context): ReturnType<typeof open> {
  worker ??= open(env);
  context.waitUntil(worker.loaded);
  return worker;
}

/** Has the next request open the model again: it could not be loaded, or is another one now. */
function openAnew(): void {
  worker = undefined;
}

export default {
  async fetch(request: Request, env: Env, context: Context): Promise<Response> {
    const { app, loaded } = opened(env, context);
    if (!new URL(request.url).pathname.startsWith(UPLOADS)) await loaded;
    return await app.fetch(request, { waitUntil: (work) => context.waitUntil(work) });
  },

  async queue({ queue, messages }: Batch, env: Env, context: Context): Promise<void> {
    const { store, work, onError, loaded } = opened(env, context);
    await loaded;
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
    await opened(env, context).work.recover();
  },
};
