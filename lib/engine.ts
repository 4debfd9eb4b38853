/**
 * The half of a pipeline that computes: prepared pictures and a prefix in, tokens out. It holds the weights; a worker of
 * a pool has nothing else.
 */

import type { Backend, Tensor } from "./backend/backend.ts";
import { likelihoods } from "./decode/classify.ts";
import { Batch } from "./decode/batch.ts";
import type { Decoder } from "./decode/decoder.ts";
import { loadDecoder, type SlidingWindow } from "./decode/gemma.ts";
import { PrefixCache, type PrefixEntry } from "./decode/prefix_cache.ts";
import { sha256 } from "./digest.ts";
import { RequestError } from "./errors.ts";
import type { Images, Pool, PoolEvent, SubmitOptions, Work } from "./pool/pool.ts";
import { decodeRows, encodeRows, rowBytes } from "./pool/rows.ts";
import type { ModelShape } from "./pool/work.ts";
import { normalise } from "./preprocess/normalise.ts";
import { createPause } from "./schedule/line.ts";
import { createGrammar } from "./text/grammar.ts";
import { findLocations, type Locations, nearby } from "./text/locations.ts";
import { loadTokenizer, type Tokenizer } from "./text/tokenizer.ts";
import type { Cached, Constraint, Embedding, FinishReason, ModelFiles, Pause, Pixels } from "./types.ts";
import type { Classification, EmbedQuestion, Memory, Timings, WeightFormat } from "./types.ts";
import {
  type FeatureCacheOptions,
  remembering,
  type RememberingVision,
  visionRevision,
} from "./vision/feature_cache.ts";
import {
  embedded,
  featuresOf,
  loadVision,
  type Residence,
  type SiglipVision,
  type Vision,
} from "./vision/siglip.ts";
import { type ModelConfig, readConfig } from "./weights/config.ts";
import { checkRoom, openWeights } from "./weights/load.ts";
import { revisionOf } from "./weights/revision.ts";

/** The stages that hold weights, in the memory of a pipeline's backend or of an engine of their own. */
export interface Stages {
  readonly vision: Vision;
  /** Absent where decoding is another's work. */
  readonly decoder?: Decoder;
  /** Tells these weights from others. */
  readonly revision: string;
  /** Tells the vision weights from others, in their format and on their engine; by default the revision. */
  readonly featureRevision?: string;
}

/** Rows of image tokens that are sent at once: a quarter of a picture of 224 pixels, 256 KiB as f16. */
const BLOCK_ROWS = 64;

/** What an engine is made of. */
export interface EngineParts extends FeatureCacheOptions {
  readonly backend: Backend;
  /** A model directory in Hugging Face layout. */
  readonly files: ModelFiles;
  /** Stages opened by the caller; by default they are loaded from the safetensors among the files. */
  readonly stages?: Stages;
  readonly weights?: WeightFormat;
  /** `streamed`: the layers of SigLIP are read anew for every picture, and decoding is another's work. */
  readonly residence?: Residence;
  /** Where memory is limited: asked for what pictures and their image tokens take. */
  readonly memory?: Memory;
  readonly slidingWindow?: SlidingWindow;
  /** Bytes of keys and values kept for questions asked again word for word; 64 MiB by default, 0 for none. */
  readonly prefixCacheBytes?: number;
}

/**
 * Loads a model into the backend.
 *
 * @throws {RequestError} `model_invalid`, naming the file or tensor, what was expected and what was found;
 * `model_too_large` before anything is read, with needed and available bytes.
 */
export async function openEngine(parts: EngineParts): Promise<Engine> {
  const config = await readConfig(parts.files);
  const tokenizer = await loadTokenizer(parts.files);
  const stages = parts.stages ?? await loadStages(parts, config);
  const vision = remembering(stages.vision, parts.backend, parts, stages.featureRevision ?? stages.revision);
  return new Engine(parts, config, stages, tokenizer, vision);
}

