/** A mask of 64 × 64 brought to its box in the picture, as big_vision's evaluators do it. */

import type { Box } from "../types.ts";
import { MASK_SIDE } from "./mask_decoder.ts";

/** Whole pixels [top, bottom) × [left, right) of a picture, and which of them are inside: u8 0 or 1, row-major. */
export interface Patch {
  readonly top: number;
  readonly left: number;
  readonly height: number;
  readonly width: number;
  readonly inside: Uint8Array;
}

/**
 * Resizes the mask's logits to the box, whose sides are cut to whole pixels, and takes what is above 0. Bilinear as
 * Pillow's: where the box is smaller than the mask, every pixel averages all that it covers.
 *
 * @param logits [64 · 64] f32, row-major.
 */
export function paste(logits: Float32Array, box: Box, picture: { width: number; height: number }): Patch {
  const [top, bottom] = [Math.trunc(box.yMin * picture.height), Math.trunc(box.yMax * picture.height)];
  const [left, right] = [Math.trunc(box.xMin * picture.width), Math.trunc(box.xMax * picture.width)];
  const [height, width] = [Math.max(0, bottom - top), Math.max(0, right - left)];
  const columns = weights(MASK_SIDE, width), rows = weights(MASK_SIDE, height);
  const narrow = new Float32Array(MASK_SIDE * width);
  for (let y = 0; y < MASK_SIDE; y++) {
    for (const [x, { first, taps }] of columns.entries()) {
      narrow[y * width + x] = taps.reduce((sum, it, i) => sum + it * logits[y * MASK_SIDE + first + i], 0);
    }
  }
  const inside = new Uint8Array(height * width);
  for (const [y, { first, taps }] of rows.entries()) {
    for (let x = 0; x < width; x++) {
      let sum = 0;
      for (let i = 0; i < taps.length; i++) sum += taps[i] * narrow[(first + i) * width + x];
      inside[y * width + x] = Number(sum > 0);
    }
  }
  return { top, left, height, width, inside };
}

/** Triangle filter of one axis (Pillow's `Resample.c`, BILINEAR): the taps of each output sample, summing to 1. */
function weights(from: number, to: number): { first: number; taps: number[] }[] {
  const scale = from / to, reach = Math.max(scale, 1);
  return Array.from({ length: to }, (_, at) => {
    const centre = (at + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const end = Math.min(from, Math.trunc(centre + reach + 0.5));
    const taps = Array.from(
      { length: end - first },
      (_, i) => Math.max(0, 1 - Math.abs((first + i - centre + 0.5) / reach)),
    );
    const sum = taps.reduce((a, b) => a + b, 0);
    return { first, taps: taps.map((it) => it / sum) };
  });
}
