/**
 * One request from image bytes to answer events. The only file that knows the order of the stages.
 */

import type { Backend, Tensor } from "./backend/backend.ts";
import { checkLabels, likelihoods, normalised } from "./decode/classify.ts";
import { decode, type DecodeWork } from "./decode/decode.ts";
import { type Decoder, loadDecoder, type SlidingWindow } from "./decode/gemma.ts";
import { PrefixCache, type PrefixEntry } from "./decode/prefix_cache.ts";
import { checkSampling, GREEDY } from "./decode/sampler.ts";
import { checkThat, checkWhole, RequestError } from "./errors.ts";
import { type Prepared, preprocess } from "./preprocess/preprocess.ts";
import { type Metrics, observed } from "./metrics.ts";
import { createPause, Line } from "./schedule/line.ts";
import { createGrammar } from "./text/grammar.ts";
import { findLocations, type Locations, nearby } from "./text/locations.ts";
import { type BoxEvent, createBoxParser, inPixels, withoutDuplicates } from "./text/parse.ts";
import { defaultMaxTokens, prefixIds } from "./text/prompt.ts";
import { loadTokenizer, type Tokenizer } from "./text/tokenizer.ts";
import type {
  Answer,
  AnswerEvent,
  Cached,
  Classification,
  ClassifyQuestion,
  Constraint,
  Embedding,
  EmbedQuestion,
  FinishReason,
  Item,
  ModelFiles,
  ModelInfo,
  Pause,
  Question,
  ResizeMethod,
  Timings,
  WeightFormat,
} from "./types.ts";
import {
  type FeatureCacheOptions,
  remembering,
  type RememberingVision,
  visionRevision,
} from "./vision/feature_cache.ts";
import { loadMasks, type Masks } from "./vision/mask.ts";
import { embedded, loadVision, type Vision } from "./vision/siglip.ts";
import { type ModelConfig, readConfig } from "./weights/config.ts";
import { checkRoom, openWeights } from "./weights/load.ts";
import { revisionOf } from "./weights/revision.ts";

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

/** A pipeline that also tells how likely given answers are. */
export interface LocalPipeline extends Pipeline {
  /**
   * Scores every label as the whole answer to the prompt, after one prefill.
   *
   * @throws {RequestError} as `answer`, and `cancelled` whenever the signal aborts.
   */
  classify(question: ClassifyQuestion, signal?: AbortSignal): Promise<Classification>;
  /**
   * Encodes pictures.
   *
   * @throws {RequestError} as `classify`.
   */
  embed(question: EmbedQuestion, signal?: AbortSignal): Promise<Embedding>;
}

/** The stages that hold weights, in the memory of a pipeline's backend or of an engine of their own. */
export interface Stages {
  readonly vision: Vision;
  readonly decoder: Decoder;
  /** Tells these weights from others. */
  readonly revision: string;
  /** Tells the vision weights from others, in their format and on their engine; by default the revision. */
  readonly featureRevision?: string;
}

/** What a pipeline is made of. */
export interface PipelineParts extends FeatureCacheOptions {
  readonly backend: Backend;
  /** A model directory in Hugging Face layout. */
  readonly files: ModelFiles;
  /** Name that clients see. */
  readonly name: string;
  /** Stages opened by the caller; by default they are loaded from the safetensors among the files. */
  readonly stages?: Stages;
  readonly weights?: WeightFormat;
  /** How pictures are resized unless a question says otherwise. */
  readonly resize?: ResizeMethod;
  readonly slidingWindow?: SlidingWindow;
  /** Larger pictures are refused from their header. */
  readonly maxPixels?: number;
  /** Questions that may wait while one is answered; more are refused with `overloaded`. */
  readonly maxWaiting?: number;
  /** Bytes of keys and values kept for questions asked again word for word; 64 MiB by default, 0 for none. */
  readonly prefixCacheBytes?: number;
  /** Counts the questions that wait, and the answers. */
  readonly metrics?: Metrics;
}

/**
 * Loads a model into the backend.
 *
 * @throws {RequestError} `model_invalid`, naming the file or tensor, what was expected and what was found;
 * `model_too_large` before anything is read, with needed and available bytes.
 */
export async function createPipeline(parts: PipelineParts): Promise<LocalPipeline> {
  const { backend, files } = parts;
  const config = await readConfig(files);
  const tokenizer = await loadTokenizer(files);
  const stages = parts.stages ?? await loadStages(parts, config);
  const vision = remembering(stages.vision, backend, parts, stages.featureRevision ?? stages.revision);
  const masks = await loadMasks(backend, files);
  return new Loaded(parts, config, stages, tokenizer, vision, masks);
}

