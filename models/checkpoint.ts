/**
 * A checkpoint as the converter reads it: tensors by their published name, some rows at a time, whatever format the
 * file is in. This file reads safetensors; `npz.ts` reads big_vision's format and `lora.ts` lays an adapter over either.
 */

import type { ModelConfig } from "../lib/weights/config.ts";
import type { Scheme } from "../lib/backend/backend.ts";
import { type ModelFiles, RequestError } from "../lib/mod.ts";
import { openWeights, weightPart, width } from "../lib/weights/load.ts";
import { checkScheme, dequantize, packedBytes } from "../lib/weights/quantize.ts";
import { openTensors, toFloat32 } from "../lib/weights/safetensors.ts";
import { canonicalName, type TensorSpec } from "../lib/weights/table.ts";

/** Bytes of f32 rows read at once where rows lie one after another. */
const BLOCK_BYTES = 32 * 2 ** 20;

/** One tensor, taken as [N, K] with trailing axes flattened into K (a vector has K = 1). */
export interface RowReader {
  /** Where it begins: reading in ascending order of this moves forward through the files. */
  readonly position: readonly [file: string, offset: number];
  /** What it is stored in; packed rows come from `packed`. */
  readonly scheme: Scheme;
  /** Rows that are best read at once, a multiple of 8: a bound on memory. */
  readonly blockRows: number;
  /** Rows [start, end) as f32, row-major. The array is the reader's own until the next call of any reader. */
  rows(start: number, end: number): Promise<Float32Array>;
  /** Rows [start, end) as they lie packed, where `scheme` is not f32; `start` is a multiple of 8. */
  packed(start: number, end: number): Promise<{ data: Uint8Array; scale: Float32Array }>;
}

/** An opened checkpoint. */
export interface Checkpoint {
  readonly config: ModelConfig;
  /** For messages. */
  readonly place: string;
  reader(spec: TensorSpec): RowReader;
}

/** Rows of K values that take about `bytes` as f32, a multiple of 8 and at least 8. */
export function rowsIn(bytes: number, k: number): number {
  return Math.max(8, Math.floor(bytes / (4 * k) / 8) * 8);
}

/**
 * Opens a directory in Hugging Face layout, plain or quantised.
 *
 * @throws {RequestError} `model_invalid` unless every tensor of the model is there in the right shape.
 */
export async function openSafetensors(files: ModelFiles, config: ModelConfig): Promise<Checkpoint> {
  await openWeights(files, config); // checks every name, shape and scheme
  const { tensors, metadata } = await openTensors(files);
  const names = new Map([...tensors.keys()].map((it) => [canonicalName(it) ?? it, it]));
  const read = async (name: string, element: number, from: number, to: number) => {
    const { file, start, end } = tensors.get(name)!;
    if (start + to * element > end) throw new RangeError(`"${name}": ${to} elements reach beyond its end`);
    return await files.read(file, start + from * element, start + to * element);
  };
  const floats = async (name: string, from: number, to: number) => {
    const { dtype, start, end, shape } = tensors.get(name)!;
    const element = (end - start) / shape.reduce((product, it) => product * it, 1);
    try {
      return toFloat32(dtype, await read(name, element, from, to));
    } catch (cause) {
      if (!(cause instanceof TypeError)) throw cause;
      throw new RequestError(
        "model_invalid",
        `Cannot read tensor "${name}" of ${files.place}: ${cause.message}`,
      );
    }
  };
  return {
    config,
    place: files.place,
    reader(spec) {
      const k = width(spec);
      const plain = names.get(spec.name);
      const scheme: Scheme = plain ? "f32" : checkScheme(metadata[weightPart(spec)]);
      const data = plain ?? names.get(`${spec.name}.q`)!;
      const scale = plain ? undefined : names.get(`${spec.name}.scale`);
      const { file, start } = tensors.get(data)!;
      const packed = async (from: number, to: number) => ({
        data: await read(data, 1, packedBytes(scheme, from, k), packedBytes(scheme, to, k)),
        scale: await floats(scale!, from, to),
      });
      return {
        position: [file, start],
        scheme,
        blockRows: rowsIn(BLOCK_BYTES, k),
        packed,
        async rows(from, to) {
          if (!scale) return await floats(data, from * k, to * k);
          return dequantize({ scheme, n: to - from, k, ...await packed(from, to) });
        },
      };
    },
  };
}
