/** The app: what every request goes through, and the rooms of routes behind it. One for every door. */

import { Hono } from "hono";
import { cors } from "hono/cors";
import { createMetrics, exposition, type Metrics } from "../metrics.ts";
import type { LocalPipeline } from "../pipeline.ts";
import type { Memory } from "../types.ts";
import { Answering } from "./answering.ts";
import { type Env, exchanges } from "./guard/exchange.ts";
import { apiKeys } from "./guard/keys.ts";
import { type CallerLimits, callerLimits } from "./guard/limits.ts";
import type { Log } from "./guard/log.ts";
import { isSigned } from "./hooks.ts";
import { embeddingRoutes } from "./native/embeddings.ts";
import { nativeRoutes } from "./native/routes.ts";
import { openAiRoutes } from "./openai/routes.ts";
import type { Operation } from "./openapi/document.ts";
import { openApiRoutes } from "./openapi/routes.ts";
import type { Outbound } from "./outbound.ts";
import { servePage } from "./page.ts";
import page from "./playground.html" with { type: "text" };
import { type Problem, problemOf, problemResponse } from "./problem.ts";
import type { Recordings } from "./recording.ts";
import { HEARTBEAT_MS } from "./sse.ts";

/** A picture the page offers to those who have none at hand. */
export interface Sample {
  /** File name, unique; it is also the end of the picture's address. */
  readonly name: string;
  /** A question that suits it. */
  readonly prompt: string;
  /** Media type. */
  readonly type: string;
  /** Encoded picture. */
  readonly bytes: Uint8Array<ArrayBuffer>;
}

/** What a door gives the app. */
export interface AppParts {
  /** The loaded model, or undefined while there is none. */
  pipeline(): LocalPipeline | undefined;
  /** Longest request body, bytes. */
  readonly maxBodyBytes?: number;
  /** Aborted when the server stops: running answers end, new ones are refused. */
  readonly stopping?: AbortSignal;
  readonly samples?: readonly Sample[];
  /** How pictures behind URLs are fetched; without it they are refused. */
  readonly outbound?: Outbound;
  /** Other rooms' routes, behind the same guard. What they throw is answered as everything else is. */
  readonly rooms?: readonly Hono<Env>[];
  /** What those routes do, for the API's document. */
  readonly operations?: readonly Operation[];
  /** Keys that open `/v1` and `/metrics`, as `apiKeys` takes them; none, the default, leaves them open. */
  readonly apiKeys?: readonly string[];
  readonly limits?: Partial<CallerLimits>;
  /** Origins whose pages may call the API, or `*`; none by default. */
  readonly origins?: readonly string[];
  /** Counts this server's requests; the pipeline counts its answers in the same object. */
  readonly metrics?: Metrics;
  /** Looks up those numbers that nobody counts, before they are read. */
  measure?(metrics: Metrics): Promise<void>;
  readonly log?: Log;
  /** Where streams are kept for clients that come back; this process's memory by default. */
  readonly recordings?: Recordings;
  /** Where memory is limited: asked for what bodies take until they are answered. */
  readonly memory?: Memory;
  /** Silence after which a stream sends a comment, milliseconds. */
  readonly heartbeatMs?: number;
}

/** Room for a 20 MB photo in base64, and to spare. */
const MAX_BODY_BYTES = 32 * 1024 * 1024;

/** Of a body, while it is read and until it is answered: its bytes, its text, what the text holds. */
const BODY_COPIES = 3;

