/** Pictures for the tests of this room: stored ones, computed ones, and PNGs built from chunks. */

import type { Picture } from "../../lib/types.ts";

const fixtures = new URL("../fixtures/pictures/", import.meta.url);
const photos = new URL("../../../shared/reference/images/", import.meta.url);

/** Whether the reference photos, which may not be passed on, lie beside this checkout. */
export const photosAreHere = exists(new URL("bike.jpg", photos));
export const why = photosAreHere ? "" : " (ignored: the reference photos are not here)";

export const photo = (name: string): Uint8Array => Deno.readFileSync(new URL(name, photos));
export const fixture = (name: string): Uint8Array => Deno.readFileSync(new URL(name, fixtures));
export const fixtureNames = (): string[] => [...Deno.readDirSync(fixtures)].map((it) => it.name).sort();

export function golden(name: string) {
  return JSON.parse(Deno.readTextFileSync(new URL(`../golden/${name}`, import.meta.url)));
}

/** The same formulas as in make_goldens.py. */
export function synthetic(kind: string, width: number, height: number): Picture {
  const data = new Uint8Array(width * height * 3);
  for (let i = 0; i < data.length; i++) {
    const c = i % 3, x = (i - c) / 3 % width, y = Math.floor(i / 3 / width);
    if (kind === "noise") {
      let v = Math.imul(i, 2654435761);
      v = Math.imul(v ^ v >>> 15, 2246822519);
      data[i] = v >>> 24;
    } else if (kind === "edges") data[i] = ((x >> 2) + (y >> 1) + c) % 2 * 255;
    else data[i] = x * 7 + y * 13 + c * 85;
  }
  return { width, height, data };
}

export async function sha256(bytes: Uint8Array): Promise<string> {
  const digest = await crypto.subtle.digest("SHA-256", bytes as Uint8Array<ArrayBuffer>);
  return new Uint8Array(digest).toHex();
}

/** A number generator for reproducible damage: 0 to 1, from a 32-bit state. */
export function random(seed: number): () => number {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ seed >>> 15, seed | 1);
    t ^= t + Math.imul(t ^ t >>> 7, t | 61);
    return ((t ^ t >>> 14) >>> 0) / 2 ** 32;
  };
}

/** A PNG of these dimensions whose IDAT holds `raw`, deflated; the sizes need not fit. */
export async function png(
  header: { width: number; height: number; depth: number; colour: number },
  raw: Uint8Array<ArrayBuffer>,
  extra: readonly Uint8Array[] = [],
): Promise<Uint8Array> {
  const { width, height, depth, colour } = header;
  const head = new Uint8Array(13);
  const view = new DataView(head.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  head.set([depth, colour], 8);
  return concat([
    new Uint8Array([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]),
    chunk("IHDR", head),
    ...extra,
    chunk("IDAT", await deflate(raw)),
    chunk("IEND", new Uint8Array()),
  ]);
}

export function chunk(name: string, body: Uint8Array): Uint8Array {
  const out = new Uint8Array(body.length + 12);
  const view = new DataView(out.buffer);
  view.setUint32(0, body.length);
  out.set(new TextEncoder().encode(name), 4);
  out.set(body, 8);
  let crc = 0xffffffff;
  for (const byte of out.subarray(4, -4)) {
    crc ^= byte;
    for (let k = 0; k < 8; k++) crc = crc & 1 ? crc >>> 1 ^ 0xedb88320 : crc >>> 1;
  }
  view.setUint32(body.length + 8, ~crc);
  return out;
}

export async function deflate(raw: Uint8Array<ArrayBuffer>): Promise<Uint8Array> {
  const stream = new Blob([raw]).stream().pipeThrough(new CompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

export function concat(parts: readonly Uint8Array[]): Uint8Array {
  const out = new Uint8Array(parts.reduce((sum, it) => sum + it.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

function exists(url: URL): boolean {
  try {
    return Deno.statSync(url).isFile;
  } catch {
    return false;
  }
}