/** Loads vision and decoder into the backend, or of a streamed model what stays there. */
async function loadStages(
  { backend, files, weights: format, residence, slidingWindow, blobs }: EngineParts,
  config: ModelConfig,
): Promise<Stages> {
  const weights = await openWeights(files, config, format);
  const revision = await revisionOf(files);
  // What is streamed is not all read to tell its vision weights from others.
  if (residence === "streamed") return { vision: await loadVision(backend, weights, residence), revision };
  checkRoom(weights, backend, files.place);
  return {
    // Without blobs, image tokens do not outlive this model, and whose they are need not be found out.
    featureRevision: blobs && await visionRevision(weights, backend),
    vision: await loadVision(backend, weights),
    decoder: await loadDecoder(backend, weights, slidingWindow),
    revision,
  };
}

/**
 * A loaded model. Calls do not wait for one another; whoever wants one at a time asks one at a time. Answers that are
 * computed at once share their passes over the weights.
 */
export class Engine implements Pool {
  readonly locations: Locations;
  /** Tells these weights, as they are computed with, from others. */
  readonly revision: string;
  readonly #prefixes: PrefixCache;
  readonly #batch: Batch | undefined;

  constructor(
    private readonly parts: EngineParts,
    readonly config: ModelConfig,
    readonly stages: Stages,
    readonly tokenizer: Tokenizer,
    private readonly vision: RememberingVision,
  ) {
    this.locations = findLocations(tokenizer);
    this.#prefixes = new PrefixCache(parts.prefixCacheBytes ?? 64 * 2 ** 20);
    this.#batch = stages.decoder && new Batch(stages.decoder, config, createPause());
    const { weights = "as-stored", slidingWindow = "off" } = parts;
    const computed = [weights, slidingWindow].filter((it) => it !== "as-stored" && it !== "off");
    this.revision = [stages.revision, ...computed].join("-");
  }

  /** Settles, with the reason, when nothing can be computed any more; absent where that does not happen. */
  get lost(): Promise<string> | undefined {
    return this.parts.backend.lost;
  }

  /** Image tokens of one picture. */
  get imageTokens(): number {
    return this.vision.imageTokens;
  }

  /** What work for this engine has to fit. */
  get shape(): ModelShape {
    const { config, revision, imageTokens, stages: { vision } } = this;
    return {
      revision,
      imageSize: config.vision.imageSize,
      imageTokens,
      ..."project" in vision && { featureWidth: config.vision.width },
      width: config.decoder.width,
      context: config.decoder.context,
      vocabulary: config.imageTokenId,
    };
  }

  /**
   * What makes tokens of image tokens and a prefix.
   *
   * @param task what is wanted of it, and @param missing what that needs where there is none; for messages.
   * @throws {RequestError} `pool_needed` where it has no room here.
   */
  decoder(task = "answer", missing = "answers need a pool that decodes, and POOL_URL names none"): Decoder {
    const { decoder } = this.stages;
    if (decoder) return decoder;
    throw new RequestError(
      "pool_needed",
      `Cannot ${task}: the model's decoder has no room here, where pictures only become image tokens; ${missing}`,
    );
  }

  /** A fresh grammar of the answers to a prompt of `detect` or `segment`; undefined for others. */
  grammar(prompt: string): (() => Constraint) | undefined {
    return createGrammar(this.tokenizer, this.locations, prompt, this.config.eosIds);
  }

  /** What computes. */
  get backendName(): string {
    return this.parts.backend.name;
  }

  /** The same without caches, to be timed. */
  uncached(): Engine {
    const parts = { ...this.parts, featureCacheBytes: 0, prefixCacheBytes: 0, blobs: undefined };
    const vision = remembering(this.stages.vision, parts.backend, parts, "");
    return new Engine(parts, this.config, this.stages, this.tokenizer, vision);
  }

