/** Masks as others read them: COCO's run lengths, polygons, PNG. */

import type { Mask, RleMask } from "../types.ts";
import type { Patch } from "./mask_paste.ts";

type Size = readonly [height: number, width: number];

/** The patch's pixels on a picture, in the form asked for. */
export async function formed(
  patch: Patch,
  size: Size,
  form: "rle" | "polygon" | "png",
): Promise<Mask> {
  if (form === "rle") return runLengths(patch, size);
  if (form === "polygon") return { size, polygons: polygons(patch) };
  const grey = new Uint8Array(size[0] * size[1]);
  for (let y = 0; y < patch.height; y++) {
    for (let x = 0; x < patch.width; x++) {
      if (patch.inside[y * patch.width + x]) grey[(patch.top + y) * size[1] + patch.left + x] = 255;
    }
  }
  return { size, png: (await encodePng(grey, size[1], size[0])).toBase64() };
}

/** COCO's compressed run lengths (`maskApi.c`, rleEncode and rleToString). */
export function runLengths(patch: Patch, [height, width]: Size): RleMask {
  const counts: number[] = [];
  let value = 0, since = 0, end = 0;
  const turn = (at: number) => {
    counts.push(at - since);
    since = at;
    value = 1 - value;
  };
  for (let x = 0; x < patch.width; x++) {
    for (let y = 0; y < patch.height; y++) {
      const at = (patch.left + x) * height + patch.top + y;
      if (value && at !== end) turn(end); // the gap between two columns of the patch is outside
      if (patch.inside[y * patch.width + x] !== value) turn(at);
      end = at + 1;
    }
  }
  if (value) turn(end);
  if (since < height * width || !counts.length) counts.push(height * width - since);
  return { size: [height, width], counts: compressed(counts) };
}

/** Run lengths from the third on as differences to the one two before, five bits a character, from "0" up. */
function compressed(counts: readonly number[]): string {
  let text = "";
  for (const [i, count] of counts.entries()) {
    let value = i > 2 ? count - counts[i - 2] : count;
    for (let more = true; more;) {
      let bits = value & 31;
      value >>= 5;
      more = bits & 16 ? value !== -1 : value !== 0;
      if (more) bits |= 32;
      text += String.fromCharCode(bits + 48);
    }
  }
  return text;
}

/** The pixels of a mask in COCO's run lengths: u8 0 or 1, row-major [H, W]. */
export function pixelsOf({ size: [height, width], counts }: RleMask): Uint8Array {
  const out = new Uint8Array(height * width);
  const runs: number[] = [];
  let at = 0, value = 0;
  for (let i = 0; i < counts.length;) {
    let run = 0, shift = 0, bits = 32;
    while (bits & 32) {
      bits = counts.charCodeAt(i++) - 48;
      run |= (bits & 31) << shift;
      shift += 5;
    }
    if (bits & 16) run |= -1 << shift;
    runs.push(runs.length > 2 ? run + runs[runs.length - 2] : run);
    for (const end = at + runs.at(-1)!; at < end; at++) {
      out[(at % height) * width + Math.floor(at / height)] = value;
    }
    value = 1 - value;
  }
  return out;
}

/**
 * The borders of the patch's pixels in the picture's coordinates, [x, y, x, y, …] with corners only. The inside lies to
 * the right of every edge: outer rings go clockwise (y down), holes the other way. Pixels that touch only at a corner
 * are rings of their own.
 */
export function polygons({ top, left, height, width, inside }: Patch): number[][] {
  const at = (x: number, y: number) =>
    x >= 0 && y >= 0 && x < width && y < height && inside[y * width + x] === 1;
  // Directions 0 right, 1 down, 2 left, 3 up. The pixel right of an edge that starts at a grid corner, and left of it.
  const right = [[0, 0], [-1, 0], [-1, -1], [0, -1]];
  const ahead = [[0, -1], [0, 0], [-1, 0], [-1, -1]];
  const step = [[1, 0], [0, 1], [-1, 0], [0, -1]];
  const isEdge = (x: number, y: number, d: number) =>
    at(x + right[d][0], y + right[d][1]) && !at(x + ahead[d][0], y + ahead[d][1]);
  const seen = new Set<number>();
  const rings: number[][] = [];
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      // Every ring, outer or hole, has an edge that goes right.
      if (!isEdge(x, y, 0) || seen.has(y * width + x)) continue;
      const ring: number[] = [];
      let [cx, cy, d] = [x, y, 0];
      do {
        if (d === 0) seen.add(cy * width + cx);
        [cx, cy] = [cx + step[d][0], cy + step[d][1]];
        const turn = [1, 0, 3].map((it) => (d + it) % 4).find((it) => isEdge(cx, cy, it))!;
        if (turn !== d) ring.push(left + cx, top + cy);
        d = turn;
      } while (cx !== x || cy !== y || d !== 0);
      rings.push(ring);
    }
  }
  return rings;
}

/**
 * A PNG file.
 *
 * @param samples 8-bit, row-major: grey [H, W] or RGB [H, W, 3], told apart by their number.
 */
export async function encodePng(samples: Uint8Array, width: number, height: number): Promise<Uint8Array> {
  const channels = samples.length / (width * height);
  if (channels !== 1 && channels !== 3) {
    throw new RangeError(`Cannot encode ${width} x ${height} pixels: found ${samples.length} samples`);
  }
  const stride = width * channels;
  const rows = new Uint8Array((stride + 1) * height); // each row begins with filter 0
  for (let y = 0; y < height; y++) {
    rows.set(samples.subarray(y * stride, (y + 1) * stride), y * (stride + 1) + 1);
  }
  const deflated = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const data = new Uint8Array(await new Response(deflated).arrayBuffer());
  const head = new Uint8Array(13);
  const view = new DataView(head.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  head.set([8, channels === 3 ? 2 : 0], 8);
  const parts = [chunk("IHDR", head), chunk("IDAT", data), chunk("IEND", new Uint8Array(0))];
  const signature = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
  return new Uint8Array(await new Blob([Uint8Array.from(signature), ...parts]).arrayBuffer());
}

function chunk(type: string, data: Uint8Array): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(12 + data.length);
  const view = new DataView(out.buffer);
  view.setUint32(0, data.length);
  out.set(new TextEncoder().encode(type), 4);
  out.set(data, 8);
  view.setUint32(8 + data.length, checksum(out.subarray(4, 8 + data.length)));
  return out;
}

/** CRC-32 of ISO 3309, as PNG has it. */
function checksum(bytes: Uint8Array): number {
  const table = Uint32Array.from({ length: 256 }, (_, n) => {
    for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
    return n;
  });
  let crc = 0xffffffff;
  for (const byte of bytes) crc = table[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}
