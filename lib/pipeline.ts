/**
 * One request from image bytes to answer events. The only file that knows the order of the stages.
 */

import { checkLabels, normalised } from "./decode/classify.ts";
import { checkSampling, GREEDY } from "./decode/sampler.ts";
import { Dispatch, type DispatchParts, type Variant } from "./dispatch.ts";
import { type Engine, type EngineParts, openEngine } from "./engine.ts";
import { checkThat, checkWhole, RequestError } from "./errors.ts";
import { type Metrics, observed, observedWhole } from "./metrics.ts";
import type { Images, Work } from "./pool/pool.ts";
import { prepare, type Prepared } from "./preprocess/preprocess.ts";
import { Line } from "./schedule/line.ts";
import type { RoutesView } from "./schedule/routes.ts";
import { type BoxEvent, createBoxParser, inPixels, withoutDuplicates } from "./text/parse.ts";
import { defaultMaxTokens, prefixIds } from "./text/prompt.ts";
import type {
  Answer,
  AnswerEvent,
  Classification,
  ClassifyQuestion,
  Embedding,
  EmbedQuestion,
  FinishReason,
  Item,
  ModelInfo,
  Question,
  ResizeMethod,
  RouteDecision,
} from "./types.ts";
import { loadMasks, type Masks } from "./vision/mask.ts";

export type { PoolImages, Variant } from "./dispatch.ts";
export type { Stages } from "./engine.ts";

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
  /** Times a short answer while nobody asks, so that budgets can be judged before the first; see {@link Dispatch.calibrate}. */
  calibrate(): Promise<void>;
  /** What the planner knows of the ways to answer. */
  planner(): RoutesView;
}

/** What a pipeline is made of. */
export interface PipelineParts extends EngineParts, DispatchParts {
  /** Name that clients see. */
  readonly name: string;
  /** How pictures are resized unless a question says otherwise. */
  readonly resize?: ResizeMethod;
  /** Larger pictures are refused from their header. */
  readonly maxPixels?: number;
  /** Questions that may wait while one is answered; more are refused with `overloaded`. */
  readonly maxWaiting?: number;
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
  const engine = await openEngine(parts);
  if (parts.smaller) checkSameWords(engine, parts.smaller);
  const line = new Line(parts.maxWaiting ?? 64, (by) => parts.metrics?.queueDepth.add(by));
  const dispatch = new Dispatch(engine, line, parts);
  await dispatch.restore();
  return new Loaded(parts, engine, await loadMasks(parts.backend, parts.files), line, dispatch);
}

/** Refuses a variant whose tokens mean something else. @throws {RequestError} `model_invalid`. */
function checkSameWords({ tokenizer, config }: Engine, { name, engine }: Variant): void {
  const [ours, theirs] = [[config.imageTokenId, tokenizer.size], [
    engine.config.imageTokenId,
    engine.tokenizer.size,
  ]];
  const other = Array.from({ length: tokenizer.size }, (_, id) => id)
    .find((id) => tokenizer.piece(id) !== engine.tokenizer.piece(id));
  if (String(ours) === String(theirs) && other === undefined) return;
  throw new RequestError(
    "model_invalid",
    `Cannot answer with ${name} in place of the model: expected the same tokenizer, found ` +
      (other === undefined
        ? `${theirs[1]} pieces and the image token ${theirs[0]}, not ${ours[1]} and ${ours[0]}`
        : `the token ${other} to be ${JSON.stringify(engine.tokenizer.piece(other))}, not ${
          JSON.stringify(tokenizer.piece(other))
        }`),
  );
}

/** What the model is shown, after all checks. */
interface Shown {
  readonly images: Images;
  readonly pictures: readonly Prepared["picture"][];
  readonly ids: readonly number[];
  readonly imageTokens: number;
  readonly preprocessMs: number;
}

/** A question after all checks. */
interface Checked extends Shown {
  readonly question: Question;
  readonly work: Work;
  /** The same for the smaller variant, where it may answer. */
  readonly smaller?: Work;
}

class Loaded implements LocalPipeline {
  readonly model: ModelInfo;

  constructor(
    private readonly parts: PipelineParts,
    private readonly engine: Engine,
    private readonly masks: Masks | undefined,
    private readonly line: Line,
    private readonly dispatch: Dispatch,
  ) {
    const { config, imageTokens, stages } = engine;
    this.model = {
      name: parts.name,
      revision: stages.revision,
      family: config.decoder.family === "gemma" ? "paligemma" : "paligemma2",
      imageSize: config.vision.imageSize,
      imageTokensPerImage: imageTokens,
      context: config.decoder.context,
      vocabulary: config.imageTokenId,
    };
  }

  answer(question: Question, signal?: AbortSignal): AsyncGenerator<AnswerEvent, void> {
    return observed(this.#answer(question, signal), this.model, this.parts.metrics);
  }

  async *#answer(question: Question, signal?: AbortSignal): AsyncGenerator<AnswerEvent, void> {
    const leave = this.line.enter();
    try {
      yield* this.#run(await this.#check(question), signal);
    } finally {
      leave();
    }
  }

