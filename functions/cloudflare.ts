/** The Worker on Cloudflare. Settings are the Worker's variables and secrets, by the names of settings.ts. */

import { resolve4, resolve6 } from "node:dns/promises";
import { createApp } from "../lib/http/app.ts";
import { createLog } from "../lib/http/guard/log.ts";
import { createOutbound, type Network } from "../lib/http/outbound.ts";
import { createMetrics } from "../lib/metrics.ts";
import { createPipeline, createWasmBackend, type LocalPipeline, type ModelFiles } from "../lib/mod.ts";
import { relaxed, simd } from "../wasm/kernels.js";
import { readSettings } from "./settings.ts";
import tiny from "./tiny.js";

/** What an isolate of 128 MB leaves room for, beside the bundled model. */
const ROOM = { maxPixels: 4_000_000, maxWaiting: 32, prefixCacheBytes: 4 * 2 ** 20 };
const MAX_BODY_BYTES = 16 * 2 ** 20;

/** The Worker's variables, secrets and bindings. */
interface Env {
  readonly [name: string]: unknown;
}

/** What outlives a request's connection. */
interface Context {
  waitUntil(work: Promise<unknown>): void;
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
  const { logLevel, allowPrivateUrls, apiKeys, limits, origins } = readSettings((name) => {
    const value = env[name];
    return typeof value === "string" ? value : undefined;
  });
  // deno-lint-ignore no-console -- where a Worker's log goes
  const log = createLog(logLevel, (line) => console.log(line));
  const metrics = createMetrics();
  const pipeline: LocalPipeline = await createPipeline({
    backend: createWasmBackend({ simd, relaxed }),
    files: bundled,
    name: "tiny",
    metrics,
    ...ROOM,
  });
  return createApp({
    pipeline: () => pipeline,
    maxBodyBytes: MAX_BODY_BYTES,
    outbound: createOutbound(network, { allowPrivate: allowPrivateUrls }),
    metrics,
    log,
    apiKeys,
    limits,
    origins,
  });
}

/** Made by the first request: a Worker may not read or compute anything before there is one. */
let app: ReturnType<typeof open> | undefined;

/** The next request tries again. */
function forget(error: unknown): never {
  app = undefined;
  throw error;
}

export default {
  async fetch(request: Request, env: Env, context: Context): Promise<Response> {
    context.waitUntil(app ??= open(env).catch(forget));
    return (await app).fetch(request, { waitUntil: (work) => context.waitUntil(work) });
  },
};
