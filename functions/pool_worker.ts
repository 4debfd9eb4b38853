/** A worker of a pool: loads a model, takes work over HTTP and from NATS, streams tokens back. Settings stand in settings.ts. */

import { resolve } from "@std/path";
import { createLog } from "../lib/http/guard/log.ts";
import { createWorkerMetrics, exposition } from "../lib/metrics.ts";
import { RequestError } from "../lib/mod.ts";
import { type HttpWorkerParts, takeWork } from "../lib/pool/http_worker.ts";
import { NatsWorker } from "../lib/pool/nats_worker.ts";
import { keepStarted, type Life } from "../lib/pool/restart.ts";
import { Serving, trialWork } from "../lib/pool/serving.ts";
import { createVerify } from "../lib/pool/signature.ts";
import { loadEngine, TINY } from "./model.ts";
import { connectBroker, trustedKeys } from "./pool.ts";
import { readSettings, type Settings } from "./settings.ts";

/** Running answers get this long to end after a signal; then they go on elsewhere. */
const GRACE_MS = 20_000;
/** So long it takes to tell them so. */
const LAST_WORDS_MS = 1000;

const write = (to: typeof Deno.stdout, text: string) =>
  void to.writeSync(new TextEncoder().encode(text + "\n"));

function fail(message: string): never {
  write(Deno.stderr, message);
  Deno.exit(1);
}

function settingsOrFail(): Settings {
  try {
    return readSettings((name) => Deno.env.get(name));
  } catch (error) {
    if (error instanceof RequestError || error instanceof RangeError) {
      fail(`Cannot serve a pool: ${error.message}`);
    }
    throw error;
  }
}

const { pool, worker: capacity, port, model: directory = TINY, backend, threads, logLevel } =
  settingsOrFail();
const log = createLog(logLevel, (line) => write(Deno.stderr, line));
const onError = (error: unknown) => log("error", "failure", { error });
const metrics = createWorkerMetrics();
/** While there is an engine. */
let loaded: HttpWorkerParts & { readonly serving: Serving } | undefined;
let leaving = false;
let nats: NatsWorker | undefined;

/** 200 as long as work is taken. */
function health(): Response {
  const well = loaded && !leaving;
  const status = well ? "ok" : "unavailable";
  return Response.json({ status, worker: nats?.worker, ...loaded?.serving.load() }, {
    status: well ? 200 : 503,
  });
}

function respond(request: Request): Response | Promise<Response> {
  const { pathname } = new URL(request.url);
  if (pathname === "/health") return health();
  if (pathname === "/metrics") {
    metrics.active.set(loaded?.serving.load().active ?? 0);
    metrics.waiting.set(loaded?.serving.load().waiting ?? 0);
    return new Response(exposition(metrics), { headers: { "content-type": "text/plain; version=0.0.4" } });
  }
  if (pathname !== "/work") {
    return new Response("There is /work, /health and /metrics\n", { status: 404 });
  }
  return loaded
    ? takeWork(request, loaded)
    : new Response(null, { status: 503, headers: { "retry-after": "1" } });
}

function serveOrFail() {
  try {
    return Deno.serve({ port, onListen() {} }, respond);
  } catch (error) {
    if (!(error instanceof Deno.errors.AddrInUse)) throw error;
    return fail(`Cannot take work on port ${port}: something else is there. PORT=0 takes any.`);
  }
}

const http = serveOrFail();

/** From a loaded model until its engine is lost. */
async function start(): Promise<Life> {
  const verify = await createVerify(await trustedKeys(capacity));
  const engine = await loadEngine(resolve(directory), { backend, threads, onError });
  const model = engine.shape;
  const parts = { model, verify, metrics, onError };
  if (pool) nats = new NatsWorker(await connectBroker(pool, "worker"), { engine, capacity, ...parts });
  const serving = nats?.serving ?? new Serving(engine, capacity);
  const leave = async () => {
    const left = nats;
    [loaded, nats] = [undefined, undefined];
    await left?.leave(LAST_WORDS_MS);
  };
  try {
    await Array.fromAsync(serving.submit(trialWork(model)));
  } catch (error) {
    await leave();
    throw error;
  }
  loaded = { serving, ...parts };
  const at = `http://localhost:${http.addr.port}`;
  write(
    Deno.stdout,
    `Worker of ${engine.revision} takes work at ${at}${
      pool ? ` and from ${pool.url}` : ""
    }; health at ${at}/health. Ctrl-C stops it.`,
  );
  return { lost: engine.lost, leave };
}

async function stop(): Promise<void> {
  if (!loaded || leaving) Deno.exit(0); // a second signal does not wait
  leaving = true;
  setTimeout(() => Deno.exit(0), GRACE_MS + LAST_WORDS_MS);
  await (nats ? nats.leave(GRACE_MS) : loaded.serving.drain());
  await http.shutdown();
  Deno.exit(0);
}
for (const name of Deno.build.os === "windows" ? ["SIGINT"] as const : ["SIGINT", "SIGTERM"] as const) {
  Deno.addSignalListener(name, stop);
}

try {
  await keepStarted(start, {
    onLost(reason, restMs) {
      metrics.restarts.add(1);
      onError(new Error(`The engine was lost; it is loaded again in ${restMs} ms`, { cause: reason }));
    },
  });
} catch (error) {
  if (error instanceof RequestError) fail(error.message);
  throw error;
}
