/** The HTTP server on Deno. What it reads of its environment stands in settings.ts. */

import { join, relative, resolve } from "@std/path";
import { type AppParts, createApp, type Sample } from "../lib/http/app.ts";
import { hookRoutes } from "../lib/http/hooks.ts";
import { JOB_OPERATIONS } from "../lib/http/job_schemas.ts";
import { itemWork, jobRoutes } from "../lib/http/jobs.ts";
import { createLog } from "../lib/http/guard/log.ts";
import { createOutbound } from "../lib/http/outbound.ts";
import { workerRoutes } from "../lib/http/worker.ts";
import { createMetrics } from "../lib/metrics.ts";
import { type LocalPipeline, RequestError } from "../lib/mod.ts";
import { examples } from "../models/demo.ts";
import { loadModel, TINY } from "./model.ts";
import { createNetwork, isDenied } from "./network.ts";
import { openPool } from "./pool.ts";
import { openStore, workOff } from "./store.ts";
import { type PoolSettings, readSettings, type Settings } from "./settings.ts";
import { openWorkerPage } from "./worker_page.ts";
import { createWork, measureBacklog } from "./work.ts";

/** Running answers get this long to end after a signal; Deno Deploy kills after 5 s. */
const GRACE_MS = 4000;
/** What ends the server. */
const SIGNALS = Deno.build.os === "windows" ? ["SIGINT"] as const : ["SIGINT", "SIGTERM"] as const;

function say(text: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(text + "\n"));
}

function warn(text: string): void {
  Deno.stderr.writeSync(new TextEncoder().encode(text + "\n"));
}

function fail(text: string): never {
  warn(text);
  Deno.exit(1);
}

function settingsOrFail(): Settings {
  try {
    return readSettings((name) => Deno.env.get(name));
  } catch (error) {
    if (error instanceof RequestError) return fail(error.message);
    if (error instanceof RangeError) return fail(`Cannot serve: ${error.message}`);
    throw error;
  }
}

/** The bundled pictures, each once, with a question that suits it. None is no reason not to serve. */
async function readSamples(): Promise<{ samples: Sample[]; directory: string }> {
  try {
    const { directory, list } = await examples();
    const firsts = list.filter((it, i) => list.findIndex((other) => other.image === it.image) === i);
    const samples = await Promise.all(
      firsts.slice(0, 8).map(async ({ image, prompt }) => ({
        name: image,
        prompt,
        type: image.endsWith(".png") ? "image/png" : "image/jpeg",
        bytes: await Deno.readFile(join(directory, image)),
      })),
    );
    return { samples, directory };
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return { samples: [], directory: "" };
    throw error;
  }
}

/** What is kept between runs. Without a place for it there are no jobs; but where one was named, it has to be there. */
async function openStoreOrFail(directory?: string) {
  try {
    return await openStore(directory, (error) => log("error", "failure", { error }));
  } catch (error) {
    if (!(error instanceof RequestError)) throw error;
    if (directory !== undefined) fail(`Cannot serve with DATA_DIR=${directory}: ${error.message}`);
    warn(`No jobs and webhooks: ${error.message}. DATA_DIR chooses another directory.`);
  }
}

/** What tabs that join the pool are given. */
async function workerPageOrFail(pool: PoolSettings, broker: string) {
  try {
    return await openWorkerPage(resolve(directory), pool, broker);
  } catch (error) {
    if (error instanceof RequestError) fail(error.message);
    throw error;
  }
}

function serve(app: ReturnType<typeof createApp>, port: number) {
  try {
    return Deno.serve({ port, onListen() {} }, (request) => app.fetch(request));
  } catch (error) {
    if (error instanceof Deno.errors.AddrInUse) {
      return fail(
        `Cannot serve on port ${port}: something else does already. PORT=8001 would choose another.`,
      );
    }
    if (error instanceof Deno.errors.PermissionDenied) {
      return fail(`Cannot serve on port ${port}: the system does not allow it. PORT chooses another.`);
    }
    throw error;
  }
}

