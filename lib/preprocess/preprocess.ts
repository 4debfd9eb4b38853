/** Encoded picture to model input: decode, turn upright, squash to the square, normalise. */

import type { Pixels, ResizeMethod } from "../types.ts";
import { type DecodeOptions, decodePicture } from "./decode.ts";
import { resizeBicubic, resizeBilinear } from "./resize.ts";

export interface PreprocessOptions extends DecodeOptions {
  /** Side of the model's square input, pixels. */
  readonly size: number;
  readonly method: ResizeMethod;
  /** Per channel, length 3; PaliGemma has 0.5 everywhere. */
  readonly mean: readonly number[];
  readonly std: readonly number[];
}

/** A picture of the model's size. */
export interface Prepared {
  /** Side, pixels. */
  readonly size: number;
  /** [size, size, 3] u8, row-major, RGB. */
  readonly samples: Uint8Array;
  /** The upright picture that it was made from, pixels. */
  readonly picture: { readonly width: number; readonly height: number };
}

/** Brings a picture to the model's square. @throws {RequestError} as `decodePicture`. */
export async function prepare(
  bytes: Uint8Array,
  options: Omit<PreprocessOptions, "mean" | "std">,
): Promise<Prepared> {
  const { size, method } = options;
  const picture = await decodePicture(bytes, options);
  const resize = { "hf-bicubic": resizeBicubic, "bv-bilinear-aa": resizeBilinear }[method];
  const { width, height } = picture;
  return { size, samples: resize(picture, size), picture: { width, height } };
}

/** The whole way from bytes to model input. @throws {RequestError} as `decodePicture`. */
export async function preprocess(bytes: Uint8Array, options: PreprocessOptions): Promise<Pixels> {
  const { size, samples } = await prepare(bytes, options);
  return { size, data: normalise(samples, options.mean, options.std) };
}

/**
 * (x/255 − mean) / std per channel, rounded to f32 after every step as Hugging Face's numpy code does: u8 [N, 3] to
 * f32 [N, 3], for mean = std = ½ in [-1, 1].
 *
 * @example
 * ```ts
 * import { normalise } from "./preprocess.ts";
 * const half = [0.5, 0.5, 0.5];
 * console.assert(normalise(new Uint8Array([0, 51, 255]), half, half).join() === "-1,-0.6000000238418579,1");
 * ```
 */
export function normalise(
  samples: Uint8Array,
  mean: readonly number[],
  std: readonly number[],
): Float32Array {
  if (samples.length % 3 || mean.length !== 3 || std.length !== 3) {
    throw new RangeError(
      `Cannot normalise: expected [N, 3], 3 means and 3 deviations, found ${samples.length} samples, ` +
        `${mean.length} and ${std.length}`,
    );
  }
  const round = Math.fround;
  // 256 values a channel: computed once instead of once a pixel.
  const tables = [0, 1, 2].map((c) =>
    Float32Array.from({ length: 256 }, (_, x) => round(round(x * (1 / 255)) - round(mean[c])) / round(std[c]))
  );
  const [r, g, b] = tables;
  const out = new Float32Array(samples.length);
  for (let i = 0; i < out.length; i += 3) {
    out[i] = r[samples[i]];
    out[i + 1] = g[samples[i + 1]];
    out[i + 2] = b[samples[i + 2]];
  }
  return out;
}
