/**
 * The PNG container: size, orientation, completeness, and the chunks that the pixels are made of.
 *
 * Source: PNG specification, third edition, §5 and §11.
 */

import { type Container, corrupt, fourCC } from "./container.ts";
import { exifOrientation, type Orientation } from "./orientation.ts";

const SIGNATURE_BYTES = 8;

/** Bit depths that each colour type allows, and its samples per pixel. */
const COLOUR_TYPES: Readonly<Record<number, { samples: number; depths: readonly number[] }>> = {
  0: { samples: 1, depths: [1, 2, 4, 8, 16] },
  2: { samples: 3, depths: [8, 16] },
  3: { samples: 1, depths: [1, 2, 4, 8] },
  4: { samples: 2, depths: [8, 16] },
  6: { samples: 4, depths: [8, 16] },
};

/** Deflate cannot do better than 258 bytes for two bits. */
const MAX_DEFLATE_RATIO = 1032;

/**
 * The decoder inflates all there is, also what no pixel needs, at about 0.6 GB a second. Data that could inflate to
 * more than this is counted first.
 */
const UNCOUNTED_BYTES = 512 * 1024 * 1024;

/** @throws {RequestError} `image_corrupt` when the first chunk is not a legal IHDR. */
export function readPng(bytes: Uint8Array): Container {
  const { width, height } = imageHeader(bytes);
  let orientation: Orientation | undefined;
  for (const { type, start, end } of chunks(bytes)) {
    if (type === "eXIf") orientation ??= exifOrientation(bytes.subarray(start, end));
  }
  return { format: "PNG", width, height, orientation: orientation ?? 1 };
}

/**
 * The same picture from nothing but IHDR, PLTE, tRNS, IDAT and IEND. Compressed profiles and texts, and the frames
 * of an animation, never reach the decoder: they cost time and memory and change no pixel of the first picture.
 *
 * @throws {RequestError} `image_corrupt` when a chunk reaches past the end, there is no IEND, or the data is far too
 * little or too much for the size that the header claims.
 */
export async function bareWholePng(bytes: Uint8Array): Promise<Uint8Array> {
  const { width, height, bitsPerPixel } = imageHeader(bytes);
  const parts = [bytes.subarray(0, SIGNATURE_BYTES)];
  const data: Uint8Array[] = [];
  let ended = false;
  for (const { type, start, end } of chunks(bytes)) {
    // A chunk ends with four bytes of CRC.
    if (end + 4 > bytes.length) {
      corrupt("PNG", `chunk ${type} reaches to byte ${end + 4}, the file ends at ${bytes.length}`);
    }
    if (type === "IDAT") data.push(bytes.subarray(start, end));
    if (["IHDR", "PLTE", "tRNS", "IDAT", "IEND"].includes(type)) {
      parts.push(bytes.subarray(start - 8, end + 4));
    }
    ended = type === "IEND";
  }
  if (!ended) {
    corrupt("PNG", `the file breaks off after ${bytes.length} bytes, its end chunk (IEND) is missing`);
  }
  const needed = Math.ceil(width * bitsPerPixel / 8) * height;
  const compressed = data.reduce((sum, it) => sum + it.length, 0);
  if (compressed * MAX_DEFLATE_RATIO < needed) {
    corrupt(
      "PNG",
      `${width} x ${height} pixels take ${needed} bytes, ${compressed} compressed cannot hold them`,
    );
  }
  // Filter types and the rounding of interlaced rows come on top; an encoder that pads is forgiven.
  const limit = 2 * needed + 1024 * 1024;
  if (compressed * MAX_DEFLATE_RATIO > limit + UNCOUNTED_BYTES && await inflatesBeyond(data, limit)) {
    corrupt(
      "PNG",
      `its data inflates to more than ${limit} bytes, ${width} x ${height} pixels take ${needed}`,
    );
  }
  return concat(parts);
}

/** Whether zlib data inflates to more than `limit` bytes. Damage is left to the decoder to find. */
async function inflatesBeyond(data: readonly Uint8Array[], limit: number): Promise<boolean> {
  let size = 0;
  try {
    const inflater = new DecompressionStream("deflate") as ReadableWritablePair<Uint8Array, Uint8Array>;
    for await (const part of ReadableStream.from(slices(data)).pipeThrough(inflater)) {
      if ((size += part.length) > limit) return true;
    }
  } catch {
    // Broken off or with bytes behind its end: what came before was counted.
  }
  return false;
}

/** In small pieces: a DecompressionStream may give all that a piece inflates to at once. */
function* slices(data: readonly Uint8Array[], sizeBytes = 16 * 1024): Generator<Uint8Array> {
  for (const part of data) {
    for (let at = 0; at < part.length; at += sizeBytes) yield part.subarray(at, at + sizeBytes);
  }
}

function concat(parts: readonly Uint8Array[]): Uint8Array {
  const out = new Uint8Array(parts.reduce((sum, it) => sum + it.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

function imageHeader(bytes: Uint8Array): { width: number; height: number; bitsPerPixel: number } {
  const start = SIGNATURE_BYTES + 8;
  if (bytes.length < start + 13) {
    corrupt("PNG", `the file breaks off after ${bytes.length} bytes, in its header`);
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const type = fourCC(bytes, SIGNATURE_BYTES + 4);
  if (type !== "IHDR" || view.getUint32(SIGNATURE_BYTES) !== 13) {
    corrupt("PNG", `expected it to begin with chunk IHDR of 13 bytes, found ${JSON.stringify(type)}`);
  }
  const depth = bytes[start + 8], colour = COLOUR_TYPES[bytes[start + 9]];
  if (!colour?.depths.includes(depth)) {
    corrupt(
      "PNG",
      `its header gives colour type ${bytes[start + 9]} with ${depth} bits, which PNG does not have`,
    );
  }
  return {
    width: view.getUint32(start),
    height: view.getUint32(start + 4),
    bitsPerPixel: depth * colour.samples,
  };
}

/** The chunks up to IEND or the end of the bytes; the last one's end may lie past it. */
function* chunks(bytes: Uint8Array): Generator<{ type: string; start: number; end: number }> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = SIGNATURE_BYTES;
  while (at + 8 <= bytes.length) {
    const type = fourCC(bytes, at + 4), start = at + 8, end = start + view.getUint32(at);
    yield { type, start, end };
    if (type === "IEND") return;
    at = end + 4;
  }
}
