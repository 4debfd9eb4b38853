/** Encoded picture to model input: decode, turn upright, squash to the square, normalise. */

import type { Pixels, ResizeMethod } from "../types.ts";
import { type DecodeOptions, decodePicture } from "./decode.ts";
import { normalise } from "./normalise.ts";
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
