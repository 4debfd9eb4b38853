/** Where a body's pictures come from: base64, `data:` URLs, file parts, `https:` URLs. */

import * as z from "zod/mini";
import { RequestError } from "../errors.ts";
import { describe } from "./body.ts";
import type { Outbound } from "./outbound.ts";

/** A picture as a body names it: a file part's bytes, base64, or a URL. */
export type PictureSource = string | Uint8Array;

/** The schema of one picture; what a string holds is told by {@link loadPictures}. */
export const pictureSource = z.custom<PictureSource>(
  (it) => typeof it === "string" || it instanceof Uint8Array,
  { error: "a base64 string, a data: URL or an https: URL" },
).check(
  z.meta({
    type: "string",
    description: "base64, a data: URL or an https: URL; in a form, a file part",
  }) as never,
);

/** How pictures behind URLs are fetched. */
export interface FetchLimits {
  /** Longest picture, bytes. */
  readonly maxBytes: number;
  /** From the look-up to the last byte. */
  readonly timeoutMs: number;
}

const LIMITS: FetchLimits = { maxBytes: 20 * 1024 * 1024, timeoutMs: 5000 };

/**
 * All pictures of a body, decoded from base64 or fetched, in their order.
 *
 * @param outbound how to fetch; without it, URLs are refused.
 * @param name the field they stand in, for messages.
 * @throws {RequestError} `image_missing`, `body_invalid`, or what {@link Outbound.fetch} throws.
 */
export async function loadPictures(
  sources: readonly PictureSource[],
  outbound: Outbound | undefined,
  { name = "image", signal }: { readonly name?: string; readonly signal?: AbortSignal } = {},
): Promise<Uint8Array[]> {
  const place = (i: number) => sources.length > 1 ? `${name}[${i}]` : name;
  // What can be read here is, before anything is asked of another server.
  const local = sources.map((it, i) => typeof it === "string" && isUrl(it) ? it : readPicture(it, place(i)));
  return await Promise.all(local.map((it, i) => typeof it === "string" ? fetchPicture(it, i) : it));

  async function fetchPicture(url: string, i: number): Promise<Uint8Array> {
    if (!outbound) {
      throw wrong(place(i), "base64 or a data: URL (this server fetches no pictures)", describe(url));
    }
    const { status, bytes } = await outbound.fetch(url, { ...LIMITS, redirects: 3, signal });
    if (status !== 200) {
      throw new RequestError(
        "url_failed",
        `Cannot fetch ${place(i)}: expected status 200 from its server, found ${status}`,
      );
    }
    // Not what was found: it may be somebody else's secret.
    if (!looksLikePicture(bytes)) {
      throw new RequestError(
        "image_unsupported",
        `Cannot fetch ${place(i)}: expected a JPEG, PNG or WebP picture, found something else`,
      );
    }
    return bytes;
  }
}

function isUrl(text: string): boolean {
  return /^https?:/i.test(text);
}

function looksLikePicture(bytes: Uint8Array): boolean {
  const start = String.fromCharCode(...bytes.subarray(0, 12));
  return start.startsWith("\xff\xd8\xff") || start.startsWith("\x89PNG\r\n") || /^RIFF[^]{4}WEBP/.test(start);
}

function readPicture(value: PictureSource, name: string): Uint8Array {
  if (value instanceof Uint8Array) {
    if (!value.length) throw new RequestError("image_missing", `Cannot read ${name}: found an empty file`);
    return value;
  }
  if (!value) throw new RequestError("image_missing", `Cannot read ${name}: found an empty string`);
  if (!/^data:/i.test(value)) return base64(value, 0, name);
  const comma = value.indexOf(",");
  // The media type before it is not asked: the bytes tell better.
  if (comma < 0 || !/;\s*base64$/i.test(value.slice(0, comma))) {
    throw wrong(name, "data:<media type>;base64,<data>", describe(value));
  }
  if (comma === value.length - 1) {
    throw new RequestError("image_missing", `Cannot read ${name}: found an empty picture`);
  }
  return base64(value, comma + 1, name);
}

/** Base64 from character `start` on: the standard alphabet, padded, nothing between. */
function base64(text: string, start: number, name: string): Uint8Array {
  const data = start ? text.slice(start) : text;
  const stranger = /[^A-Za-z0-9+/=]/u.exec(data);
  if (stranger) {
    throw wrong(name, "base64", `${describe(stranger[0])} at character ${start + stranger.index}`);
  }
  try {
    return Uint8Array.fromBase64(data, { lastChunkHandling: "strict" });
  } catch {
    const found = `${data.length} characters ending in ${describe(data.slice(-4))}`;
    throw wrong(name, "whole base64, padded with =", found);
  }
}

function wrong(name: string, expected: string, found: string): RequestError {
  return new RequestError("body_invalid", `Cannot read ${name}: expected ${expected}, found ${found}`);
}
