/**
 * What is counted while serving, as plain numbers, and the text in which Prometheus reads it (exposition format 0.0.4);
 * and how an answer is counted, whoever asked for it.
 */

import { context, ROOT_CONTEXT, type Span, SpanStatusCode, trace } from "@opentelemetry/api";
import { RequestError } from "./errors.ts";
import type { AnswerEvent, ModelInfo } from "./types.ts";

/** Bounds of latency histograms, seconds: from a cached token to a request that waited long in line. */
const SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60];

/** Different label values a metric keeps apart; more become `other`, so that no caller can grow the memory. */
const MAX_SERIES = 200;

/** A number for each value of its labels. Only ever added to when it is a counter, also set when it is a gauge. */
export class Metric<const L extends readonly string[] = []> {
  readonly #values = new Map<string, number>();

  constructor(
    readonly name: string,
    readonly kind: "counter" | "gauge",
    readonly help: string,
    private readonly labels: L = [] as unknown as L,
  ) {}

  /** Adds to the number of these label values. */
  add(by: number, ...values: { readonly [i in keyof L]: string }): void {
    const key = this.#key(values);
    this.#values.set(key, (this.#values.get(key) ?? 0) + by);
  }

  /** Makes the number of these label values another. */
  set(to: number, ...values: { readonly [i in keyof L]: string }): void {
    this.#values.set(this.#key(values), to);
  }

  /** The number of these label values; 0 when nothing was added. */
  value(...values: string[]): number {
    return this.#values.get(this.#key(values)) ?? 0;
  }

  /** Lines of the exposition. */
  *lines(): Generator<string> {
    yield* head(this);
    if (!this.labels.length) yield `${this.name} ${this.value()}`;
    else for (const [key, value] of this.#values) yield `${this.name}{${key}} ${value}`;
  }

  #key(values: readonly string[]): string {
    const key = this.labels.map((name, i) => `${name}="${escaped(values[i])}"`).join();
    if (this.#values.has(key) || this.#values.size < MAX_SERIES) return key;
    return this.labels.map((name) => `${name}="other"`).join();
  }
}

/** How often a duration fell under each of its bounds. */
export class Histogram {
  readonly #counts: number[];
  #sum = 0;

  constructor(readonly name: string, readonly help: string, readonly bounds: readonly number[] = SECONDS) {
    this.#counts = new Array(bounds.length + 1).fill(0);
  }

  readonly kind = "histogram";

  /** Takes one value, in seconds. */
  observe(value: number): void {
    const at = this.bounds.findIndex((bound) => value <= bound);
    this.#counts[at < 0 ? this.bounds.length : at]++;
    this.#sum += value;
  }

  /** Number of values so far. */
  get count(): number {
    return this.#counts.reduce((sum, it) => sum + it, 0);
  }

