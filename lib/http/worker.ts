/** Turns a browser's tab into a worker of the pool: the page, what computes in it, and the model it computes with. */

import { Hono } from "hono";
import type { TrustedKey } from "../pool/signature.ts";
import type { ModelFiles } from "../types.ts";
import type { Env } from "./guard/exchange.ts";
import { servePage } from "./page.ts";
import { HttpError } from "./problem.ts";
import page from "./worker.html" with { type: "text" };

/** What a tab joins with; the answer of `GET /worker/start`. */
export interface WorkerStart {
  /** The broker's address for browsers, `wss:` or `ws:`. */
  readonly broker: string;
  /** The public keys whose work is taken. */
  readonly trusted: readonly TrustedKey[];
}

/** What a door gives the routes. */
export interface WorkerPageParts extends WorkerStart {
  readonly files: ModelFiles;
  /** The module that runs in the tab, and everything it imports. */
  script(): Promise<Uint8Array<ArrayBuffer>>;
  /** The kernels, `simd` and `relaxed`. */
  kernels(build: "simd" | "relaxed"): Promise<Uint8Array<ArrayBuffer>>;
}

/** What a model is made of; whatever else lies in its directory is nobody's business. */
const FILE = /^[\w.-]+\.(json|model|safetensors)$/;
/** What is read of a file at once, bytes. */
const BLOCK_BYTES = 1 << 20;

/** `GET /worker` and what its page asks for. */
export function workerRoutes(parts: WorkerPageParts): Hono<Env> {
  const { broker, trusted, files } = parts;
  const routes = new Hono<Env>();
  routes.get("/worker", (c) => servePage(c, page, "worker-src 'self'"));
  routes.get("/worker/tab.js", async (c) =>
    c.body(await parts.script(), 200, {
      "content-type": "text/javascript",
      "cache-control": "no-cache",
      // A worker's script has a policy of its own: it compiles kernels, and talks to this server and the broker.
      "content-security-policy":
        `default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; connect-src 'self' ${
          new URL(broker).origin
        }`,
    }));
  routes.get(
    "/worker/kernels/:build{simd|relaxed}",
    async (c) =>
      c.body(await parts.kernels(c.req.param("build") as "simd" | "relaxed"), 200, {
        "content-type": "application/wasm",
        "cache-control": "no-cache",
      }),
  );
  routes.get("/worker/start", (c) => c.json({ broker, trusted } satisfies WorkerStart));
  routes.get("/worker/files", async (c) => {
    const names = (await files.list()).filter((it) => FILE.test(it));
    return c.json(await Promise.all(names.map(async (name) => ({ name, size: await files.size(name) }))));
  });
  routes.get("/worker/files/:name", async (c) => {
    const name = c.req.param("name");
    const size = FILE.test(name) ? await files.size(name) : undefined;
    if (size === undefined) {
      throw new HttpError({ code: "not_found", message: `Cannot read ${name}: the model has no such file` });
    }
    const asked = c.req.header("range");
    const range = asked === undefined ? [0, size] as const : rangeOf(asked, size);
    const headers = { "content-type": "application/octet-stream", "accept-ranges": "bytes" };
    if (!range) return c.body(null, 416, { ...headers, "content-range": `bytes */${size}` });
    const [start, end] = range;
    return c.body(blocks(files, name, start, end), asked === undefined ? 200 : 206, {
      ...headers,
      "content-length": `${end - start}`,
      ...asked !== undefined && { "content-range": `bytes ${start}-${end - 1}/${size}` },
    });
  });
  return routes;
}

/** Bytes [start, end) of one range (RFC 9110, 14.1.2), which is all that a tab asks for; undefined for what is none. */
function rangeOf(header: string, size: number): readonly [start: number, end: number] | undefined {
  const [, first, last] = /^bytes=(\d{1,15})-(\d{0,15})$/.exec(header) ?? [];
  if (first === undefined) return undefined;
  const [start, end] = [Number(first), last ? Math.min(size, Number(last) + 1) : size];
  return start < end ? [start, end] : undefined;
}

/** A part of a file, read as it is taken. */
function blocks(files: ModelFiles, name: string, start: number, end: number): ReadableStream<Uint8Array> {
  let at = start;
  return new ReadableStream({
    async pull(controller) {
      const to = Math.min(end, at + BLOCK_BYTES);
      if (at < to) controller.enqueue(await files.read(name, at, to));
      at = to;
      if (at === end) controller.close();
    },
  }, { highWaterMark: 0 });
}
