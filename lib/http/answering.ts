/** Runs a question for a route: as one object or as a stream, until it is answered or nobody waits for it any more. */

import type { Context } from "hono";
import { sha256 } from "../digest.ts";
import { RequestError } from "../errors.ts";
import { collect, type LocalPipeline } from "../pipeline.ts";
import type { Answer, AnswerEvent, ModelInfo, Question } from "../types.ts";
import type { Env } from "./guard/exchange.ts";
import { HttpError, type Problem } from "./problem.ts";
import { MemoryRecordings, Recording, type Recordings } from "./recording.ts";
import { eventStream, lastEventId, type ServerEvent, within } from "./sse.ts";

/** Events kept for clients that come back, and how long. */
const RECORDED_BYTES = 16 * 1024 * 1024;
const RECORDED_MS = 5 * 60_000;

/** What answers are made with. */
export interface AnsweringParts {
  pipeline(): LocalPipeline | undefined;
  readonly stopping?: AbortSignal;
  readonly heartbeatMs: number;
  /** Where events are kept for clients that come back; this process's memory by default. */
  readonly recordings?: Recordings;
  /** An error as the client is told; ours are logged on the way. */
  problemOf(error: unknown): Problem;
}

/** The events of an answer, perhaps fewer: `enough` asks it to end. */
export type Until = (events: AsyncIterable<AnswerEvent>, enough: () => void) => AsyncIterable<AnswerEvent>;

/** How a route writes an answer on the wire. */
export interface Wire {
  /** What its events depend on besides the question. */
  readonly key: string;
  readonly until?: Until;
  write(answer: AsyncIterable<AnswerEvent>, pipeline: LocalPipeline): AsyncGenerator<ServerEvent>;
  failed(problem: Problem): ServerEvent;
}

type Asking = Context<Env>;

/** The answers of one server. */
export class Answering {
  readonly #recordings: Recordings;

  constructor(private readonly parts: AnsweringParts) {
    this.#recordings = parts.recordings ?? new MemoryRecordings(RECORDED_BYTES, RECORDED_MS);
  }

  /**
   * The loaded model.
   *
   * @throws {HttpError} `unavailable` while there is none, or the server stops.
   */
  pipeline(): LocalPipeline {
    const pipeline = this.parts.pipeline();
    if (!pipeline) throw unavailable("the model is still loading");
    if (this.parts.stopping?.aborted) throw unavailable("the server is stopping");
    return pipeline;
  }

  /** What is loaded, if anything. */
  models(): ModelInfo[] {
    const { model } = this.parts.pipeline() ?? {};
    return model ? [model] : [];
  }

  /** A whole answer. */
  async whole(c: Asking, question: Question, until: Until = (events) => events): Promise<Answer> {
    return await this.run(c, async (pipeline, signal, stop) => {
      const answer = await collect(until(pipeline.answer(question, signal), stop));
      if (answer.finishReason === "cancelled") throw new RequestError("cancelled", "The caller went away");
      return answer;
    });
  }

  /** Anything that ends when the client goes away or the server stops. */
  async run<T>(
    c: Asking,
    work: (pipeline: LocalPipeline, signal: AbortSignal, stop: () => void) => Promise<T>,
  ): Promise<T> {
    const pipeline = this.pipeline();
    const request = new AbortController();
    const unlink = follow(request, [c.req.raw.signal, this.parts.stopping]);
    try {
      const working = work(pipeline, request.signal, () => request.abort());
      c.env?.waitUntil?.(working.catch(() => {}));
      return await working;
    } catch (error) {
      if (this.parts.stopping?.aborted) throw unavailable("the server is stopping");
      throw error;
    } finally {
      unlink();
    }
  }

  /**
   * An answer as server-sent events, from the beginning or, where the request has a `Last-Event-ID`, after it; 204 when
   * there is nothing after it. What is wrong with the question is thrown, while there is still a status to say it with.
   */
  async stream(c: Asking, question: Question, wire: Wire): Promise<Response> {
    const last = lastEventId(c.req.header("last-event-id"));
    const from = last === undefined ? 0 : last + 1;
    const key = await keyOf(c, question, wire);
    const known = from > 0 ? await this.#recordings.find(key, from) : undefined;
    const reading = known ?? this.#record(c, key, question, wire).join();
    const exchange = c.get("exchange");
    const { signal } = c.req.raw;
    const left = () => {
      signal.removeEventListener("abort", left);
      const told = Promise.resolve(reading.leave());
      c.env?.waitUntil?.(told);
      exchange.end();
    };
    signal.addEventListener("abort", left);
    if (signal.aborted) left();
    try {
      const first = await within(this.parts.heartbeatMs, reading.frame(from));
      if (first === undefined) {
        left();
        return new Response(null, { status: 204 });
      }
    } catch (error) {
      left();
      throw error;
    }
    exchange.streaming = true;
    const failed = (error: unknown) => wire.failed(this.parts.problemOf(error));
    const body = eventStream(reading, { from, heartbeatMs: this.parts.heartbeatMs, failed, leave: left });
    return new Response(body, {
      headers: {
        "content-type": "text/event-stream; charset=utf-8",
        "cache-control": "no-store",
        "x-accel-buffering": "no", // nginx would hold the tokens back
      },
    });
  }

  #record(c: Asking, key: string, question: Question, wire: Wire): Recording {
    const pipeline = this.pipeline();
    const request = new AbortController();
    const unlink = follow(request, [this.parts.stopping]);
    const stop = () => request.abort();
    const { until = (events) => events } = wire;
    const events = pipeline.answer(question, request.signal);
    const answer = until(putDown(c, events), stop);
    const recording = new Recording(wire.write(answer, pipeline), stop);
    recording.ended.then(unlink);
    const kept = this.#recordings.keep(key, recording);
    c.env?.waitUntil?.(kept);
    return recording;
  }
}

/** The same events; a platform that drops a request's work with its connection waits until nothing is under way. */
async function* putDown(c: Asking, events: AsyncIterable<AnswerEvent>): AsyncGenerator<AnswerEvent, void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  c.env?.waitUntil?.(promise);
  try {
    yield* events;
  } finally {
    resolve();
  }
}

/**
 * What tells an answer from another: the caller, the route, the question and its pictures, not when it is wanted. The same
 * key means the same events.
 */
async function keyOf(
  c: Asking,
  { images, budget: _, arrivedAt: __, ...question }: Question,
  wire: Wire,
): Promise<string> {
  const pictures = await Promise.all(images.map(async (it) => (await sha256(it)).toHex()));
  const asked = JSON.stringify([c.get("exchange").caller, c.req.path, wire.key, question, pictures]);
  return (await sha256(asked)).toHex();
}

function unavailable(why: string): HttpError {
  return new HttpError({ code: "unavailable", message: `Cannot answer now: ${why}` });
}

/**
 * Aborts `controller` when one of `signals` does, until the function given back is called. `AbortSignal.any` would
 * keep something of every answer alive for as long as the server's own signal lives.
 */
function follow(controller: AbortController, signals: readonly (AbortSignal | undefined)[]): () => void {
  function abort(this: AbortSignal) {
    controller.abort(this.reason);
  }
  for (const signal of signals) {
    if (signal?.aborted) controller.abort(signal.reason);
    else signal?.addEventListener("abort", abort, { once: true });
  }
  return () => signals.forEach((signal) => signal?.removeEventListener("abort", abort));
}
