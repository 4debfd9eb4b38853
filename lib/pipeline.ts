/**
 * One request from image bytes to answer events. The only file that knows the order of the stages.
 */

import type { Backend } from "./backend/backend.ts";
import { decode, type DecodeWork } from "./decode/decode.ts";
import { type Decoder, loadDecoder, type SlidingWindow } from "./decode/gemma.ts";
import { GREEDY } from "./decode/sampler.ts";
import { RequestError } from "./errors.ts";
import { preprocess } from "./preprocess/preprocess.ts";
import { createBoxParser } from "./text/parse.ts";
import { prefixIds } from "./text/prompt.ts";
import { loadTokenizer, type Tokenizer } from "./text/tokenizer.ts";
import type {
  Answer,
  AnswerEvent,
  FinishReason,
  ModelFiles,
  Pause,
  Pixels,
  Question,
  ResizeMethod,
  Sampling,
  Timings,
  WeightFormat,
} from "./types.ts";
import { loadVision, type Vision } from "./vision/siglip.ts";
import { type ModelConfig, readConfig } from "./weights/config.ts";
import { openWeights } from "./weights/load.ts";

/** What a client may know about the model being served. */
export interface ModelInfo {
  /** Directory name or published id. */
  readonly name: string;
  readonly family: "paligemma" | "paligemma2";
  /** Side of the model's square input, pixels. */
  readonly imageSize: number;
  readonly imageTokensPerImage: number;
  /** Positions for image tokens, prefix and suffix together. */
  readonly context: number;
  readonly vocabulary: number;
}

/** A loaded model that answers questions, one at a time, in the order they came. */
export interface Pipeline {
  readonly model: ModelInfo;
  /**
   * Answers a question. Everything is checked before the first event. When `signal` aborts, the stream ends with
   * `done` and `finishReason: "cancelled"` after at most one more token.
   *
   * @throws {RequestError} for what is wrong with the question, `overloaded` when too many wait already, `cancelled`
   * when the signal aborts before the question's turn came.
   */
  answer(question: Question, signal?: AbortSignal): AsyncIterable<AnswerEvent>;
}

/** What a pipeline is made of. */
export interface PipelineParts {
  readonly backend: Backend;
  /** A model directory in Hugging Face layout. */
  readonly files: ModelFiles;
  /** Name that clients see. */
  readonly name: string;
  readonly weights?: WeightFormat;
  /** How pictures are resized unless a question says otherwise. */
  readonly resize?: ResizeMethod;
  readonly slidingWindow?: SlidingWindow;
  /** Larger pictures are refused from their header. */
  readonly maxPixels?: number;
  /** Questions that may wait while one is answered; more are refused with `overloaded`. */
  readonly maxWaiting?: number;
}

/**
 * Loads a model into the backend.
 *
 * @throws {RequestError} `model_invalid`, naming the file or tensor, what was expected and what was found;
 * `model_too_large` before anything is read, with needed and available bytes.
 */
export async function createPipeline(parts: PipelineParts): Promise<Pipeline> {
  const { backend, files, weights: format } = parts;
  const config = await readConfig(files);
  const tokenizer = await loadTokenizer(files);
  const weights = await openWeights(files, config, format);
  if (weights.sizeBytes > backend.availableBytes) {
    throw new RequestError(
      "model_too_large",
      `Cannot load the model in ${files.place}: its weights take ${gigabytes(weights.sizeBytes)}, ` +
        `the ${backend.name} backend has ${gigabytes(backend.availableBytes)}; int4 weights would be smaller`,
    );
  }
  const vision = await loadVision(backend, weights);
  const decoder = await loadDecoder(backend, weights, parts.slidingWindow);
  return new LocalPipeline(parts, config, tokenizer, vision, decoder);
}

function gigabytes(bytes: number): string {
  return `${(bytes / 1e9).toFixed(2)} GB`;
}

/** A question after all checks: everything the stages need. */
interface Checked {
  readonly pixels: readonly Pixels[];
  readonly ids: readonly number[];
  readonly imageTokens: number;
  readonly options: Omit<DecodeWork, "prefix" | "ids">;
  readonly preprocessMs: number;
}

class LocalPipeline implements Pipeline {
  readonly model: ModelInfo;
  readonly #line: Line;

