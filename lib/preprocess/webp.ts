/**
 * The WebP container: size, orientation, completeness, and the first frame of an animation as a still.
 *
 * Sources: WebP container specification (RIFF), RFC 6386 §9.1 (VP8), WebP lossless bitstream specification §3 (VP8L).
 */

import { type Container, corrupt, fourCC } from "./container.ts";
import { exifOrientation, type Orientation } from "./orientation.ts";

const RIFF_HEADER_BYTES = 12;
const ANIMATION_FLAG = 0x02, ALPHA_FLAG = 0x10;
const FRAME_HEADER_BYTES = 16;

interface Chunk {
  readonly type: string;
  /** Range of the payload; the end may lie past the end of a truncated file. */
  readonly start: number;
  readonly end: number;
}

/** @throws {RequestError} `image_corrupt` when there is no readable size. */
export function readWebp(bytes: Uint8Array): Container {
  let size: { width: number; height: number } | undefined;
  let orientation: Orientation | undefined;
  for (const { type, start, end } of chunks(bytes, RIFF_HEADER_BYTES)) {
    size ??= sizeOf(type, bytes.subarray(start, end));
    if (type === "EXIF") orientation ??= exifOrientation(bytes.subarray(start, end));
  }
  if (!size) corrupt("WebP", "no readable VP8, VP8L or VP8X header");
  return { format: "WebP", ...size, orientation: orientation ?? 1 };
}

/** A still picture and where it lies on the canvas. */
export interface Still {
  readonly bytes: Uint8Array;
  readonly left: number;
  readonly top: number;
}

/**
 * The picture as something WebPDecodeRGBA takes: itself, or the first frame of an animation in a container of its
 * own.
 *
 * @throws {RequestError} `image_corrupt` when the file is shorter than it says, or the animation has no frame.
 */
export function wholeStill(bytes: Uint8Array): Still {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const said = view.getUint32(4, true) + 8;
  if (said > bytes.length) corrupt("WebP", `the file breaks off after ${bytes.length} of ${said} bytes`);
  const whole = bytes.subarray(0, said);
  const [first, ...others] = chunks(whole, RIFF_HEADER_BYTES);
  if (first?.type !== "VP8X" || !(whole[first.start] & ANIMATION_FLAG)) {
    return { bytes: whole, left: 0, top: 0 };
  }
  const frame = others.find((it) => it.type === "ANMF");
  if (!frame || frame.end > said || frame.end - frame.start < FRAME_HEADER_BYTES) {
    corrupt("WebP", "an animation without a whole first frame");
  }
  const payload = whole.subarray(frame.start, frame.end);
  const picture = [...chunks(payload, FRAME_HEADER_BYTES)].filter((it) => /^(ALPH|VP8 |VP8L)$/.test(it.type));
  return {
    bytes: container(payload, picture),
    left: 2 * uint24(payload, 0),
    top: 2 * uint24(payload, 3),
  };
}

/** A WebP file of these chunks; with a VP8X header where alpha stands apart from the colours. */
function container(payload: Uint8Array, picture: readonly Chunk[]): Uint8Array {
  const parts: number[] = [];
  if (picture.some((it) => it.type === "ALPH")) {
    parts.push(...ascii("VP8X"), 10, 0, 0, 0, ALPHA_FLAG, 0, 0, 0, ...payload.subarray(6, 12));
  }
  const from = picture[0]?.start - 8, to = picture.at(-1)?.end ?? 0;
  const body = picture.length ? payload.subarray(from, to + (to & 1)) : new Uint8Array();
  const out = new Uint8Array(RIFF_HEADER_BYTES + parts.length + body.length);
  out.set([...ascii("RIFF"), 0, 0, 0, 0, ...ascii("WEBP"), ...parts]);
  out.set(body, RIFF_HEADER_BYTES + parts.length);
  new DataView(out.buffer).setUint32(4, out.length - 8, true);
  return out;
}

function* chunks(bytes: Uint8Array, from: number): Generator<Chunk> {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = from; at + 8 <= bytes.length;) {
    const start = at + 8, end = start + view.getUint32(at + 4, true);
    yield { type: fourCC(bytes, at), start, end };
    at = end + (end - start & 1);
  }
}

function sizeOf(type: string, body: Uint8Array): { width: number; height: number } | undefined {
  if (type === "VP8X" && body.length >= 10) {
    return { width: uint24(body, 4) + 1, height: uint24(body, 7) + 1 };
  }
  if (type === "VP8 " && body.length >= 10 && body[3] === 0x9d && body[4] === 0x01 && body[5] === 0x2a) {
    return { width: (body[6] | body[7] << 8) & 0x3fff, height: (body[8] | body[9] << 8) & 0x3fff };
  }
  if (type === "VP8L" && body.length >= 5 && body[0] === 0x2f) {
    const bits = body[1] | body[2] << 8 | body[3] << 16 | body[4] << 24;
    return { width: (bits & 0x3fff) + 1, height: (bits >>> 14 & 0x3fff) + 1 };
  }
  return undefined;
}

function uint24(bytes: Uint8Array, at: number): number {
  return bytes[at] | bytes[at + 1] << 8 | bytes[at + 2] << 16;
}

function ascii(text: string): number[] {
  return [...text].map((it) => it.charCodeAt(0));
}