/** Ctrl-C and `kill`: no new request, running answers end as cancelled, exit code 0. A second one does not wait. */
function stopOnSignal(
  server: Deno.HttpServer,
  stopping: AbortController,
  idle: () => Promise<unknown>,
): void {
  let since = 0;
  const stop = async () => {
    if (stopping.signal.aborted) {
      // One Ctrl-C may come twice: from the terminal, and passed on by `deno task`.
      if (performance.now() - since > 500) Deno.exit(0);
      return;
    }
    since = performance.now();
    stopping.abort();
    setTimeout(() => Deno.exit(0), GRACE_MS);
    await Promise.all([server.shutdown(), idle()]);
    say("Stopped.");
    Deno.exit(0);
  };
  for (const name of SIGNALS) Deno.addSignalListener(name, stop);
}

/**
 * What has to reach a network that Deno was told to deny would wait for ever: a server that may is started instead, and
 * this process is only what its signals go through.
 */
async function startAgainIfDenied(host: string): Promise<void> {
  const addresses = await createNetwork().lookup(host).catch(() => []);
  if (!addresses.some(isDenied)) return;
  const server = new Deno.Command(Deno.execPath(), {
    args: ["run", "-A", import.meta.filename!],
    stdin: "inherit",
    stdout: "inherit",
    stderr: "inherit",
  }).spawn();
  for (const name of SIGNALS) Deno.addSignalListener(name, () => server.kill(name));
  Deno.exit((await server.status).code);
}

/** A line to paste into a second terminal. */
function example(url: string, samples: readonly Sample[], directory: string): string {
  const picture = samples.length ? relative(Deno.cwd(), join(directory, samples[0].name)) : "picture.jpg";
  return `curl -N ${url}/v1/generate -F image=@${picture} -F prompt='caption en' -F stream=true`;
}

const settings = settingsOrFail();
const {
  port,
  model: directory = TINY,
  smaller,
  backend,
  threads,
  logLevel,
  allowPrivateUrls,
  dataDirectory,
  webhookSecrets,
  pool,
  ...guard
} = settings;
if (allowPrivateUrls) await startAgainIfDenied("127.0.0.1");
if (pool) await startAgainIfDenied(new URL(pool.url).hostname.replace(/^\[(.*)\]$/, "$1"));
const stopping = new AbortController();
const metrics = createMetrics();
const { samples, directory: pictures } = await readSamples();
let pipeline: LocalPipeline | undefined;

const log = createLog(logLevel, warn);
const outbound = createOutbound(createNetwork(), { allowPrivate: allowPrivateUrls });
const onError = (error: unknown) => log("error", "failure", { error });
const store = await openStoreOrFail(dataDirectory);
const work = store && createWork(store, {
  work: itemWork(() => pipeline, outbound),
  outbound,
  secrets: webhookSecrets,
  onError,
});

const parts: AppParts = {
  pipeline: () => pipeline,
  stopping: stopping.signal,
  samples,
  outbound,
  metrics,
  log,
  rooms: [
    ...work
      ? [jobRoutes({ ...work, outbound, stopping: stopping.signal }), hookRoutes({ ...work, outbound })]
      : [],
    ...pool?.workerPage === undefined ? [] : [workerRoutes(await workerPageOrFail(pool, pool.workerPage))],
  ],
  measure: store && ((metrics) => measureBacklog(store, metrics)),
  operations: work ? JOB_OPERATIONS : [],
  ...guard,
};
let working: Promise<unknown> | undefined;
const server = serve(createApp(parts), port);
stopOnSignal(server, stopping, async () => await working);
const url = `http://localhost:${server.addr.port}`;
try {
  const since = performance.now();
  // As many as a machine may be asked at once; each holds its pixels, less than a megabyte.
  const serving = {
    metrics,
    maxWaiting: 256,
    pool: pool && await openPool(pool, onError),
    poolImages: pool?.images,
    poolPrice: pool?.price,
    records: store?.records,
  };
  pipeline = await loadModel(resolve(directory), {
    ...serving,
    smaller: smaller && resolve(smaller),
    backend,
    threads,
    blobs: store?.blobs,
    onError,
    onNotice: (notice) => log("warn", "backend", { notice }),
  });
  working = store && work && workOff(store, work, { signal: stopping.signal, onError });
  const seconds = ((performance.now() - since) / 1000).toFixed(1);
  say(
    `PaliGemma Edge answers at ${url} (model ${pipeline.model.name}, loaded in ${seconds} s). Ctrl-C stops it.\n` +
      `  ${example(url, samples, pictures)}`,
  );
  pipeline.calibrate(); // whoever asks meanwhile does not wait for it
} catch (error) {
  if (error instanceof RequestError) fail(error.message);
  throw error;
}