  calibrate(): Promise<void> {
    return this.dispatch.calibrate();
  }

  planner(): RoutesView {
    return this.dispatch.view();
  }

  classify(question: ClassifyQuestion, signal?: AbortSignal): Promise<Classification> {
    const taken = ({ imageTokens, promptTokenIds, cached }: Classification) => ({
      imageTokens,
      promptTokens: promptTokenIds.length,
      completionTokens: 0,
      known: cached?.images ?? 0,
    });
    const work = () => this.#classify(question, signal);
    return observedWhole("classify", work, taken, this.model, this.parts.metrics);
  }

  #classify(question: ClassifyQuestion, signal?: AbortSignal): Promise<Classification> {
    const { labels } = question;
    const prepare = async () => {
      this.engine.decoder("classify", "no pool tells how likely labels are");
      checkLabels(labels);
      const answers = labels.map((it) => this.engine.tokenizer.encode(it, { tokens: question.tokens }));
      return { answers, shown: await this.#show(question, Math.max(...answers.map((it) => it.length))) };
    };
    return this.line.take("classify", signal, prepare, async ({ shown, answers }, pause) => {
      const { images, ids, imageTokens, preprocessMs } = shown;
      const { logprobs, timings, cached } = await this.engine.score(images, ids, answers, pause);
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
        timings: { preprocess: preprocessMs, ...timings },
        ...cached && { cached },
      };
    });
  }

  embed(question: EmbedQuestion, signal?: AbortSignal): Promise<Embedding> {
    const taken = ({ shape: [pictures, tokens] }: Embedding) => ({
      imageTokens: pictures * tokens,
      promptTokens: 0,
      completionTokens: 0,
    });
    const work = () => this.#embed(question, signal);
    return observedWhole("embeddings", work, taken, this.model, this.parts.metrics);
  }

  #embed({ stage = "projected", ...question }: EmbedQuestion, signal?: AbortSignal): Promise<Embedding> {
    const prepare = () => this.#show({ ...question, prompt: "" }, 0);
    return this.line.take("embed", signal, prepare, ({ images }, pause) => {
      return this.engine.embed(images, stage, pause);
    });
  }

  async #check(question: Question): Promise<Checked> {
    const { config, tokenizer, revision } = this.engine;
    if (!this.parts.pool) this.engine.decoder(); // refuses, where there is none, before anything is computed
    const sampling = { ...GREEDY, ...question.sampling };
    const { topLogits = 0, maxTokens = defaultMaxTokens(question.prompt), nms, locScale = 1024 } = question;
    checkSampling(sampling);
    checkWhole("topLogits", topLogits, 0, 100);
    checkWhole("maxTokens", maxTokens, 1, Number.MAX_SAFE_INTEGER);
    checkThat(locScale === 1023 || locScale === 1024, "locScale", "1023 or 1024", locScale);
    checkThat(nms === undefined || nms > 0 && nms < 1, "nms", "between 0 and 1", nms);
    const forced = tokenizer.encode(question.answerStart ?? "", { tokens: question.tokens });
    if (question.constrained) this.#checkGrammar(question, forced);
    const shown = await this.#show(question, forced.length + 1);
    const room = config.decoder.context - shown.imageTokens - shown.ids.length - forced.length;
    const work: Work = {
      revision,
      images: shown.images,
      ids: shown.ids,
      sampling,
      maxTokens: Math.min(maxTokens, room),
      ignoreEos: question.ignoreEos ?? false,
      topLogits,
      forced,
      ...question.constrained && { grammar: question.prompt },
      given: [],
    };
    return { ...shown, question, work, smaller: this.#smaller(work, question) };
  }

  /** The same work for the smaller variant, whose pictures are only prepared when it does it. */
  #smaller(work: Work, question: Question): Work | undefined {
    const { smaller } = this.parts;
    if (!smaller || question.budget?.quality !== "degrade") return undefined;
    const { config: { vision: { imageSize: size }, decoder }, imageTokens, revision } = smaller.engine;
    const { images, ids, forced } = work;
    const room = decoder.context - question.images.length * imageTokens - ids.length - forced.length;
    const prepared = (image: Uint8Array) => this.#prepare(image, size, question);
    const anew: Images = {
      ...images,
      shape: [question.images.length, size, size, 3],
      async *blocks() {
        for (const image of question.images) yield (await prepared(image)).samples;
      },
    };
    return {
      ...work,
      revision,
      images: size === this.engine.config.vision.imageSize ? images : anew,
      maxTokens: Math.max(1, Math.min(work.maxTokens, room)),
    };
  }

  #prepare(
    image: Uint8Array,
    size: number,
    { resize, alpha }: Pick<Question, "resize" | "alpha">,
  ): Promise<Prepared> {
    const { resize: method = "hf-bicubic", maxPixels = 50_000_000, memory } = this.parts;
    return prepare(image, { size, method: resize ?? method, maxPixels, memory, alpha });
  }

  /** Refuses a constraint that the prompt, or the answer's beginning, does not have. */
  #checkGrammar({ ignoreEos, prompt, answerStart }: Question, forced: readonly number[]): void {
    checkThat(!ignoreEos, "ignoreEos", "to be false where the answer is constrained", true);
    const grammar = this.engine.grammar(prompt);
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
  }

  /** Checks that pictures, prompt and `answerTokens` more fit, and prepares the pictures. */
  async #show(
    { images, prompt, tokens, resize, alpha }: Pick<
      Question,
      "images" | "prompt" | "tokens" | "resize" | "alpha"
    >,
    answerTokens: number,
  ): Promise<Shown> {
    const { config, tokenizer } = this.engine;
    if (!images.length) {
      throw new RequestError("image_missing", "Cannot answer: expected at least one picture, found none");
    }
    const ids = prefixIds(tokenizer, prompt, { bosId: config.bosId, tokens });
    const imageTokens = images.length * this.engine.imageTokens;
    if (imageTokens + ids.length + answerTokens > config.decoder.context) {
      throw new RequestError(
        "prompt_too_long",
        `Cannot answer: ${imageTokens} image tokens and ${ids.length} prompt tokens leave no room for an answer in ` +
          `a context of ${config.decoder.context}`,
      );
    }
    const since = performance.now();
    const size = config.vision.imageSize;
    const prepared: Prepared[] = [];
    for (const image of images) prepared.push(await this.#prepare(image, size, { resize, alpha }));
    return {
      images: {
        stage: "pixels",
        dtype: "u8",
        shape: [images.length, size, size, 3],
        blocks: () => prepared.map((it) => it.samples),
      },
      pictures: prepared.map((it) => it.picture),
      ids,
      imageTokens,
      preprocessMs: performance.now() - since,
    };
  }

  async *#run({ pictures, preprocessMs, question, work, smaller }: Checked, signal?: AbortSignal) {
    const { tokenizer, locations } = this.engine;
    const text = tokenizer.stream();
    const { locScale, nms } = question;
    const boxes = createBoxParser(tokenizer, { locScale, locations });
    const spelled = (id: number) => tokenizer.piece(id).replaceAll("▁", " ");
    let [whole, items] = ["", 0];
    const held: BoxEvent[] = [];
    const complete = async (events: readonly BoxEvent[]): Promise<BoxEvent[]> => {
      items += events.length;
      const all = await Promise.all(events.map((it) => this.#complete(it, pictures, question)));
      if (nms === undefined) return all;
      held.push(...all);
      return [];
    };
    let finishReason: FinishReason = "cancelled";
    let usage: Extract<AnswerEvent, { type: "usage" }> | undefined;
    for await (const event of this.dispatch.run(work, question, signal, smaller)) {
      if (event.type === "route") yield event;
      else if (event.type === "token") {
        const { nearLogprob, ...token } = event;
        const piece = text.push(token.id);
        whole += piece;
        const top = token.top?.map((it) => ({ ...it, text: spelled(it.id) }));
        yield { ...token, text: piece, ...top && { top } } satisfies AnswerEvent;
        yield* await complete(boxes.push(token.id, nearLogprob));
      } else if (event.type === "usage") {
        usage = { ...event, timings: { ...event.timings, preprocess: preprocessMs } };
      } else finishReason = event.finishReason;
    }
    whole += text.end();
    yield* await complete(boxes.end({ truncated: finishReason !== "stop" }));
    if (nms !== undefined) yield* withoutDuplicates(held, nms);
    if (usage) yield usage;
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
    pictures: readonly Prepared["picture"][],
    { masks = "rle" }: Question,
  ): Promise<BoxEvent> {
    if (pictures.length !== 1) return item;
    const [picture] = pictures;
    const { box, maskCodes } = item;
    const boxPixels = inPixels(box, picture);
    if (!maskCodes || !this.masks || item.flags) return { ...item, boxPixels };
    return { ...item, boxPixels, mask: await this.masks.draw(maskCodes, box, picture, masks) };
  }
}

/** Gathers a stream of events into one answer. */
export async function collect(events: AsyncIterable<AnswerEvent>): Promise<Answer> {
  const tokens: Extract<AnswerEvent, { type: "token" }>[] = [];
  const items: Item[] = [];
  let usage: Extract<AnswerEvent, { type: "usage" }> | undefined;
  let done: Extract<AnswerEvent, { type: "done" }> | undefined;
  let route: RouteDecision | undefined;
  for await (const event of events) {
    if (event.type === "token") tokens.push(event);
    else if (event.type === "box") {
      const { type: _, ...item } = event;
      items.push(item);
    } else if (event.type === "route") {
      const { type: _, ...decision } = event;
      route = decision;
    } else if (event.type === "usage") usage = event;
    else done = event;
  }
  if (!usage || !done) throw new TypeError("Broken stream: expected usage and done events at its end");
  return {
    ...route?.variant !== undefined && { model: route.variant },
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
    ...route && { route: { ...route, ...usage.route && { actual: usage.route } } },
  };
}