/** Loads vision and decoder into the backend. */
async function loadStages(
  { backend, files, weights: format, slidingWindow, blobs }: PipelineParts,
  config: ModelConfig,
): Promise<Stages> {
  const weights = await openWeights(files, config, format);
  checkRoom(weights, backend, files.place);
  return {
    // Without blobs, image tokens do not outlive this model, and whose they are need not be found out.
    featureRevision: blobs && await visionRevision(weights, backend),
    vision: await loadVision(backend, weights),
    decoder: await loadDecoder(backend, weights, slidingWindow),
    revision: await revisionOf(files),
  };
}

/** What the model is shown, after all checks. */
interface Shown {
  readonly pictures: readonly Prepared[];
  readonly ids: readonly number[];
  readonly imageTokens: number;
  readonly preprocessMs: number;
}

/** A question after all checks: everything the stages need. */
interface Checked extends Shown {
  readonly options: Omit<DecodeWork, "prefix" | "ids">;
  readonly question: Question;
}

class Loaded implements LocalPipeline {
  readonly model: ModelInfo;
  readonly #line: Line;
  readonly #locations: Locations;
  readonly #prefixes: PrefixCache;

  constructor(
    private readonly parts: PipelineParts,
    private readonly config: ModelConfig,
    private readonly stages: Stages,
    private readonly tokenizer: Tokenizer,
    private readonly vision: RememberingVision,
    private readonly masks: Masks | undefined,
  ) {
    this.#line = new Line(parts.maxWaiting ?? 64, (by) => parts.metrics?.queueDepth.add(by));
    this.#locations = findLocations(tokenizer);
    this.#prefixes = new PrefixCache(parts.prefixCacheBytes ?? 64 * 2 ** 20);
    this.model = {
      name: parts.name,
      revision: stages.revision,
      family: config.decoder.family === "gemma" ? "paligemma" : "paligemma2",
      imageSize: config.vision.imageSize,
      imageTokensPerImage: vision.imageTokens,
      context: config.decoder.context,
      vocabulary: config.imageTokenId,
    };
  }

  answer(question: Question, signal?: AbortSignal): AsyncGenerator<AnswerEvent, void> {
    return observed(this.#answer(question, signal), this.model, this.parts.metrics);
  }

  async *#answer(question: Question, signal?: AbortSignal): AsyncGenerator<AnswerEvent, void> {
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

  classify(question: ClassifyQuestion, signal?: AbortSignal): Promise<Classification> {
    const { labels } = question;
    const prepare = async () => {
      checkLabels(labels);
      const answers = labels.map((it) => this.tokenizer.encode(it, { tokens: question.tokens }));
      return { answers, shown: await this.#show(question, Math.max(...answers.map((it) => it.length))) };
    };
    return this.#line.take("classify", signal, prepare, ({ shown, answers }, pause) => {
      return this.#score(shown, labels, answers, pause);
    });
  }

