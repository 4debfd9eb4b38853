/** The stages of one model without the pipeline around them, for those who look at logits and activations. */

import { dirname, join } from "@std/path";
import { type Backend, type ModelFiles, RequestError } from "../lib/mod.ts";
import type { Decoder } from "../lib/decode/decoder.ts";
import { loadDecoder } from "../lib/decode/gemma.ts";
import { preprocess } from "../lib/preprocess/preprocess.ts";
import { prefixIds } from "../lib/text/prompt.ts";
import { loadTokenizer, type Tokenizer } from "../lib/text/tokenizer.ts";
import type { Pause, WeightFormat } from "../lib/types.ts";
import { loadVision, type Vision } from "../lib/vision/siglip.ts";
import { type ModelConfig, readConfig } from "../lib/weights/config.ts";
import { checkRoom, openWeights, type Weights } from "../lib/weights/load.ts";

/** A picture, as its file, and a prompt. */
export interface Shown {
  readonly image: Uint8Array;
  readonly prompt: string;
}

/**
 * Questions of a data set (`evaluation/data.ts` tells its form): all, or so many evenly spread over it.
 *
 * @throws {RequestError} `parameter_invalid` for a file or picture that is not there, and for one without questions.
 */
export async function readShown(data: string, count = Infinity): Promise<Shown[]> {
  const fail = (cause: Error): never => {
    throw new RequestError("parameter_invalid", `Cannot read questions from ${data}: ${cause.message}`, {
      cause,
    });
  };
  const lines = (await Deno.readTextFile(data).catch(fail)).split("\n").filter((it) => it.trim());
  if (!lines.length) fail(new Error("expected one JSON object a line, found none"));
  const step = Math.max(1, lines.length / count);
  const picked = Array.from({ length: Math.min(count, lines.length) }, (_, i) => lines[Math.floor(i * step)]);
  return await Promise.all(picked.map(async (line) => {
    const { image, prompt } = JSON.parse(line) as Omit<Shown, "image"> & { image: string };
    return { image: await Deno.readFile(join(dirname(data), image)), prompt };
  })).catch(fail);
}

/** A model in a backend. */
export interface Stages {
  readonly config: ModelConfig;
  readonly backend: Backend;
  readonly tokenizer: Tokenizer;
  readonly vision: Vision;
  readonly decoder: Decoder;
}

/**
 * Loads a model; `lend` may look at the weights on their way into the backend.
 *
 * @throws {RequestError} `model_too_large` before anything is read; `model_invalid` as the pipeline does.
 */
export async function openStages(
  backend: Backend,
  files: ModelFiles,
  format: WeightFormat,
  lend: (weights: Weights) => Weights = (it) => it,
): Promise<Stages> {
  const config = await readConfig(files);
  const weights = await openWeights(files, config, format);
  checkRoom(weights, backend, files.place);
  return {
    config,
    backend,
    tokenizer: await loadTokenizer(files),
    vision: await loadVision(backend, lend(weights)),
    decoder: await loadDecoder(backend, lend(weights)),
  };
}

/**
 * Logits [V] after the prompt and after each token but the last: `next` is given them and names the token that
 * follows, or nothing to end.
 */
export async function run(
  { config, backend, tokenizer, vision, decoder }: Stages,
  { image, prompt }: Shown,
  maxTokens: number,
  next: (logits: Float32Array, position: number) => number | undefined,
  pause: Pause,
): Promise<void> {
  const pixels = await preprocess(image, {
    size: config.vision.imageSize,
    method: "hf-bicubic",
    maxPixels: 50_000_000,
    mean: config.imageMean,
    std: config.imageStd,
  });
  const ids = prefixIds(tokenizer, prompt, { bosId: config.bosId });
  const prefix = backend.tensor(vision.imageTokens + ids.length, config.decoder.width);
  const cache = decoder.cache(prefix.rows + maxTokens);
  try {
    await vision.encode(backend.slice(prefix, 0, vision.imageTokens), pixels, pause);
    let logits = await decoder.prefill(cache, prefix, ids, pause);
    for (let position = 0; position < maxTokens; position++) {
      // Rows of the table beyond the text vocabulary are never sampled.
      const id = next(logits.subarray(0, config.imageTokenId), position);
      if (id === undefined || position + 1 === maxTokens) return;
      logits = await decoder.step(cache, id, pause);
    }
  } finally {
    cache.free();
    backend.free(prefix);
  }
}
