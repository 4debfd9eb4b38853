/**
 * The JPEG container: size, orientation and completeness, read from its markers.
 *
 * Source: ITU-T T.81 Annex B. Markers are found as libjpeg's `next_marker` finds them, so that the size checked
 * here is the size the decoder will see.
 */

import { type Container, corrupt, unsupported } from "./container.ts";
import { exifOrientation, type Orientation, startsWithExif } from "./orientation.ts";

const SOI = 0xd8, EOI = 0xd9, SOS = 0xda, APP1 = 0xe1, TEM = 0x01;

/** Every scan costs a pass over all coefficients: a small file with thousands of scans would hold the decoder. */
const MAX_SCANS = 100;

/** @throws {RequestError} `image_corrupt` without a size; `image_unsupported` for CMYK and rare coding. */
export function readJpeg(bytes: Uint8Array): Container {
  let frame: { width: number; height: number } | undefined;
  let orientation: Orientation | undefined;
  for (const { marker, start, end } of segments(bytes)) {
    const body = bytes.subarray(start, end);
    if (marker === APP1 && startsWithExif(body)) orientation ??= exifOrientation(body);
    if (isFrame(marker) && !frame) frame = readFrame(marker, body);
    // EXIF stands before the frame; nothing after it is needed.
    if (frame) break;
  }
  if (!frame) corrupt("JPEG", "no frame header (SOF) before its end");
  return { format: "JPEG", ...frame, orientation: orientation ?? 1 };
}

/**
 * Makes sure that the file goes on to its end marker. libjpeg fills what is missing with grey and carries on.
 *
 * @throws {RequestError} `image_corrupt`
 */
export function checkJpegIsWhole(bytes: Uint8Array): void {
  let scans = 0;
  for (const { marker } of segments(bytes)) {
    if (marker === EOI) {
      if (scans === 0) corrupt("JPEG", "no picture data (SOS) before its end marker");
      return;
    }
    if (marker === SOS && ++scans > MAX_SCANS) unsupported(`a JPEG of more than ${MAX_SCANS} scans`);
  }
  corrupt("JPEG", `the file breaks off after ${bytes.length} bytes, its end marker (EOI) is missing`);
}

interface Segment {
  readonly marker: number;
  /** Range of the parameters, without the length; may reach past the end of a truncated file. */
  readonly start: number;
  readonly end: number;
}

/** The marker segments up to EOI or the end of the bytes, whichever comes first. */
function* segments(bytes: Uint8Array): Generator<Segment> {
  let at = 2; // after SOI
  while (true) {
    at = bytes.indexOf(0xff, at);
    if (at < 0) return;
    while (bytes[at] === 0xff) at++;
    if (at >= bytes.length) return;
    const marker = bytes[at++];
    // FF 00 is a stuffed byte of a scan, RST0 to RST7 divide it.
    if (marker === 0 || marker === TEM || (marker >= 0xd0 && marker <= 0xd7)) continue;
    if (marker === SOI) corrupt("JPEG", "a second start marker (SOI) inside it");
    if (marker === EOI) {
      yield { marker, start: at, end: at };
      return;
    }
    if (at + 2 > bytes.length) return;
    const length = bytes[at] << 8 | bytes[at + 1];
    if (length < 2) corrupt("JPEG", `a segment (marker FF${hex(marker)}) of length ${length}`);
    yield { marker, start: at + 2, end: at + length };
    at += length;
  }
}

/** SOF0 to SOF15; C4, C8 and CC are tables and an extension. */
function isFrame(marker: number): boolean {
  return marker >= 0xc0 && marker <= 0xcf && marker !== 0xc4 && marker !== 0xc8 && marker !== 0xcc;
}

function readFrame(marker: number, body: Uint8Array): { width: number; height: number } {
  if (body.length < 6) corrupt("JPEG", "its frame header (SOF) is cut short");
  const [precision, , , , , components] = body;
  const height = body[1] << 8 | body[2], width = body[3] << 8 | body[4];
  if (marker > 0xc2) {
    const kind = marker === 0xc9 || marker === 0xca ? "arithmetic coding" : "lossless or hierarchical coding";
    unsupported(`a JPEG with ${kind} (marker FF${hex(marker)})`);
  }
  if (precision !== 8) unsupported(`a JPEG of ${precision} bits per sample`);
  if (components === 4) unsupported("a CMYK JPEG (4 colour components); convert it to RGB first");
  if (components !== 1 && components !== 3) unsupported(`a JPEG of ${components} colour components`);
  return { width, height };
}

function hex(byte: number): string {
  return byte.toString(16).toUpperCase().padStart(2, "0");
}
