/**
 * A worker of a pool in a browser's tab, as a worker of the page `GET /worker`: neither the page's drawing nor a tab in
 * the background holds it up there. `worker_page.ts` makes one script of it.
 */

import { nkeyAuthenticator, wsconnect } from "@nats-io/nats-core";
import { createWasmBackend } from "../lib/backend/wasm.ts";
import { createWebgpuBackend } from "../lib/backend/webgpu.ts";
import type { Backend } from "../lib/backend/backend.ts";
import { openEngine } from "../lib/engine.ts";
import type { WorkerStart } from "../lib/http/worker.ts";
import { createWorkerMetrics } from "../lib/metrics.ts";
import { INBOX } from "../lib/pool/exchange.ts";
import { NatsWorker } from "../lib/pool/nats_worker.ts";
import type { Pool } from "../lib/pool/pool.ts";
import { trialWork } from "../lib/pool/serving.ts";
import { createVerify } from "../lib/pool/signature.ts";
import type { ModelFiles } from "../lib/types.ts";

/** What the page says: to begin, or to end what was begun and leave. */
export type Order =
  | {
    readonly do: "join";
    /** The seed that the broker knows workers by. */
    readonly nkey: string;
    /** Where the server wants one. */
    readonly apiKey?: string;
    /** The GPU where there is one, or as said. */
    readonly compute: "auto" | "webgpu" | "wasm";
  }
  | { readonly do: "leave" };

/** What the page is told. */
export interface Report {
  readonly state: "loading" | "working" | "left" | "failed";
  /** Why it failed, or what went wrong last. */
  readonly reason?: string;
  /** Bytes of the model that are here. */
  readonly loaded: number;
  /** What computes. */
  readonly backend: string;
  readonly answers: number;
  readonly tokens: number;
  readonly active: number;
  readonly waiting: number;
  /** Of one answer alone. */
  readonly tokensPerSecond: number;
}

/** Answers at once, and those that may wait. */
const CAPACITY = { maxActive: 4, maxWaiting: 4 };
/** After the button was pressed, answers get this long to end; then they go on elsewhere. */
const GRACE_MS = 20_000;
const RECONNECT_MS = 200;
const REPORT_MS = 250;
const TRIES = 3;

const page = self as unknown as {
  onmessage: (message: { data: Order }) => void;
  postMessage(report: Report): void;
  location: Location;
  close(): void;
};

let report: Report = {
  state: "loading",
  loaded: 0,
  backend: "",
  answers: 0,
  tokens: 0,
  active: 0,
  waiting: 0,
  tokensPerSecond: 0,
};
let leave: (() => Promise<void>) | undefined;

function tell(news: Partial<Report>): void {
  report = { ...report, ...news };
  page.postMessage(report);
}

/** Asks the server that the page came from. */
async function get(path: string, apiKey?: string, range?: string): Promise<Response> {
  const response = await fetch(new URL(path, page.location.href), {
    headers: { ...apiKey && { authorization: `Bearer ${apiKey}` }, ...range !== undefined && { range } },
  });
  if (response.ok) return response;
  const { detail = response.statusText } = await response.json().catch(() => ({}));
  throw new Error(`Cannot get ${path}: ${response.status}, ${detail}`);
}

/** The model as the server gives it, by ranges. */
async function remoteFiles(apiKey?: string): Promise<ModelFiles> {
  const list: { name: string; size: number }[] = await (await get("files", apiKey)).json();
  const sizes = new Map(list.map(({ name, size }) => [name, size]));
  return {
    place: new URL("files", page.location.href).href,
    list: () => Promise.resolve([...sizes.keys()]),
    size: (name) => Promise.resolve(sizes.get(name)),
    async read(name, start = 0, end = sizes.get(name)!) {
      if (start === end) return new Uint8Array();
      for (let tried = 1;; tried++) {
        try {
          const response = await get(`files/${name}`, apiKey, `bytes=${start}-${end - 1}`);
          const bytes = new Uint8Array(await response.arrayBuffer());
          if (bytes.length !== end - start) {
            throw new Error(`Cannot read ${name}: expected ${end - start} bytes, found ${bytes.length}`);
          }
          tell({ loaded: report.loaded + bytes.length });
          return bytes;
        } catch (error) {
          if (tried === TRIES) throw error;
        }
      }
    },
  };
}

/** The GPU, unless there is none, or a program stands in for it: our kernels are faster than that. */
async function openBackend(compute: "auto" | "webgpu" | "wasm"): Promise<Backend> {
  if (compute !== "wasm" && navigator.gpu) {
    const gpu = await createWebgpuBackend(navigator.gpu).catch((error) => {
      if (compute === "webgpu") throw error;
    });
    if (gpu && (compute === "webgpu" || !gpu.software)) {
      gpu.lost.then((reason) => fail(`The GPU was lost: ${reason}`));
      return gpu;
    }
    gpu?.close();
  }
  if (compute === "webgpu") throw new Error("Cannot open a GPU: this browser has no WebGPU here");
  const module = async (build: string) => await WebAssembly.compileStreaming(get(`kernels/${build}`));
  const simd = await module("simd");
  const relaxed = await module("relaxed").catch(() => undefined); // not every browser has these instructions
  return createWasmBackend({ simd, relaxed });
}

async function join({ nkey, apiKey, compute }: Extract<Order, { do: "join" }>): Promise<void> {
  const { broker, trusted }: WorkerStart = await (await get("start", apiKey)).json();
  const backend = await openBackend(compute);
  tell({ backend: backend.name });
  const engine = await openEngine({ backend, files: await remoteFiles(apiKey) });
  const counted: Pool = {
    async *submit(work, options) {
      for await (const event of engine.submit(work, options)) {
        if (event.type === "token") report = { ...report, tokens: report.tokens + 1 };
        if (event.type === "done" && event.finishReason !== "cancelled") {
          report = { ...report, answers: report.answers + 1 };
        }
        yield event;
      }
    },
  };
  const connection = await wsconnect({
    servers: broker,
    name: "paligemma-edge tab",
    inboxPrefix: INBOX.worker,
    authenticator: nkeyAuthenticator(new TextEncoder().encode(nkey)),
    maxReconnectAttempts: -1,
    reconnectTimeWait: RECONNECT_MS,
    reconnectJitter: RECONNECT_MS,
    ignoreAuthErrorAbort: true,
  });
  const worker = new NatsWorker(connection, {
    engine: counted,
    model: engine.shape,
    capacity: CAPACITY,
    verify: await createVerify(trusted),
    metrics: createWorkerMetrics(),
    onError: (error) => tell({ reason: `${error}` }),
  });
  const news = () => {
    const { active, waiting, tokenMs } = worker.serving.load();
    tell({ active, waiting, tokensPerSecond: tokenMs ? 1000 / tokenMs : 0 });
  };
  // Kernels are compiled when they are first used; whoever asks then is told how long an answer takes.
  await Array.fromAsync(worker.serving.submit(trialWork(engine.shape)));
  tell({ state: "working", answers: 0, tokens: 0 });
  const telling = setInterval(news, REPORT_MS);
  leave = async () => {
    await worker.leave(GRACE_MS);
    clearInterval(telling);
    news();
    tell({ state: "left" });
    page.close();
  };
}

function fail(reason: string): void {
  if (report.state === "left" || report.state === "failed") return;
  tell({ state: "failed", reason });
  page.close();
}

page.onmessage = async ({ data: order }) => {
  try {
    if (order.do === "join") await join(order);
    else await leave?.();
  } catch (error) {
    fail(error instanceof Error ? error.message : `${error}`);
  }
};