  /** Lines of the exposition. */
  *lines(): Generator<string> {
    yield* head(this);
    let below = 0;
    for (const [i, bound] of [...this.bounds, "+Inf"].entries()) {
      yield `${this.name}_bucket{le="${bound}"} ${below += this.#counts[i]}`;
    }
    yield `${this.name}_sum ${this.#sum}`;
    yield `${this.name}_count ${below}`;
  }
}

/** All that is counted. One object a server; a door hands it to the pipeline and to the app. */
export type Metrics = ReturnType<typeof createMetrics>;

/** Numbers at zero. */
export function createMetrics() {
  return {
    requests: new Metric("paligemma_http_requests_total", "counter", "Requests answered.", [
      "route",
      "status",
    ]),
    inFlight: new Metric(
      "paligemma_http_requests_in_flight",
      "gauge",
      "Requests being answered, streams included.",
    ),
    queueDepth: new Metric(
      "paligemma_queue_depth",
      "gauge",
      "Questions being answered or waiting for their turn.",
    ),
    backlog: new Metric(
      "paligemma_backlog",
      "gauge",
      "What is accepted and not done, by all servers of this store: jobs, webhooks.",
      ["kind"],
    ),
    isolate: new Metric(
      "paligemma_isolate_bytes",
      "gauge",
      "Memory of an isolate as its accountant has it: now, most, limit.",
      ["kind"],
    ),
    modelReadSeconds: new Metric(
      "paligemma_model_read_seconds_total",
      "counter",
      "Time in which weights were being read to be streamed.",
    ),
    modelReadBytes: new Metric(
      "paligemma_model_read_bytes_total",
      "counter",
      "Bytes of weights read to be streamed.",
    ),
    tokens: new Metric("paligemma_tokens_total", "counter", "Tokens by kind: image, prompt, completion.", [
      "kind",
    ]),
    features: new Metric(
      "paligemma_feature_cache_total",
      "counter",
      "Pictures whose image tokens were known: hit, miss.",
      [
        "result",
      ],
    ),
    routes: new Metric("paligemma_routes_total", "counter", "Answers by where they were computed.", [
      "route",
    ]),
    detours: new Metric(
      "paligemma_detours_total",
      "counter",
      "Answers, or the rest of them, that a place did not do, by why: they went on elsewhere.",
      ["route", "reason"],
    ),
    plans: new Metric(
      "paligemma_plans_total",
      "counter",
      "Routes that the planner chose, and why.",
      ["route", "reason"],
    ),
    budgets: new Metric(
      "paligemma_budget_total",
      "counter",
      "Latency budgets: met, missed, refused because no route had a chance.",
      ["result"],
    ),
    goodput: new Metric(
      "paligemma_goodput_tokens_total",
      "counter",
      "Completion tokens of answers within their budget, or without one.",
    ),
    predictions: new Metric(
      "paligemma_predictions_total",
      "counter",
      "P95s that answers were sent by: covered, exceeded.",
      ["result"],
    ),
    hedges: new Metric(
      "paligemma_hedges_total",
      "counter",
      "Second routes that were begun besides: won, wasted.",
      ["result"],
    ),
    timeToFirstToken: new Histogram(
      "paligemma_time_to_first_token_seconds",
      "From the question's arrival, with its wait in line, to its first token.",
    ),
    interToken: new Histogram("paligemma_inter_token_seconds", "From one token of an answer to the next."),
    answer: new Histogram(
      "paligemma_answer_seconds",
      "From the question's arrival to the end of its answer.",
    ),
  };
}

/** All that a worker of a pool counts. */
export type WorkerMetrics = ReturnType<typeof createWorkerMetrics>;

/** Numbers at zero. */
export function createWorkerMetrics() {
  return {
    answers: new Metric(
      "paligemma_worker_answers_total",
      "counter",
      "Answers by how they ended: stop, length, cancelled, or the code of a refusal.",
      ["result"],
    ),
    tokens: new Metric("paligemma_worker_tokens_total", "counter", "Tokens given."),
    restarts: new Metric("paligemma_worker_restarts_total", "counter", "Engines that were lost."),
    active: new Metric("paligemma_worker_active", "gauge", "Answers being computed."),
    waiting: new Metric("paligemma_worker_waiting", "gauge", "Answers that wait."),
    timeToFirstToken: new Histogram(
      "paligemma_worker_time_to_first_token_seconds",
      "From the arrival of the whole work, with its wait, to its first token.",
    ),
  };
}

/** Whose answers are counted. */
type Model = Pick<ModelInfo, "name" | "imageTokensPerImage">;

/** What a question took. */
export interface Taken {
  readonly imageTokens: number;
  readonly promptTokens: number;
  readonly completionTokens: number;
  /** Of its pictures, those whose image tokens were known; undefined where nobody looked. */
  readonly known?: number;
}

/**
 * Passes the events of an answer on, counts them, and makes a span of them by OpenTelemetry's conventions for generative
 * models, in the trace in which the first event is asked for. Nothing of the question or the answer is in it.
 *
 * @param metrics where they are counted; nowhere by default.
 */
export async function* observed(
  events: AsyncIterable<AnswerEvent>,
  model: Model,
  metrics = createMetrics(),
): AsyncGenerator<AnswerEvent, void> {
  const since = performance.now();
  const span = startSpan("generate_content", model);
  let last: number | undefined;
  try {
    for await (const event of events) {
      const now = performance.now();
      if (event.type === "token") {
        const waited = last === undefined ? metrics.timeToFirstToken : metrics.interToken;
        waited.observe((now - (last ?? since)) / 1000);
        if (last === undefined) span.addEvent("first_token");
        last = now;
      } else if (event.type === "usage") {
        const { imageTokens, promptTokenIds, completionTokens, cached, route } = event;
        if (route && route.met !== false) metrics.goodput.add(completionTokens);
        const taken = { imageTokens, promptTokens: promptTokenIds.length, completionTokens };
        count({ ...taken, known: cached?.images ?? 0 }, model, metrics, span);
      } else if (event.type === "done") {
        metrics.answer.observe((now - since) / 1000);
        span.setAttribute("gen_ai.response.finish_reasons", [event.finishReason]);
      }
      yield event;
    }
  } catch (error) {
    failed(span, error);
    throw error;
  } finally {
    span.end();
  }
}

/**
 * Counts a question that is answered as a whole, and makes a span of it, as {@link observed} does.
 *
 * @param operation its name in the span.
 * @param takenOf what the answer took.
 */
export async function observedWhole<T>(
  operation: "classify" | "embeddings",
  work: () => Promise<T>,
  takenOf: (answer: T) => Taken,
  model: Model,
  metrics = createMetrics(),
): Promise<T> {
  const since = performance.now();
  const span = startSpan(operation, model);
  try {
    const answer = await work();
    count(takenOf(answer), model, metrics, span);
    metrics.answer.observe((performance.now() - since) / 1000);
    return answer;
  } catch (error) {
    failed(span, error);
    throw error;
  } finally {
    span.end();
  }
}

/** Does work whose spans belong to the trace that a `traceparent` names; to none where there is none. */
export function inTrace<T>(traceparent: string | undefined, work: () => T): T {
  if (!traceparent) return context.with(ROOT_CONTEXT, work);
  const [, traceId, spanId, flags] = traceparent.split("-");
  const parent = { traceId, spanId, traceFlags: parseInt(flags, 16), isRemote: true };
  return context.with(trace.setSpanContext(ROOT_CONTEXT, parent), work);
}

function startSpan(operation: string, { name }: Model): Span {
  return trace.getTracer("paligemma-edge").startSpan(operation, {
    attributes: { "gen_ai.operation.name": operation, "gen_ai.request.model": name },
  });
}

function count(
  { imageTokens, promptTokens, completionTokens, known }: Taken,
  { imageTokensPerImage }: Model,
  { features, tokens }: Metrics,
  span: Span,
): void {
  if (known !== undefined) {
    features.add(known, "hit");
    features.add(imageTokens / imageTokensPerImage - known, "miss");
  }
  tokens.add(imageTokens, "image");
  tokens.add(promptTokens, "prompt");
  tokens.add(completionTokens, "completion");
  span.setAttributes({
    "gen_ai.usage.input_tokens": imageTokens + promptTokens,
    "gen_ai.usage.output_tokens": completionTokens,
  });
}

function failed(span: Span, error: unknown): void {
  const message = error instanceof RequestError ? error.code : "internal";
  span.setStatus({ code: SpanStatusCode.ERROR, message });
}

/** All numbers as Prometheus reads them, `text/plain; version=0.0.4`. */
export function exposition(metrics: Metrics | WorkerMetrics): string {
  return Object.values(metrics).flatMap((it) => [...it.lines()]).join("\n") + "\n";
}

function* head(
  { name, help, kind }: { readonly name: string; readonly help: string; readonly kind: string },
) {
  yield `# HELP ${name} ${help}`;
  yield `# TYPE ${name} ${kind}`;
}

function escaped(value: string): string {
  return value.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n");
}
