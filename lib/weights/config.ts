/**
 * What a model is, read from `config.json`, `preprocessor_config.json` and `generation_config.json`.
 *
 * Published configs leave out what equals the default of transformers' config classes, so the same defaults stand
 * here (`configuration_gemma.py`, `configuration_gemma2.py`, `configuration_siglip.py`, transformers 5.18). The
 * traps: the top-level `hidden_size` is 2048 whatever the decoder's width; the class default of the image token id
 * (256000) is `<loc0000>`; the class default of the ViT's MLP width is not So400m's.
 */

import { RequestError } from "../errors.ts";
import type { ModelFiles } from "../types.ts";
import { parseJson } from "./safetensors.ts";

/** SigLIP. The number of image tokens is (imageSize / patch)². */
export interface VisionConfig {
  readonly imageSize: number;
  readonly patch: number;
  readonly width: number;
  readonly layers: number;
  readonly heads: number;
  readonly mlp: number;
  readonly eps: number;
}

/** Gemma 1 or Gemma 2. */
export interface DecoderConfig {
  readonly family: "gemma" | "gemma2";
  readonly width: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly mlp: number;
  readonly vocab: number;
  /** Positions the model was trained for; image, prefix and suffix together. */
  readonly context: number;
  readonly eps: number;
  readonly ropeTheta: number;
  /** Scores are multiplied by this. */
  readonly attentionScale: number;
  /** Gemma 2: cap of the attention scores. */
  readonly softcap?: number;
  /** Gemma 2: window of the even layers, which transformers applies and the training code does not. */
  readonly window?: number;
}

/** A PaliGemma model. */
export interface ModelConfig {
  readonly vision: VisionConfig;
  readonly decoder: DecoderConfig;
  /** Ids from here upward are never sampled. */
  readonly imageTokenId: number;
  readonly bosId: number;
  readonly padId: number;
  /** Any of these ends the answer. */
  readonly eosIds: readonly number[];
  /** Per-channel mean and deviation of the pixel normalisation. */
  readonly imageMean: readonly number[];
  readonly imageStd: readonly number[];
}

type Json = Record<string, unknown>;

const GEMMA = { hidden_size: 3072, intermediate_size: 24576, num_hidden_layers: 28, num_attention_heads: 16 };
const GEMMA2 = { hidden_size: 2304, intermediate_size: 9216, num_hidden_layers: 26, num_attention_heads: 8 };

/**
 * Reads the configuration of a model directory in Hugging Face layout.
 *
 * @throws {RequestError} `model_invalid`, naming the file and the field.
 */
export async function readConfig(files: ModelFiles): Promise<ModelConfig> {
  const json = await optional(files, "config.json");
  if (!json) {
    throw new RequestError(
      "model_invalid",
      `Cannot load the model in ${files.place}: expected config.json, found ${
        (await files.list()).join(", ") || "nothing"
      }`,
    );
  }
  const preprocessor = await optional(files, "preprocessor_config.json");
  const generation = await optional(files, "generation_config.json");
  return parseConfig(json, preprocessor, generation, files.place);
}

/**
 * The same from parsed JSON; `place` is for messages.
 *
 * @throws {RequestError} `model_invalid`, naming the field, what was expected and what was found.
 */