/** The service. */
export function createApp(parts: AppParts): Hono<Env> {
  const { stopping, outbound, samples = [], metrics = createMetrics(), log = () => {} } = parts;
  const { maxBodyBytes = MAX_BODY_BYTES, heartbeatMs = HEARTBEAT_MS, origins = [] } = parts;

  function tell(error: unknown): Problem {
    const problem = problemOf(error);
    if (problem.code === "internal") log("error", "failure", { error });
    return problem;
  }

  const answering = new Answering({
    pipeline: parts.pipeline,
    stopping,
    heartbeatMs,
    recordings: parts.recordings,
    problemOf: tell,
  });
  const app = new Hono<Env>();
  const refuse = (c: Parameters<Parameters<typeof app.notFound>[0]>[0], problem: Problem, headers = {}) =>
    problemResponse(problem, { path: c.req.path, requestId: c.get("exchange").id, headers });

  app.use(exchanges({ metrics, log }));
  app.use(async (c, next) => {
    Object.assign(c.get("exchange").headers, {
      "x-content-type-options": "nosniff",
      "referrer-policy": "no-referrer",
    });
    await next();
  });
  if (origins.length) {
    const exposeHeaders = ["x-request-id", "ratelimit", "ratelimit-policy", "retry-after"];
    app.use(
      "/v1/*",
      cors({ origin: origins.includes("*") ? "*" : [...origins], exposeHeaders, maxAge: 600 }),
    );
  }
  if (parts.apiKeys) {
    const keys = apiKeys(parts.apiKeys);
    const guard: typeof keys = (c, next) => isSigned(c.req.method, c.req.path) ? next() : keys(c, next);
    app.use("/v1/*", guard);
    app.use("/metrics", guard);
    app.use("/worker/start", guard);
    app.use("/worker/files/*", guard);
  }
  app.use("/v1/*", callerLimits({ requestsPerMinute: Infinity, concurrent: Infinity, ...parts.limits }));
  const { memory } = parts;
  if (memory) {
    app.use("/v1/*", async (c, next) => {
      const promised = c.req.header("content-length") ?? "";
      const bytes = /^\d+$/.test(promised) ? Math.min(Number(promised), maxBodyBytes) : maxBodyBytes;
      if (c.req.raw.body) {
        const taken = memory.take(BODY_COPIES * bytes, "read the request body");
        c.get("exchange").atEnd.push(() => taken[Symbol.dispose]());
      }
      await next();
    });
  }
  app.onError((error, c) => refuse(c, tell(error)));
  app.notFound((c) => {
    return refuse(c, {
      code: "not_found",
      message: `Cannot ${c.req.method} ${c.req.path}: there is no such route`,
    });
  });

  const rooms = { answering, maxBodyBytes, outbound };
  const own = [
    nativeRoutes(rooms),
    embeddingRoutes(rooms),
    openAiRoutes(rooms),
    openApiRoutes(parts.operations),
  ];
  for (const room of [...own, ...parts.rooms ?? []]) app.route("/", room);

  app.get("/health", (c) => c.json({ status: "ok", model: answering.pipeline().model }));
  app.get("/metrics", async (c) => {
    // What cannot be looked up stays as it was; the others are told all the same.
    await parts.measure?.(metrics).catch((error) => log("error", "failure", { error }));
    return c.body(exposition(metrics), 200, { "content-type": "text/plain; version=0.0.4" });
  });
  app.get("/samples", (c) => {
    return c.json(samples.map((it) => ({
      name: it.name,
      prompt: it.prompt,
      url: `samples/${encodeURIComponent(it.name)}`,
    })));
  });
  app.get("/samples/:name", (c) => {
    const sample = samples.find((it) => it.name === c.req.param("name"));
    return sample ? c.body(sample.bytes, 200, { "content-type": sample.type }) : c.notFound();
  });
  app.get("/", (c) => servePage(c, page));

  // Whatever method is left on a route that exists.
  const methods = Map.groupBy(app.routes.filter((it) => it.method !== "ALL"), (it) => it.path);
  for (const [path, routes] of methods) {
    const known = new Set(routes.map((it) => it.method));
    const allow = [...known, ...known.has("GET") ? ["HEAD"] : []].join(", ");
    app.all(path, (c) => {
      const message = `Cannot ${c.req.method} ${c.req.path}: expected ${allow}`;
      return refuse(c, { code: "method_not_allowed", message }, { allow });
    });
  }
  return app;
}