  constructor(
    private readonly parts: PipelineParts,
    private readonly config: ModelConfig,
    private readonly tokenizer: Tokenizer,
    private readonly vision: Vision,
    private readonly decoder: Decoder,
  ) {
    this.#line = new Line(parts.maxWaiting ?? 64);
    this.model = {
      name: parts.name,
      family: config.decoder.family === "gemma" ? "paligemma" : "paligemma2",
      imageSize: config.vision.imageSize,
      imageTokensPerImage: vision.imageTokens,
      context: config.decoder.context,
      vocabulary: config.imageTokenId,
    };
  }

  async *answer(question: Question, signal?: AbortSignal): AsyncGenerator<AnswerEvent, void> {
    const leave = this.#line.enter();
    try {
      const checked = await this.#check(question);
      const release = await this.#line.turn(signal);
      try {
        yield* this.#run(checked, signal);
      } finally {
        release();
      }
    } finally {
      leave();
    }
  }

  async #check(question: Question): Promise<Checked> {
    const { config, tokenizer, parts } = this;
    const sampling = { ...GREEDY, ...question.sampling };
    const { topLogits = 0 } = question;
    checkSampling(sampling);
    checkWhole("topLogits", topLogits, 0, 100);
    if (!question.images.length) {
      throw new RequestError("image_missing", "Cannot answer: expected at least one picture, found none");
    }
    const ids = prefixIds(tokenizer, question.prompt, { bosId: config.bosId, tokens: question.tokens });
    const imageTokens = question.images.length * this.vision.imageTokens;
    const room = config.decoder.context - imageTokens - ids.length;
    if (room < 1) {
      throw new RequestError(
        "prompt_too_long",
        `Cannot answer: ${imageTokens} image tokens and ${ids.length} prompt tokens leave no room for an answer in ` +
          `a context of ${config.decoder.context}`,
      );
    }
    const { maxTokens = defaultMaxTokens(question.prompt) } = question;
    checkWhole("maxTokens", maxTokens, 1, Number.MAX_SAFE_INTEGER);

    const since = performance.now();
    const pixels: Pixels[] = [];
    for (const image of question.images) {
      pixels.push(
        await preprocess(image, {
          size: config.vision.imageSize,
          method: question.resize ?? parts.resize ?? "hf-bicubic",
          maxPixels: parts.maxPixels ?? 50_000_000,
          alpha: question.alpha,
          mean: config.imageMean,
          std: config.imageStd,
        }),
      );
    }
    return {
      pixels,
      ids,
      imageTokens,
      options: {
        maxTokens: Math.min(maxTokens, room),
        sampling,
        ignoreEos: question.ignoreEos ?? false,
        topLogits,
      },
      preprocessMs: performance.now() - since,
    };
  }

  async *#run({ pixels, ids, imageTokens, options, preprocessMs }: Checked, signal?: AbortSignal) {
    const { backend } = this.parts;
    const pause = createPause(signal);
    const timings = { preprocess: preprocessMs, vision: 0, prefill: 0, perToken: 0 };
    const prefix = backend.tensor(imageTokens + ids.length, this.config.decoder.width);
    const text = this.tokenizer.stream();
    const boxes = createBoxParser(this.tokenizer);
    let [whole, count] = ["", 0];
    let finishReason: FinishReason = "cancelled";
    let tokens: ReturnType<typeof decode> | undefined;
    try {
      const start = performance.now();
      for (const [i, picture] of pixels.entries()) {
        const rows = backend.slice(prefix, i * this.vision.imageTokens, this.vision.imageTokens);
        await this.vision.encode(rows, picture, pause);
      }
      const encoded = performance.now();
      timings.vision = encoded - start;
      tokens = decode(this.decoder, this.config, { prefix, ids, ...options }, pause);
      let first = 0;
      for (let next = await tokens.next();; next = await tokens.next()) {
        const now = performance.now();
        if (count === 0) [timings.prefill, first] = [now - encoded, now];
        if (next.done) {
          finishReason = next.value;
          break;
        }
        if (count > 0) timings.perToken = (now - first) / count;
        count++;
        const { id, logprob, top } = next.value;
        const piece = text.push(id);
        whole += piece;
        yield {
          type: "token",
          id,
          text: piece,
          logprob,
          ...options.topLogits && { top },
        } satisfies AnswerEvent;
        yield* boxes.push(id, logprob);
      }
    } catch (error) {
      if (!signal?.aborted) throw error;
    } finally {
      await tokens?.return("stop"); // frees the cache when the caller stopped listening
      backend.free(prefix);
    }
    whole += text.end();
    yield* boxes.end({ truncated: finishReason !== "stop" });
    yield {
      type: "usage",
      imageTokens,
      promptTokenIds: ids,
      completionTokens: count,
      timings: timings satisfies Timings,
    } satisfies AnswerEvent;
    yield { type: "done", finishReason, text: whole } satisfies AnswerEvent;
  }
}

