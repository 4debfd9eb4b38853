/** Jobs over HTTP: `/v1/jobs`, their events, and the webhooks that tell of their end (`/v1/letters`). */

import { type Context, Hono } from "hono";
import { sha256 } from "../digest.ts";
import { RequestError } from "../errors.ts";
import type { Job } from "../jobs/job.ts";
import type { JobChange, Jobs } from "../jobs/jobs.ts";
import type { Letter, Webhooks } from "../jobs/webhooks.ts";
import { inTrace } from "../metrics.ts";
import { collect, type LocalPipeline } from "../pipeline.ts";
import { readJson } from "./body.ts";
import { budgetOf } from "./budget.ts";
import type { Env } from "./guard/exchange.ts";
import type { Outbound } from "./outbound.ts";
import { loadPictures } from "./pictures.ts";
import { HttpError, problemOf } from "./problem.ts";
import { readQuestion } from "./question.ts";
import { JOB } from "./job_schemas.ts";
import { read } from "./schema.ts";
import { encodeEvent, frameStream, HEARTBEAT_MS, lastEventId, within } from "./sse.ts";

/** What the routes are made with. */
export interface JobRouteParts {
  readonly jobs: Jobs;
  readonly webhooks: Webhooks;
  /** Checks the addresses of webhooks. */
  readonly outbound: Outbound;
  readonly maxBodyBytes?: number;
  readonly heartbeatMs?: number;
  /** Aborted when the server stops: streams of events end. */
  readonly stopping?: AbortSignal;
}

/** Room for a hundred photos, or a few large ones, in base64. */
export const MAX_JOB_BYTES = 64 * 1024 * 1024;

/**
 * Checks the body of an item as far as that goes without its pictures.
 *
 * @throws {RequestError} naming the field; `place` stands before it.
 */
export function checkItem(item: Readonly<Record<string, unknown>>, place: string): void {
  try {
    const { stream } = readQuestion(fieldsOf(item));
    if (!stream) return;
  } catch (error) {
    const { code, message, field } = problemOf(error);
    if (code === "internal") throw error;
    throw new HttpError({ code, message: `${place}: ${message}`, field: field && `${place}.${field}` });
  }
  throw new RequestError("parameter_invalid", `Cannot read ${place}: expected no stream, found true`);
}

/** How an item of a job is answered: as `/v1/generate` would. */
export function itemWork(pipelineOf: () => LocalPipeline | undefined, outbound: Outbound) {
  return async (
    item: unknown,
    signal: AbortSignal,
    { createdAt, traceparent }: Pick<Job, "createdAt" | "traceparent">,
  ): Promise<unknown> => {
    const pipeline = pipelineOf();
    if (!pipeline) throw new RequestError("overloaded", "Cannot answer now: the model is still loading");
    const { question, pictures } = readAgain(item as Record<string, unknown>);
    const images = await loadPictures(pictures, outbound, { signal });
    const timed = { images, ...question, ...question.budget && { arrivedAt: createdAt } };
    const events = pipeline.answer(timed, signal);
    const answer = await inTrace(traceparent, () => collect(events));
    if (answer.finishReason === "cancelled") throw new RequestError("cancelled", "The job was stopped");
    return { model: pipeline.model.name, ...answer };
  };
}

/** Reads what was checked when it came, perhaps by an older server with other rules. */
function readAgain(item: Readonly<Record<string, unknown>>) {
  try {
    return readQuestion(fieldsOf(item));
  } catch (error) {
    if (error instanceof HttpError) {
      throw new RequestError("parameter_invalid", error.message, { cause: error });
    }
    throw error;
  }
}

function fieldsOf(item: Readonly<Record<string, unknown>>) {
  return { kind: "json", values: new Map(Object.entries(item)) } as const;
}

