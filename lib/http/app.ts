/** The routes. One app for every door; what differs between platforms is passed in. */

import { type Context, Hono } from "hono";
import { RequestError } from "../errors.ts";
import { collect, type Pipeline } from "../pipeline.ts";
import type { Answer, Question } from "../types.ts";
import { readFields } from "./body.ts";
import page from "./playground.html" with { type: "text" };
import { problemOf, problemResponse } from "./problem.ts";
import { readQuestion } from "./question.ts";
import { eventStream } from "./sse.ts";

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
  pipeline(): Pipeline | undefined;
  /** Longest request body, bytes. */
  readonly maxBodyBytes?: number;
  /** Aborted when the server stops: running answers end, new ones are refused. */
  readonly stopping?: AbortSignal;
  readonly samples?: readonly Sample[];
  /** Told every error that is not the caller's. */
  onError?(error: unknown): void;
}

/** Room for a 20 MB photo in base64, and to spare. */
const MAX_BODY_BYTES = 32 * 1024 * 1024;

/** The service: `/v1/generate`, `/v1/models`, `/health` and the page at `/`. */
export function createApp(parts: AppParts): Hono {
  const { maxBodyBytes = MAX_BODY_BYTES, stopping, samples = [] } = parts;

  function tell(error: unknown) {
    const problem = problemOf(error);
    if (problem.code === "internal") parts.onError?.(error);
    return problem;
  }

  async function generate(c: Context): Promise<Response> {
    const pipeline = parts.pipeline();
    if (!pipeline) return unavailable("the model is still loading");
    if (stopping?.aborted) return unavailable("the server is stopping");
    const { question, stream = asksForEvents(c) } = readQuestion(await readFields(c.req.raw, maxBodyBytes));
    const request = new AbortController();
    const unlink = follow(request, [c.req.raw.signal, ...stopping ? [stopping] : []]);
    if (stream) return await streamed(pipeline, question, request, unlink);
    try {
      const answer = await collect(pipeline.answer(question, request.signal));
      if (answer.finishReason === "cancelled") {
        if (stopping?.aborted) return unavailable("the server is stopping");
        throw new RequestError("cancelled", "Cannot answer: the client went away");
      }
      return c.json(answerBody(answer, pipeline), 200, { "cache-control": "no-store" });
    } finally {
      unlink();
    }
  }

  async function streamed(
    pipeline: Pipeline,
    question: Question,
    request: AbortController,
    unlink: () => void,
  ) {
    try {
      const events = pipeline.answer(question, request.signal)[Symbol.asyncIterator]();
      // What is wrong with the question shows here, while there is still a status to say it with.
      const first = await events.next();
      const body = eventStream(first, events, { problemOf: tell, stop: () => request.abort(), end: unlink });
      return new Response(body, {
        headers: {
          "content-type": "text/event-stream; charset=utf-8",
          "cache-control": "no-store",
          "x-accel-buffering": "no", // nginx would hold the tokens back
        },
      });
    } catch (error) {
      unlink();
      throw error;
    }
  }

  const app = new Hono();
  app.use(async (c, next) => {
    await next();
    c.header("x-content-type-options", "nosniff");
    c.header("referrer-policy", "no-referrer");
  });
  app.onError((error) => problemResponse(tell(error)));
  app.notFound((c) =>
    problemResponse({
      code: "not_found",
      message: `Cannot ${c.req.method} ${c.req.path}: there is no such route`,
    })
  );

  app.post("/v1/generate", generate);
  app.get("/v1/models", (c) => {
    const model = parts.pipeline()?.model;
    return c.json({
      object: "list",
      data: model ? [{ id: model.name, object: "model", owned_by: "local", ...model }] : [],
    });
  });
  app.get("/health", (c) => {
    const model = parts.pipeline()?.model;
    if (stopping?.aborted) return unavailable("the server is stopping");
    return model ? c.json({ status: "ok", model }) : unavailable("the model is still loading");
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
  app.get("/", (c) => {
    const nonce = crypto.randomUUID();
    c.header("content-security-policy", policy(nonce));
    c.header("cache-control", "no-cache");
    return c.html(page.replaceAll("{nonce}", nonce));
  });
  // Whatever method is left on a route that exists.
  for (const path of new Set(app.routes.map((it) => it.path).filter((it) => it !== "/*"))) {
    const allow = path === "/v1/generate" ? "POST" : "GET, HEAD";
    app.all(path, (c) => {
      const message = `Cannot ${c.req.method} ${c.req.path}: expected ${allow}`;
      return problemResponse({ code: "method_not_allowed", message }, { allow });
    });
  }
  return app;
}

/** Only what the page itself needs: its own script and style, pictures it made or was given, its own server. */
function policy(nonce: string): string {
  return `default-src 'none'; script-src 'nonce-${nonce}'; style-src 'nonce-${nonce}'; img-src 'self' blob: data:; ` +
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
}

function unavailable(why: string): Response {
  return problemResponse({ code: "unavailable", message: `Cannot answer now: ${why}` });
}

function asksForEvents(c: Context): boolean {
  return /\btext\/event-stream\b/i.test(c.req.header("accept") ?? "");
}

function answerBody(answer: Answer, { model }: Pipeline) {
  return {
    model: model.name,
    text: answer.text,
    tokenIds: answer.tokenIds,
    items: answer.items,
    plainText: answer.plainText,
    brokenItems: answer.brokenItems,
    finishReason: answer.finishReason,
    usage: {
      imageTokens: answer.imageTokens,
      promptTokens: answer.promptTokenIds.length,
      completionTokens: answer.tokenIds.length,
    },
    timings: answer.timings,
  };
}

/**
 * Aborts `controller` when one of `signals` does, until the function given back is called. `AbortSignal.any` would
 * keep something of every answer alive for as long as the server's own signal lives.
 */
function follow(controller: AbortController, signals: readonly AbortSignal[]): () => void {
  function abort(this: AbortSignal) {
    controller.abort(this.reason);
  }
  for (const signal of signals) {
    if (signal.aborted) controller.abort(signal.reason);
    else signal.addEventListener("abort", abort, { once: true });
  }
  return () => signals.forEach((signal) => signal.removeEventListener("abort", abort));
}