/** Tokens that the task of a prompt needs at most: a located thing takes 8 to 23 (spec of the suffix grammar). */
function defaultMaxTokens(prompt: string): number {
  if (/^(detect|segment)\b/.test(prompt)) return 256;
  return /^(answer|question)\b/.test(prompt) ? 64 : 128;
}

function checkSampling({ temperature, topK, topP, seed }: Sampling): void {
  const within = (name: string, value: number, holds: boolean, range: string) => {
    if (!holds) {
      throw new RequestError("parameter_invalid", `Cannot answer: expected ${name} ${range}, found ${value}`);
    }
  };
  within("temperature", temperature, temperature >= 0 && temperature <= 2, "from 0 to 2");
  within("topP", topP, topP > 0 && topP <= 1, "above 0 and up to 1");
  checkWhole("topK", topK, 0, Number.MAX_SAFE_INTEGER);
  checkWhole("seed", seed, 0, 2 ** 32 - 1);
}

function checkWhole(name: string, value: number, low: number, high: number): void {
  if (Number.isInteger(value) && value >= low && value <= high) return;
  const range = high === Number.MAX_SAFE_INTEGER ? `${low} or more` : `from ${low} to ${high}`;
  throw new RequestError(
    "parameter_invalid",
    `Cannot answer: expected ${name} to be a whole number ${range}, found ${value}`,
  );
}

/** Computation holds the thread; after this long, other work gets a turn. */
const PAUSE_EVERY_MS = 8;

function createPause(signal?: AbortSignal): Pause {
  let last = performance.now();
  return async () => {
    if (performance.now() - last > PAUSE_EVERY_MS) {
      await new Promise((resolve) => setTimeout(resolve));
      last = performance.now();
    }
    signal?.throwIfAborted();
  };
}

/** One at a time, first come, first served, and only so many in line. */
class Line {
  #inside = 0;
  #busy = false;
  readonly #waiting: (() => void)[] = [];

  constructor(private readonly maxWaiting: number) {}

  /** Counts a question in, before anything is decoded for it; call what it returns when the question is over. */
  enter(): () => void {
    if (this.#inside > this.maxWaiting) {
      throw new RequestError(
        "overloaded",
        `Cannot answer: ${this.#inside} questions are being answered or wait already`,
      );
    }
    this.#inside++;
    return () => this.#inside--;
  }

  /** Waits for the turn; call what it returns to pass it on. A caller that went away gives up its place at once. */
  async turn(signal?: AbortSignal): Promise<() => void> {
    const cancelled = () => new RequestError("cancelled", "The caller went away before its turn came");
    if (signal?.aborted) throw cancelled();
    if (this.#busy) {
      await new Promise<void>((resolve, reject) => {
        const abort = () => {
          this.#waiting.splice(this.#waiting.indexOf(go), 1);
          reject(cancelled());
        };
        const go = () => {
          signal?.removeEventListener("abort", abort);
          resolve();
        };
        this.#waiting.push(go);
        signal?.addEventListener("abort", abort, { once: true });
      });
    }
    this.#busy = true;
    return () => {
      const next = this.#waiting.shift();
      if (next) next();
      else this.#busy = false;
    };
  }
}

/** Gathers a stream of events into one answer. */
export async function collect(events: AsyncIterable<AnswerEvent>): Promise<Answer> {
  const tokens: Extract<AnswerEvent, { type: "token" }>[] = [];
  const items: Answer["items"][number][] = [];
  let usage: Extract<AnswerEvent, { type: "usage" }> | undefined;
  let done: Extract<AnswerEvent, { type: "done" }> | undefined;
  for await (const event of events) {
    if (event.type === "token") tokens.push(event);
    else if (event.type === "box") {
      items.push({ box: event.box, label: event.label, confidence: event.confidence });
    } else if (event.type === "usage") usage = event;
    else done = event;
  }
  if (!usage || !done) throw new TypeError("Broken stream: expected usage and done events at its end");
  return {
    text: done.text,
    tokenIds: tokens.map((it) => it.id),
    items,
    finishReason: done.finishReason,
    promptTokenIds: usage.promptTokenIds,
    imageTokens: usage.imageTokens,
    timings: usage.timings,
    ...tokens[0]?.top && { logits: tokens.map((it) => it.top!) },
  };
}
