/**
 * EXIF orientation: found in the TIFF block that all three containers carry, and undone.
 *
 * Sources: Exif 2.32 §4.6.4 (tag 0x0112), TIFF 6.0 §2.
 */

import type { AlphaPolicy, Picture } from "../types.ts";

/** 1 upright, 2 mirrored, 3 half turn, 4 flipped, 5 transposed, 6 and 8 quarter turns, 7 transversed. */
export type Orientation = 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8;

const ORIENTATION_TAG = 0x0112;
const SHORT = 3;

/**
 * The orientation in an EXIF block, with or without the `Exif\0\0` in front; undefined where there is none or the
 * block cannot be read. Metadata never fails a picture: cameras and editors write much that is broken.
 */
export function exifOrientation(exif: Uint8Array): Orientation | undefined {
  const tiff = startsWithExif(exif) ? exif.subarray(6) : exif;
  if (tiff.length < 14) return undefined;
  const view = new DataView(tiff.buffer, tiff.byteOffset, tiff.byteLength);
  const order = view.getUint16(0);
  if (order !== 0x4949 && order !== 0x4d4d) return undefined;
  const little = order === 0x4949;
  if (view.getUint16(2, little) !== 42) return undefined;
  const directory = view.getUint32(4, little);
  if (directory + 2 > tiff.length) return undefined;
  const entries = view.getUint16(directory, little);
  for (let i = 0; i < entries; i++) {
    const at = directory + 2 + 12 * i;
    if (at + 12 > tiff.length) return undefined;
    if (view.getUint16(at, little) !== ORIENTATION_TAG) continue;
    if (view.getUint16(at + 2, little) !== SHORT) return undefined;
    const value = view.getUint16(at + 8, little);
    return value >= 1 && value <= 8 ? value as Orientation : undefined;
  }
  return undefined;
}

/** Whether a block begins with `Exif\0\0`. */
export function startsWithExif(block: Uint8Array): boolean {
  return [0x45, 0x78, 0x69, 0x66, 0, 0].every((byte, i) => block[i] === byte);
}

/** What a decoder gives: `data` is [H, W, 4] u8, row-major, straight (not premultiplied) alpha. */
export interface Rgba {
  readonly width: number;
  readonly height: number;
  readonly data: Uint8Array | Uint8ClampedArray;
}

/**
 * Turns a decoded picture upright and takes its alpha away, in one pass. `drop` keeps the stored colour whatever
 * its alpha; `white` composites: c' = round((c·a + 255·(255 − a)) / 255), rounded as Pillow's `paste` does it.
 */
export function upright(picture: Rgba, orientation: Orientation, alpha: AlphaPolicy): Picture {
  const { width: w, height: h, data } = picture;
  const turned = orientation >= 5;
  const [width, height] = turned ? [h, w] : [w, h];
  // Where the stored pixel (0, 0) goes, and how far one stored step right or down moves in the upright picture.
  const right = orientation === 2 || orientation === 3 || orientation === 6 || orientation === 7;
  const bottom = orientation === 3 || orientation === 4 || orientation === 7 || orientation === 8;
  const start = (right ? width - 1 : 0) + (bottom ? height - 1 : 0) * width;
  const along = right ? -1 : 1, across = bottom ? -width : width;
  const [stepX, stepY] = turned ? [across, along] : [along, across];

  const out = new Uint8Array(w * h * 3);
  for (let y = 0, from = 0; y < h; y++) {
    for (let x = 0, to = 3 * (start + y * stepY); x < w; x++, from += 4, to += 3 * stepX) {
      out[to] = data[from];
      out[to + 1] = data[from + 1];
      out[to + 2] = data[from + 2];
      if (alpha === "white" && data[from + 3] !== 255) {
        const a = data[from + 3];
        for (let c = 0; c < 3; c++) {
          const sum = data[from + c] * a + 255 * (255 - a) + 128;
          out[to + c] = ((sum >> 8) + sum) >> 8;
        }
      }
    }
  }
  return { width, height, data: out };
}