  embed({ stage = "projected", ...question }: EmbedQuestion, signal?: AbortSignal): Promise<Embedding> {
    const prepare = () => this.#show({ ...question, prompt: "" }, 0);
    return this.#line.take("embed", signal, prepare, ({ pictures }, pause) => {
      return embedded(this.stages.vision, this.parts.backend, pictures, stage, pause);
    });
  }

  async #check(question: Question): Promise<Checked> {
    const { config, tokenizer } = this;
    const sampling = { ...GREEDY, ...question.sampling };
    const { topLogits = 0, maxTokens = defaultMaxTokens(question.prompt), nms, locScale = 1024 } = question;
    checkSampling(sampling);
    checkWhole("topLogits", topLogits, 0, 100);
    checkWhole("maxTokens", maxTokens, 1, Number.MAX_SAFE_INTEGER);
    checkThat(locScale === 1023 || locScale === 1024, "locScale", "1023 or 1024", locScale);
    checkThat(nms === undefined || nms > 0 && nms < 1, "nms", "between 0 and 1", nms);
    const forced = tokenizer.encode(question.answerStart ?? "", { tokens: question.tokens });
    const constraint = this.#constraint(question, forced);
    const shown = await this.#show(question, forced.length + 1);
    const room = config.decoder.context - shown.imageTokens - shown.ids.length - forced.length;
    return {
      ...shown,
      question,
      options: {
        maxTokens: Math.min(maxTokens, room),
        sampling,
        ignoreEos: question.ignoreEos ?? false,
        topLogits,
        forced,
        constraint,
      },
    };
  }

  #constraint(question: Question, forced: readonly number[]): Constraint | undefined {
    if (!question.constrained) return undefined;
    checkThat(!question.ignoreEos, "ignoreEos", "to be false where the answer is constrained", true);
    const { prompt, answerStart } = question;
    const grammar = createGrammar(this.tokenizer, this.#locations, prompt, this.config.eosIds);
    if (!grammar) {
      throw new RequestError(
        "parameter_invalid",
        `Cannot constrain the answer: expected a prompt of detect or segment, found ${
          JSON.stringify(prompt)
        }`,
      );
    }
    const trial = grammar();
    for (const id of forced) {
      const allowed = trial.allowed().some(([first, end]) => id >= first && id < end);
      checkThat(allowed, "answerStart", "to follow the grammar of its task", answerStart);
      trial.advance(id);
    }
    return grammar();
  }

  /** Checks that pictures, prompt and `answerTokens` more fit, and prepares the pictures. */
  async #show(
    { images, prompt, tokens, resize, alpha }: Pick<
      Question,
      "images" | "prompt" | "tokens" | "resize" | "alpha"
    >,
    answerTokens: number,
  ): Promise<Shown> {
    const { config, parts } = this;
    if (!images.length) {
      throw new RequestError("image_missing", "Cannot answer: expected at least one picture, found none");
    }
    const ids = prefixIds(this.tokenizer, prompt, { bosId: config.bosId, tokens });
    const imageTokens = images.length * this.vision.imageTokens;
    if (imageTokens + ids.length + answerTokens > config.decoder.context) {
      throw new RequestError(
        "prompt_too_long",
        `Cannot answer: ${imageTokens} image tokens and ${ids.length} prompt tokens leave no room for an answer in ` +
          `a context of ${config.decoder.context}`,
      );
    }
    const since = performance.now();
    const pictures: Prepared[] = [];
    for (const image of images) {
      pictures.push(
        await preprocess(image, {
          size: config.vision.imageSize,
          method: resize ?? parts.resize ?? "hf-bicubic",
          maxPixels: parts.maxPixels ?? 50_000_000,
          alpha,
          mean: config.imageMean,
          std: config.imageStd,
        }),
      );
    }
    return { pictures, ids, imageTokens, preprocessMs: performance.now() - since };
  }

  /**
   * Writes the image tokens of all pictures to the first rows of prefix [T, D], unless the whole prefix is known from
   * before, which then is given back.
   */
  async #encode(
    prefix: Tensor,
    { pictures, ids }: Shown,
    pause: Pause,
  ): Promise<{ known: PrefixEntry; cached?: Cached }> {
    const { imageTokens } = this.vision;
    const keys: string[] = [];
    for (const picture of pictures) keys.push(await this.vision.key(picture));
    const known = this.#prefixes.entry(keys, ids);
    if (known.get()) return { known, cached: { images: pictures.length, prefix: true } };
    let images = 0;
    for (const [i, picture] of pictures.entries()) {
      const out = this.parts.backend.slice(prefix, i * imageTokens, imageTokens);
      if (await this.vision.encode(out, picture, keys[i], pause)) images++;
    }
    return { known, ...images && { cached: { images, prefix: false } } };
  }

  async *#run(checked: Checked, signal?: AbortSignal) {
    const { pictures, ids, imageTokens, options, preprocessMs, question } = checked;
    const { backend } = this.parts;
    const pause = createPause(signal);
    const timings = { preprocess: preprocessMs, vision: 0, prefill: 0, perToken: 0 };
    const prefix = backend.tensor(imageTokens + ids.length, this.config.decoder.width);
    const text = this.tokenizer.stream();
    const { locScale, nms } = question;
    const boxes = createBoxParser(this.tokenizer, { locScale, locations: this.#locations });
    const near = (id: number) => nearby(this.#locations, id);
    const spelled = (id: number) => this.tokenizer.piece(id).replaceAll("▁", " ");
    let [whole, count, items] = ["", 0, 0];
    const held: BoxEvent[] = [];
    const complete = async (events: readonly BoxEvent[]): Promise<BoxEvent[]> => {
      items += events.length;
      const all = await Promise.all(events.map((it) => this.#complete(it, pictures, question)));
      if (nms === undefined) return all;
      held.push(...all);
      return [];
    };
    let finishReason: FinishReason = "cancelled";
    let tokens: ReturnType<typeof decode> | undefined;
    let cached: Cached | undefined;
    try {
      const start = performance.now();
      const encoding = await this.#encode(prefix, checked, pause);
      cached = encoding.cached;
      const encoded = performance.now();
      timings.vision = encoded - start;
      const { known } = encoding;
      tokens = decode(this.stages.decoder, this.config, { prefix, ids, known, near, ...options }, pause);
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
        const { id, logprob, nearLogprob, top } = next.value;
        const piece = text.push(id);
        whole += piece;
        yield {
          type: "token",
          id,
          text: piece,
          logprob,
          ...options.topLogits && { top: top.map((it) => ({ ...it, text: spelled(it.id) })) },
        } satisfies AnswerEvent;
        yield* await complete(boxes.push(id, nearLogprob));
      }
    } catch (error) {
      if (!signal?.aborted) throw error;
    } finally {
      await tokens?.return("stop"); // frees the cache when the caller stopped listening
      backend.free(prefix);
    }
    whole += text.end();
    yield* await complete(boxes.end({ truncated: finishReason !== "stop" }));
    if (nms !== undefined) yield* withoutDuplicates(held, nms);
    yield {
      type: "usage",
      imageTokens,
      promptTokenIds: ids,
      completionTokens: count,
      timings: timings satisfies Timings,
      ...cached && { cached },
    } satisfies AnswerEvent;
    const { plainText, brokenItems } = boxes;
    yield {
      type: "done",
      finishReason,
      text: whole,
      ...(items || brokenItems) && { plainText },
      ...brokenItems && { brokenItems },
    } satisfies AnswerEvent;
  }

  /** Adds what only the picture and the mask decoder can tell; of several pictures nobody knows which was meant. */
  async #complete(
    item: BoxEvent,
    pictures: readonly Prepared[],
    { masks = "rle" }: Question,
  ): Promise<BoxEvent> {
    if (pictures.length !== 1) return item;
    const { picture } = pictures[0];
    const { box, maskCodes } = item;
    const boxPixels = inPixels(box, picture);
    if (!maskCodes || !this.masks || item.flags) return { ...item, boxPixels };
    return { ...item, boxPixels, mask: await this.masks.draw(maskCodes, box, picture, masks) };
  }

  async #score(
    shown: Shown,
    labels: readonly string[],
    answers: readonly (readonly number[])[],
    pause: Pause,
  ): Promise<Classification> {
    const { ids, imageTokens, preprocessMs } = shown;
    const { backend } = this.parts;
    const prefix = backend.tensor(imageTokens + ids.length, this.config.decoder.width);
    try {
      const start = performance.now();
      const { known, cached } = await this.#encode(prefix, shown, pause);
      const encoded = performance.now();
      let prefilled = encoded;
      const onPrefill = () => prefilled = performance.now();
      const work = { prefix, ids, known, answers, onPrefill };
      const logprobs = await likelihoods(this.stages.decoder, this.config, work, pause);
      const probabilities = normalised(logprobs);
      const scores = labels.map((label, i) => ({
        label,
        probability: probabilities[i],
        logprob: logprobs[i],
      }));
      return {
        labels: scores.sort((a, b) => b.logprob - a.logprob || 0),
        promptTokenIds: ids,
        imageTokens,
        timings: {
          preprocess: preprocessMs,
          vision: encoded - start,
          prefill: prefilled - encoded,
          labels: performance.now() - prefilled,
        },
        ...cached && { cached },
      };
    } finally {
      backend.free(prefix);
    }
  }
}

/** Gathers a stream of events into one answer. */
export async function collect(events: AsyncIterable<AnswerEvent>): Promise<Answer> {
  const tokens: Extract<AnswerEvent, { type: "token" }>[] = [];
  const items: Item[] = [];
  let usage: Extract<AnswerEvent, { type: "usage" }> | undefined;
  let done: Extract<AnswerEvent, { type: "done" }> | undefined;
  for await (const event of events) {
    if (event.type === "token") tokens.push(event);
    else if (event.type === "box") {
      const { type: _, ...item } = event;
      items.push(item);
    } else if (event.type === "usage") usage = event;
    else done = event;
  }
  if (!usage || !done) throw new TypeError("Broken stream: expected usage and done events at its end");
  return {
    text: done.text,
    tokenIds: tokens.map((it) => it.id),
    items,
    finishReason: done.finishReason,
    ...done.plainText !== undefined && { plainText: done.plainText },
    ...done.brokenItems && { brokenItems: done.brokenItems },
    promptTokenIds: usage.promptTokenIds,
    imageTokens: usage.imageTokens,
    timings: usage.timings,
    ...usage.cached && { cached: usage.cached },
    ...tokens[0]?.top && { logits: tokens.map((it) => it.top!) },
  };
}