export function parseConfig(
  json: Json,
  preprocessor: Json = {},
  generation: Json = {},
  place = "config.json",
): ModelConfig {
  const top = new Fields(json, place, "");
  const text = new Fields(top.object("text_config"), place, "text_config.");
  const vit = new Fields(top.object("vision_config"), place, "vision_config.");
  const size = (preprocessor.size ?? {}) as Json;

  const patch = vit.integer("patch_size", 14);
  const imageSize = vit.integer("image_size", Number(size.height ?? 224));
  if (imageSize % patch) top.fail("vision_config.image_size", `a multiple of patch_size ${patch}`, imageSize);
  if (size.height !== undefined && (size.height !== imageSize || size.width !== imageSize)) {
    top.fail(
      "preprocessor_config.json size",
      `${imageSize} × ${imageSize}`,
      `${size.height} × ${size.width}`,
    );
  }
  const vision: VisionConfig = {
    imageSize,
    patch,
    width: vit.integer("hidden_size", 1152),
    layers: vit.integer("num_hidden_layers", 27),
    heads: vit.integer("num_attention_heads", 16),
    mlp: vit.integer("intermediate_size", 4304),
    eps: vit.number("layer_norm_eps", 1e-6),
  };
  if (vision.width % vision.heads) {
    top.fail("vision_config.num_attention_heads", `a divisor of ${vision.width}`, vision.heads);
  }
  return {
    vision,
    decoder: decoderConfig(text),
    imageTokenId: top.integer("image_token_index", top.integer("image_token_id", 257152)),
    bosId: top.integer("bos_token_id", text.integer("bos_token_id", 2)),
    padId: top.integer("pad_token_id", text.integer("pad_token_id", 0)),
    eosIds: [
      ...new Set([json.eos_token_id ?? text.json.eos_token_id ?? 1, generation.eos_token_id ?? []].flat(2)),
    ]
      .map(Number),
    imageMean: (preprocessor.image_mean ?? [0.5, 0.5, 0.5]) as number[],
    imageStd: (preprocessor.image_std ?? [0.5, 0.5, 0.5]) as number[],
  };
}

function decoderConfig(text: Fields): DecoderConfig {
  const family = text.json.model_type ?? "gemma";
  if (family !== "gemma" && family !== "gemma2") text.fail("model_type", '"gemma" or "gemma2"', family);
  const second = family === "gemma2";
  const common = second ? GEMMA2 : GEMMA;
  const rope = (text.json.rope_parameters ?? {}) as Json;
  const headDim = text.integer("head_dim", 256);
  const heads = text.integer("num_attention_heads", common.num_attention_heads);
  const kvHeads = text.integer("num_key_value_heads", second ? 4 : common.num_attention_heads);
  if (heads % kvHeads) text.fail("num_key_value_heads", `a divisor of ${heads}`, kvHeads);
  if (headDim % 2) text.fail("head_dim", "an even number", headDim);
  return {
    family,
    width: text.integer("hidden_size", common.hidden_size),
    layers: text.integer("num_hidden_layers", common.num_hidden_layers),
    heads,
    kvHeads,
    headDim,
    mlp: text.integer("intermediate_size", common.intermediate_size),
    vocab: text.integer("vocab_size", 257216),
    context: text.integer("max_position_embeddings", 8192),
    eps: text.number("rms_norm_eps", 1e-6),
    ropeTheta: text.number("rope_theta", Number(rope.rope_theta ?? 10000)),
    attentionScale: second ? text.number("query_pre_attn_scalar", 256) ** -0.5 : headDim ** -0.5,
    softcap: second ? text.number("attn_logit_softcapping", 50) : undefined,
    window: second ? text.integer("sliding_window", 4096) : undefined,
  };
}

/** Fields of one JSON object, with its name for messages. */
class Fields {
  constructor(readonly json: Json, readonly place: string, readonly prefix: string) {}

  object(name: string): Json {
    const value = this.json[name];
    if (typeof value !== "object" || value === null) this.fail(name, "an object", value);
    return value as Json;
  }

  integer(name: string, otherwise: number): number {
    const value = this.json[name] ?? otherwise;
    if (!Number.isSafeInteger(value) || (value as number) < 0) this.fail(name, "a whole number", value);
    return value as number;
  }

  number(name: string, otherwise: number): number {
    const value = this.json[name] ?? otherwise;
    if (typeof value !== "number" || !(value > 0)) this.fail(name, "a positive number", value);
    return value;
  }

  fail(name: string, expected: string, found: unknown): never {
    const what = `expected ${this.prefix}${name} to be ${expected}, found ${JSON.stringify(found)}`;
    throw new RequestError("model_invalid", `Cannot load the model in ${this.place}: ${what}`);
  }
}

async function optional(files: ModelFiles, name: string): Promise<Json | undefined> {
  if (await files.size(name) === undefined) return undefined;
  return parseJson(files, name, await files.read(name));
}
