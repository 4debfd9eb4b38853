/** What an encoded picture says about itself before it is decoded, and whether it may be decoded at all. */

import { RequestError } from "../errors.ts";
import { type Container, corrupt, fourCC, unsupported } from "./container.ts";
import { readJpeg } from "./jpeg.ts";
import { readPng } from "./png.ts";
import { readWebp } from "./webp.ts";

/** What JPEG can hold; longer sides come from broken or hostile headers and would cost the resizer its memory. */
const MAX_SIDE = 65_535;

/**
 * Format, size and orientation of a JPEG, PNG or WebP picture. Reads markers and chunk names only.
 *
 * @throws {RequestError} `image_unsupported` naming what was found, `image_corrupt` where the header breaks off.
 */
export function readHeader(bytes: Uint8Array): Container {
  const is = (...magic: number[]) => magic.every((byte, i) => bytes[i] === byte);
  if (is(0xff, 0xd8, 0xff)) return readJpeg(bytes);
  if (is(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a)) return readPng(bytes);
  if (fourCC(bytes, 0) === "RIFF" && fourCC(bytes, 8) === "WEBP") return readWebp(bytes);
  if (bytes.length === 0) unsupported("no bytes");
  const first = [...bytes.subarray(0, 12)].map((it) => it.toString(16).padStart(2, "0")).join(" ");
  const name = nameOf(bytes);
  unsupported(name ? `${name} (first bytes ${first})` : `first bytes ${first}`);
}

/**
 * Refuses a picture that would take too much memory.
 *
 * @throws {RequestError} `image_too_large`, or `image_corrupt` when a side is 0.
 */
export function checkSize({ format, width, height }: Container, maxPixels: number): void {
  if (width === 0 || height === 0) corrupt(format, `its header gives ${width} x ${height} pixels`);
  const pixels = width * height;
  if (pixels > maxPixels) {
    tooLarge(
      `${width} x ${height} = ${pixels.toLocaleString("en")} pixels, at most ${
        maxPixels.toLocaleString("en")
      }`,
    );
  }
  if (Math.max(width, height) > MAX_SIDE) tooLarge(`${width} x ${height} pixels, sides at most ${MAX_SIDE}`);
}

function tooLarge(what: string): never {
  throw new RequestError("image_too_large", `Cannot decode the picture: it has ${what} are allowed`);
}

/** Names for what people send instead; undefined for the unknown. */
function nameOf(bytes: Uint8Array): string | undefined {
  const text = String.fromCharCode(...bytes.subarray(0, 64));
  if (text.slice(4, 8) === "ftyp") {
    const brand = text.slice(8, 12);
    if (/^avi[fs]$/.test(brand)) return "AVIF";
    if (/^(hei[cmsx]|hev[cmsx]|mif1|msf1)$/.test(brand)) return "HEIC";
    return `an ISO media file of brand ${JSON.stringify(brand)}`;
  }
  const known: [string, string][] = [
    ["GIF8", "GIF"],
    ["BM", "BMP"],
    ["II*\0", "TIFF"],
    ["MM\0*", "TIFF"],
    ["\xff\n", "JPEG XL"],
    ["\0\0\0\fJXL ", "JPEG XL"],
    ["\0\0\0\fjP  ", "JPEG 2000"],
    ["\0\0\x01\0", "an icon"],
    ["8BPS", "Photoshop"],
    ["P5", "PGM"],
    ["P6", "PPM"],
    ["%PDF", "PDF"],
    ["RIFF", "a RIFF file that is not WebP"],
    ["<?xml", "XML"],
    ["<svg", "SVG"],
    ["<", "HTML or XML"],
    ["{", "JSON"],
    ["data:", "a data URL instead of its bytes"],
  ];
  return known.find(([start]) => text.startsWith(start))?.[1];
}