/** The routes. */
export function jobRoutes(parts: JobRouteParts): Hono<Env> {
  const { jobs, webhooks, outbound, maxBodyBytes = MAX_JOB_BYTES, heartbeatMs = HEARTBEAT_MS, stopping } =
    parts;
  const routes = new Hono<Env>();

  routes.post("/v1/jobs", async (c) => {
    const body = await readJson(c.req.raw, maxBodyBytes);
    const { items: own, webhook } = read(JOB, body);
    const { budget } = budgetOf(c);
    // A budget in headers is that of every item that has none.
    const items = budget ? own.map((it) => ({ budget, ...it })) : own;
    for (const [i, item] of items.entries()) checkItem(item, `items[${i}]`);
    if (webhook) outbound.check(webhook.url);
    const { owner, traceparent } = c.get("exchange");
    const key = idempotencyKey(c);
    const job = await jobs.create({
      owner,
      items,
      webhook,
      traceparent,
      ...key !== undefined && { idempotency: { key, digest: (await sha256(JSON.stringify(body))).toHex() } },
    });
    return c.json(job, 202, { location: `/v1/jobs/${job.id}`, ...UNCACHED });
  });

  routes.get("/v1/jobs/:id", async (c) => {
    return c.json(await jobs.get(c.req.param("id"), ownerOf(c)) ?? unknown(c, "job"), 200, UNCACHED);
  });

  routes.delete("/v1/jobs/:id", async (c) => {
    return c.json(await jobs.cancel(c.req.param("id"), ownerOf(c)) ?? unknown(c, "job"), 200, UNCACHED);
  });

  routes.get("/v1/jobs/:id/events", async (c) => {
    const id = c.req.param("id");
    const job = await jobs.get(id, ownerOf(c)) ?? unknown(c, "job");
    const gone = new AbortController();
    const leave = () => gone.abort();
    const signals = [c.req.raw.signal, ...stopping ? [stopping] : []];
    for (const signal of signals) signal.addEventListener("abort", leave, { once: true });
    // The id of an event is its revision; where the client has none, it lies below all.
    const seen = lastEventId(c.req.header("last-event-id")) ?? -1;
    const changes = jobs.watch(job.id, seen, gone.signal, ownerOf(c));
    const end = () => {
      for (const signal of signals) signal.removeEventListener("abort", leave);
      leave();
      exchange.end();
    };
    const exchange = c.get("exchange");
    let first: ReturnType<typeof changes.next> | undefined = changes.next();
    const early = await within(heartbeatMs, first);
    // Nothing follows what the client has: it need not come back.
    if (early !== "late" && early.done) {
      end();
      return c.body(null, 204);
    }
    exchange.streaming = true;
    const next = async () => {
      const change = first ?? changes.next();
      first = undefined;
      return frameOf(await change);
    };
    return c.body(frameStream(next, { heartbeatMs, leave: end }), 200, {
      "content-type": "text/event-stream; charset=utf-8",
      "x-accel-buffering": "no",
      ...UNCACHED,
    });
  });

  routes.get("/v1/letters", async (c) => {
    const status = c.req.query("status");
    const known = ["pending", "delivered", "dead"] as const;
    const wanted = known.find((it) => it === status);
    if (status !== undefined && !wanted) {
      throw new RequestError(
        "parameter_invalid",
        `Cannot read status: expected ${known.join(" or ")}, found another`,
      );
    }
    const letters: Letter[] = await Array.fromAsync(webhooks.list(wanted, ownerOf(c)));
    return c.json({ letters: letters.sort((a, b) => a.createdAt - b.createdAt) }, 200, UNCACHED);
  });

  routes.post("/v1/letters/:id/send", async (c) => {
    const letter = await webhooks.sendAgain(c.req.param("id"), ownerOf(c));
    return c.json(letter ?? unknown(c, "letter"), 202, UNCACHED);
  });

  return routes;
}

function ownerOf(c: Context<Env>): string | undefined {
  return c.get("exchange").owner;
}

const UNCACHED = { "cache-control": "no-store" };

function unknown(c: Context, what: string): never {
  throw new HttpError({
    code: "not_found",
    message: `Cannot ${c.req.method} ${c.req.path}: there is no such ${what}`,
  });
}

function idempotencyKey(c: Context): string | undefined {
  const key = c.req.header("idempotency-key");
  if (key === undefined || /^[\x21-\x7e]{1,255}$/.test(key)) return key;
  throw new RequestError(
    "parameter_invalid",
    "Cannot read Idempotency-Key: expected 1 to 255 visible ASCII characters",
  );
}

/** A change as an SSE event; its id is the job's revision. Undefined after the last. */
function frameOf({ done, value }: IteratorResult<JobChange, void>): Uint8Array | undefined {
  if (done) return undefined;
  const { revision, event, data } = value;
  return new TextEncoder().encode(
    encodeEvent({ id: String(revision), event, data: JSON.stringify(data) }),
  );
}
