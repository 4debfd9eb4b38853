/** What the three container readers share: what they find, and how they say that it is broken. */

import { RequestError } from "../errors.ts";
import type { Orientation } from "./orientation.ts";

/** What a picture's header tells, without decoding. */
export interface Container {
  readonly format: "JPEG" | "PNG" | "WebP";
  /** Pixels as stored, before the picture is turned upright. Unchecked, may be 0. */
  readonly width: number;
  readonly height: number;
  /** From EXIF; 1 where there is none. */
  readonly orientation: Orientation;
}

/** The bytes start like a picture of this format but cannot be one. */
export function corrupt(format: Container["format"], found: string, cause?: unknown): never {
  throw new RequestError("image_corrupt", `Cannot decode the ${format} picture: ${found}`, { cause });
}

/** The bytes are a picture, or something else, that no decoder here reads. */
export function unsupported(found: string): never {
  throw new RequestError(
    "image_unsupported",
    `Cannot read the picture: expected JPEG, PNG or WebP, found ${found}`,
  );
}

/** Four ASCII characters of a chunk name. */
export function fourCC(bytes: Uint8Array, at: number): string {
  return String.fromCharCode(...bytes.subarray(at, at + 4));
}
