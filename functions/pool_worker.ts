/** A worker of a pool: loads a model, takes work from NATS, streams tokens back. Settings stand in settings.ts. */

import { resolve } from "@std/path";
import { createLog } from "../lib/http/guard/log.ts";
import { createWorkerMetrics, exposition } from "../lib/metrics.ts";
import { RequestError } from "../lib/mod.ts";
import { NatsWorker } from "../lib/pool/nats_worker.ts";
import { trialWork } from "../lib/pool/serving.ts";
import { createVerify } from "../lib/pool/signature.ts";
import { loadEngine, TINY } from "./model.ts";
import { connectBroker, trustedKeys } from "./pool.ts";
import { type PoolSettings, readSettings, type Settings } from "./settings.ts";

/** Running answers get this long to end after a signal; then they go on elsewhere. */
const GRACE_MS = 20_000;

const write = (to: typeof Deno.stdout, text: string) =>
  void to.writeSync(new TextEncoder().encode(text + "\n"));

function fail(message: string): never {
  write(Deno.stderr, message);
  Deno.exit(1);
}

function settingsOrFail(): Settings & { pool: PoolSettings } {
  try {
    const { pool, ...settings } = readSettings((name) => Deno.env.get(name));
    if (pool) return { ...settings, pool };
    throw new RangeError("expected POOL_URL, such as nats://localhost:4222");
  } catch (error) {
    if (error instanceof RequestError || error instanceof RangeError) {
      fail(`Cannot serve a pool: ${error.message}`);
    }
    throw error;
  }
}

const { pool, port, model: directory = TINY, backend, threads, logLevel } = settingsOrFail();
const log = createLog(logLevel, (line) => write(Deno.stderr, line));
const onError = (error: unknown) => log("error", "failure", { error });
const metrics = createWorkerMetrics();
let worker: NatsWorker | undefined;

/** 200 as long as work is taken. */
function health(): Response {
  const load = worker?.serving.load();
  return Response.json({ status: worker ? "ok" : "unavailable", worker: worker?.worker, ...load }, {
    status: worker ? 200 : 503,
  });
}

function respond(request: Request): Response {
  const { pathname } = new URL(request.url);
  if (pathname === "/health") return health();
  if (pathname !== "/metrics") return new Response("There is /health and /metrics\n", { status: 404 });
  return new Response(exposition(metrics), { headers: { "content-type": "text/plain; version=0.0.4" } });
}

function serveOrFail() {
  try {
    return Deno.serve({ port, onListen() {} }, respond);
  } catch (error) {
    if (!(error instanceof Deno.errors.AddrInUse)) throw error;
    return fail(`Cannot tell health on port ${port}: something else is there. PORT=0 takes any.`);
  }
}

const http = serveOrFail();
try {
  const verify = await createVerify(await trustedKeys(pool));
  const engine = await loadEngine(resolve(directory), { backend, threads, onError });
  const connection = await connectBroker(pool, "worker");
  worker = new NatsWorker(connection, {
    engine,
    model: engine.shape,
    capacity: pool,
    verify,
    metrics,
    onError,
  });
  await Array.fromAsync(worker.serving.submit(trialWork(engine.shape)));
  write(
    Deno.stdout,
    `Worker ${worker.worker} of ${engine.revision} takes work from ${pool.url}; health at http://localhost:${http.addr.port}/health. Ctrl-C stops it.`,
  );
} catch (error) {
  if (error instanceof RequestError) fail(error.message);
  throw error;
}

async function stop(): Promise<void> {
  const leaving = worker;
  if (!leaving) Deno.exit(0); // a second signal does not wait
  worker = undefined;
  await leaving.leave(GRACE_MS);
  Deno.exit(0);
}
for (const name of Deno.build.os === "windows" ? ["SIGINT"] as const : ["SIGINT", "SIGTERM"] as const) {
  Deno.addSignalListener(name, stop);
}