  /** What of a question is in memory from an earlier one. @param images pixels. */
  async known(images: Images, ids: readonly number[]): Promise<Cached> {
    const keys = await Promise.all((await this.#pixels(images)).map((it) => this.vision.key(it)));
    return {
      images: keys.filter((it) => this.vision.knows(it)).length,
      prefix: this.#prefixes.entry(keys, ids).get() !== undefined,
    };
  }

  /** Computes an answer. @param options no deadline is looked at. */
  async *submit(work: Work, { signal }: SubmitOptions = {}): AsyncGenerator<PoolEvent, void> {
    const { ids, images, given, topLogits } = work;
    const { backend } = this.parts;
    const pause = createPause(signal);
    const timings = { preprocess: 0, vision: 0, prefill: 0, perToken: 0 };
    const imageTokens = images.shape[0] * this.imageTokens;
    const prefix = backend.tensor(imageTokens + ids.length, this.config.decoder.width);
    const { within } = this.locations;
    const near = within && { within, of: (id: number) => nearby(this.locations, id) };
    let count = 0;
    let finishReason: FinishReason = "cancelled";
    let tokens: ReturnType<Batch["decode"]> | undefined;
    let cached: Cached | undefined;
    try {
      const constraint = work.grammar === undefined ? undefined : this.grammar(work.grammar)?.();
      const start = performance.now();
      const encoding = await this.#encode(prefix, images, ids, pause);
      cached = encoding.cached;
      const encoded = performance.now();
      timings.vision = encoded - start;
      const { known } = encoding;
      this.decoder(); // refuses, where there is none
      tokens = this.#batch!.decode({ ...work, prefix, known, near, constraint }, pause, signal);
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
        yield {
          type: "token",
          id,
          text: "",
          logprob,
          nearLogprob,
          ...topLogits && { top: top.map((it) => ({ ...it, text: "" })) },
        };
      }
    } catch (error) {
      if (!signal?.aborted) throw error;
    } finally {
      await tokens?.return("stop"); // frees the cache when the caller stopped listening
      backend.free(prefix);
    }
    yield {
      type: "usage",
      imageTokens,
      promptTokenIds: ids,
      completionTokens: given.length + count,
      timings: timings satisfies Timings,
      ...cached && { cached },
    };
    yield { type: "done", finishReason, text: "" };
  }

  /** The likelihood of every answer, in the order given, with the end's. @param answers token ids. */
  async score(
    images: Images,
    ids: readonly number[],
    answers: readonly (readonly number[])[],
    pause: Pause,
  ): Promise<
    { logprobs: number[]; cached?: Cached; timings: Omit<Classification["timings"], "preprocess"> }
  > {
    const { backend } = this.parts;
    const prefix = backend.tensor(images.shape[0] * this.imageTokens + ids.length, this.config.decoder.width);
    try {
      const start = performance.now();
      const { known, cached } = await this.#encode(prefix, images, ids, pause);
      const encoded = performance.now();
      let prefilled = encoded;
      const onPrefill = () => prefilled = performance.now();
      const work = { prefix, ids, known, answers, onPrefill };
      const logprobs = await likelihoods(this.decoder(), this.config, work, pause);
      const timings = {
        vision: encoded - start,
        prefill: prefilled - encoded,
        labels: performance.now() - prefilled,
      };
      return { logprobs, cached, timings };
    } finally {
      backend.free(prefix);
    }
  }

  /** Image tokens of pictures, or the features before the projector. @param images pixels. */
  async embed(images: Images, stage: NonNullable<EmbedQuestion["stage"]>, pause: Pause): Promise<Embedding> {
    const { backend, memory } = this.parts;
    return await embedded(this.stages.vision, backend, await this.#pixels(images), { stage, memory }, pause);
  }

  /**
   * The same pictures at a later stage, for the way to other machines: computed anew whenever their blocks are asked for,
   * the rows of the first leave while the next are computed. What they take is set aside until they are disposed of.
   *
   * @param images pixels.
   * @throws {RequestError} with the first block: what `memory` throws, and `parameter_invalid` for features of an encoder
   * that does not give them.
   */
  encoded(
    images: Images,
    stage: "features" | "projected",
    dtype: "f16" | "int8",
    pause: Pause,
  ): Images & Disposable {
    const { backend, memory } = this.parts;
    const { config, imageTokens } = this;
    const [count] = images.shape;
    const width = stage === "projected" ? config.decoder.width : config.vision.width;
    const write = async (out: Tensor, picture: Pixels) => {
      if (stage === "projected") {
        await this.vision.encode(out, picture, await this.vision.key(picture), pause);
      } else await featuresOf(this.stages.vision)(out, picture, pause);
    };
    const pixels = () => this.#pixels(images);
    // Once kept, and once more on their way.
    const bytes = 2 * count * imageTokens * rowBytes(dtype, width);
    let taken: Disposable | undefined;
    return {
      stage,
      dtype,
      shape: [count, imageTokens, width],
      [Symbol.dispose]: () => taken?.[Symbol.dispose](),
      async *blocks() {
        taken ??= memory?.take(bytes, `encode ${count} pictures for a pool`);
        const out = backend.tensor(imageTokens, width);
        try {
          for (const picture of await pixels()) {
            await write(out, picture);
            for (let row = 0; row < imageTokens; row += BLOCK_ROWS) {
              const rows = backend.slice(out, row, Math.min(BLOCK_ROWS, imageTokens - row));
              yield encodeRows(dtype, await backend.read(rows), width);
            }
          }
        } finally {
          backend.free(out);
        }
      },
    };
  }

  async #pixels(images: Images): Promise<Pixels[]> {
    const [count, size] = images.shape;
    const samples = await gathered(images);
    const length = size * size * 3;
    const { imageMean, imageStd } = this.config;
    return Array.from({ length: count }, (_, i) => {
      const data = normalise(samples.subarray(i * length, (i + 1) * length), imageMean, imageStd);
      return { size, data };
    });
  }

  /**
   * Writes the image tokens of all pictures to the first rows of prefix [T, D], unless the whole prefix is known from
   * before, which then is given back.
   */
  async #encode(
    prefix: Tensor,
    images: Images,
    ids: readonly number[],
    pause: Pause,
  ): Promise<{ known: PrefixEntry; cached?: Cached }> {
    if (images.stage !== "pixels") return { known: await this.#take(prefix, images, ids) };
    const pictures = await this.#pixels(images);
    const keys: string[] = [];
    for (const picture of pictures) keys.push(await this.vision.key(picture));
    const known = this.#prefixes.entry(keys, ids);
    if (known.get()) return { known, cached: { images: pictures.length, prefix: true } };
    let hits = 0;
    for (const [i, picture] of pictures.entries()) {
      const out = this.parts.backend.slice(prefix, i * this.imageTokens, this.imageTokens);
      if (await this.vision.encode(out, picture, keys[i], pause)) hits++;
    }
    return { known, ...hits && { cached: { images: hits, prefix: false } } };
  }

  /** Writes image tokens, or what the projector makes of features, to the first rows of prefix [T, D]. */
  async #take(prefix: Tensor, { stage, dtype, shape, ...images }: Images, ids: readonly number[]) {
    const { backend } = this.parts;
    const [pictures, tokens, width] = shape;
    const bytes = await gathered(images);
    const known = this.#prefixes.entry([stage, dtype, (await sha256(bytes)).toHex()], ids);
    if (known.get()) return known;
    const out = backend.slice(prefix, 0, pictures * tokens);
    const values = decodeRows(dtype as "f16" | "int8", bytes, width);
    if (stage === "projected") {
      backend.write(out, values);
      return known;
    }
    const features = backend.tensor(pictures * tokens, width);
    try {
      backend.write(features, values);
      (this.stages.vision as SiglipVision).project(out, features);
    } finally {
      backend.free(features);
    }
    return known;
  }
}

/** All bytes of pictures. */
async function gathered(images: Pick<Images, "blocks">): Promise<Uint8Array<ArrayBuffer>> {
  const blocks = await Array.fromAsync(images.blocks());
  return new Uint8Array(await new Blob(blocks as BlobPart[]).arrayBuffer());
}
