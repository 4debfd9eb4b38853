/** Models with random weights: any shape, any format, the same every time. */

import { packedBytes } from "../../lib/backend/layout.ts";
import type { Scheme, StoredMatrix } from "../../lib/backend/backend.ts";
import { parseConfig } from "../../lib/weights/config.ts";
import type { ModelConfig } from "../../lib/weights/config.ts";
import { pack, type Weights, width } from "../../lib/weights/load.ts";
import { tensorTable } from "../../lib/weights/table.ts";

/** Sizes of a model; what is absent is PaliGemma 3B's. */
export interface Sizes {
  readonly family: "gemma" | "gemma2";
  readonly imageSize?: number;
  readonly vision?: Partial<Record<"layers" | "width" | "heads" | "mlp", number>>;
  readonly decoder?: Partial<
    Record<"layers" | "width" | "heads" | "kvHeads" | "mlp" | "vocab" | "context", number>
  >;
}

/** The configuration of such a model. Head width is 256, as in every Gemma. */
export function configOf({ family, imageSize = 224, vision: v = {}, decoder: d = {} }: Sizes): ModelConfig {
  const second = family === "gemma2";
  return parseConfig({
    image_token_index: (d.vocab ?? 257216) - 64,
    text_config: {
      model_type: family,
      hidden_size: d.width ?? (second ? 2304 : 2048),
      intermediate_size: d.mlp ?? (second ? 9216 : 16384),
      num_hidden_layers: d.layers ?? (second ? 26 : 18),
      num_attention_heads: d.heads ?? 8,
      num_key_value_heads: d.kvHeads ?? (second ? 4 : 1),
      vocab_size: d.vocab ?? 257216,
      max_position_embeddings: d.context ?? 8192,
    },
    vision_config: {
      image_size: imageSize,
      hidden_size: v.width ?? 1152,
      num_hidden_layers: v.layers ?? 27,
      num_attention_heads: v.heads ?? 16,
      intermediate_size: v.mlp ?? 4304,
    },
  });
}

/**
 * Weights of variance 1/K, small biases and norms. Quantised matrices are true roundings of the f32 ones, which takes
 * time; `fast` draws their bytes instead, for benchmarks of true size.
 */
export function randomWeights(config: ModelConfig, { fast = false } = {}): Weights {
  const specs = new Map(tensorTable(config).map((it) => [it.name, it]));
  const values = (name: string, count: number, deviation: number) => {
    const next = numbers([...name].reduce((hash, it) => Math.imul(hash, 31) + it.charCodeAt(0), 7));
    return Float32Array.from({ length: count }, () => next() * deviation);
  };
  const size = (shape: readonly number[]) => shape.reduce((product, it) => product * it, 1);
  const weights: Weights = {
    config,
    sizeBytes: 0,
    gather: () => Promise.resolve(weights),
    vector(name) {
      const { shape } = specs.get(name)!;
      // Positions and the patch embedding are read as vectors too.
      const deviation = shape.length > 1 ? 0.05 : 0.1;
      const drawn = values(name, size(shape), deviation);
      return Promise.resolve(
        /layer_?norm.*weight$/.test(name) && name.startsWith("vision") ? drawn.map((it) => it + 1) : drawn,
      );
    },
    matrix(name, scheme = "f32") {
      const spec = specs.get(name)!;
      const [n, k] = [spec.shape[0], width(spec)];
      if (fast && scheme !== "f32") return Promise.resolve(drawn(scheme, n, k));
      return Promise.resolve(pack(scheme, values(name, n * k, k ** -0.5), n, k));
    },
  };
  return weights;
}

/** A quantised matrix of random bytes; every int4 group has the same scale. */
function drawn(scheme: Exclude<Scheme, "f32">, n: number, k: number): StoredMatrix {
  const data = new Uint8Array(packedBytes(scheme, n, k));
  const words = new Uint32Array(data.buffer, 0, data.length >> 2);
  let state = n * 31 + k | 1;
  for (let i = 0; i < words.length; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    words[i] = state ^= state << 5;
  }
  if (scheme === "int8-p8-s4") {
    const bytes = new Int8Array(data.buffer);
    for (let i = 0; i < bytes.length; i++) bytes[i] >>= 2; // within every bound
    return { scheme, n, k, data, scale: new Float32Array(n).fill(k ** -0.5 / 18) };
  }
  for (let at = 0; at < data.length; at += 144) {
    for (let i = 0; i < 16; i += 2) [data[at + i], data[at + i + 1]] = [0, 2]; // 512
  }
  return { scheme, n, k, data, scale: new Float32Array(n).fill(k ** -0.5 / 4.6 / 512) };
}

/** Numbers of variance 1, uniform. */
function numbers(seed: number): () => number {
  let state = seed | 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state / 2 ** 31 * Math.sqrt(3);
  };
}
