/**
 * The weights of one model as the backend takes them: every tensor of the table found, its shape checked before
 * anything is read, and each matrix brought to the format asked for.
 *
 * A quantised tensor `x` lies in the file as `x.q` (packed bytes) and `x.scale` (F32, one per output column). Which
 * scheme `q` is packed in stands in the file's metadata, one entry for each of `vision`, `embedding`, `decoder`.
 */

import type { Scheme, StoredMatrix } from "../backend/backend.ts";
import { RequestError } from "../errors.ts";
import type { ModelFiles, WeightFormat } from "../types.ts";
import type { ModelConfig } from "./config.ts";
import { checkScheme, dequantize, packedBytes, quantizeInt4, quantizeInt8 } from "./quantize.ts";
import { openTensors, type TensorInfo } from "./safetensors.ts";
import { canonicalName, EMBEDDING, tensorTable } from "./table.ts";
import type { TensorSpec } from "./table.ts";

/** The part of a model that one metadata entry gives a scheme to. */
export type WeightPart = "vision" | "embedding" | "decoder";

/** Weights by their published name. */
export interface Weights {
  readonly config: ModelConfig;
  /** A norm weight, bias or position table, row-major f32. */
  vector(name: string): Promise<Float32Array>;
  /** A matrix [N, K], trailing axes flattened into K, in the format of the whole or in the scheme asked for. */
  matrix(name: string, scheme?: Scheme): Promise<StoredMatrix>;
  /** Bytes of the files that hold the model. */
  readonly sizeBytes: number;
}

/** Which part of the model a tensor belongs to, for its scheme. */
export function weightPart(spec: TensorSpec): WeightPart {
  return spec.name === EMBEDDING ? "embedding" : spec.part;
}

/**
 * The scheme of a tensor in a format: what the format asks for, as far as the tensor allows.
 *
 * `int8` makes every matrix int8; `int4` goes down to int4 in the decoder and keeps vision and embedding int8.
 */
export function schemeFor(spec: TensorSpec, format: Exclude<WeightFormat, "as-stored">): Scheme {
  if (format === "f32" || spec.lowest === "f32") return "f32";
  return format === "int4" && spec.lowest === "int4" ? "int4-g32-p8" : "int8-p8-s4";
}

/**
 * Opens the weights in a model directory.
 *
 * @param format `as-stored` keeps quantised tensors quantised and reads every float type as f32.
 * @throws {RequestError} `model_invalid`, naming the tensor, what was expected and what was found.
 */
export async function openWeights(
  files: ModelFiles,
  config: ModelConfig,
  format: WeightFormat = "as-stored",
): Promise<Weights> {
  const stored = await openTensors(files);
  const specs = new Map<string, TensorSpec>();
  for (const spec of tensorTable(config)) specs.set(spec.name, spec);
  const names = new Map<string, string>(); // published name -> name in the file
  let sizeBytes = 0;
  for (const [name, info] of stored.tensors) {
    const canonical = canonicalName(name);
    if (canonical) names.set(canonical, name);
    sizeBytes += info.end - info.start;
  }
  const invalid = (detail: string): never => {
    throw new RequestError("model_invalid", `Cannot load the model in ${files.place}: ${detail}`);
  };
  const tensor = (name: string): TensorInfo | undefined => stored.tensors.get(names.get(name) ?? "");
  const quantised = new Map<string, Scheme>();
  for (const spec of specs.values()) {
    const plain = tensor(spec.name);
    if (plain) {
      if (!equal(plain.shape, spec.shape)) {
        invalid(`tensor "${spec.name}": expected shape [${spec.shape}], found [${plain.shape}]`);
      }
      continue;
    }
    const packed = tensor(`${spec.name}.q`);
    if (!packed) invalid(`expected tensor "${spec.name}", found none of that name`);
    const part = weightPart(spec);
    const scheme = schemeOf(part, stored.metadata[part], invalid);
    const [n, k] = [spec.shape[0], width(spec)];
    const bytes = packed!.end - packed!.start;
    if (bytes !== packedBytes(scheme, n, k)) {
      invalid(
        `tensor "${spec.name}.q": ${scheme} [${n}, ${k}] takes ${
          packedBytes(scheme, n, k)
        } bytes, found ${bytes}`,
      );
    }
    const scale = tensor(`${spec.name}.scale`);
    if (!scale) invalid(`expected tensor "${spec.name}.scale" beside "${spec.name}.q", found none`);
    if (!equal(scale!.shape, [n])) {
      invalid(`tensor "${spec.name}.scale": expected shape [${n}], found [${scale!.shape}]`);
    }
    quantised.set(spec.name, scheme);
  }
  const specOf = (name: string) => {
    const spec = specs.get(name);
    if (!spec) throw new RangeError(`No tensor "${name}" in the table of this model`);
    return spec;
  };
  const vector = (name: string) => stored.f32(names.get(specOf(name).name)!);
  return {
    config,
    sizeBytes,
    vector,
    async matrix(name, wanted) {
      const spec = specOf(name);
      const [n, k] = [spec.shape[0], width(spec)];
      const found = quantised.get(name) ?? "f32";
      const scheme = wanted ?? (format === "as-stored" ? found : schemeFor(spec, format));
      if (found === "f32") return pack(scheme, await vector(name), n, k);
      const data = await stored.bytes(names.get(`${name}.q`)!);
      const matrix = { scheme: found, n, k, data, scale: await stored.f32(names.get(`${name}.scale`)!) };
      return scheme === found ? matrix : pack(scheme, dequantize(matrix), n, k);
    },
  };
}

/** f32 [N, K] in a scheme. */
export function pack(scheme: Scheme, data: Float32Array, n: number, k: number): StoredMatrix {
  switch (scheme) {
    case "f32":
      return { scheme, n, k, data };
    case "int8-p8-s4":
      return quantizeInt8(data, n, k);
    case "int4-g32-p8":
      return quantizeInt4(data, n, k);
  }
}

/** Values per row, trailing axes flattened. */
export function width(spec: TensorSpec): number {
  return spec.shape.slice(1).reduce((product, it) => product * it, 1);
}

function schemeOf(part: string, found: string | undefined, invalid: (detail: string) => never): Scheme {
  if (!found) return invalid(`expected the metadata to name the scheme of the ${part} weights, found none`);
  try {
    return checkScheme(found);
  } catch (cause) {
    return invalid(`${part} weights: ${(cause as Error).message}`);
  }
}

function equal(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((it, i) => it === b[i]);
}
