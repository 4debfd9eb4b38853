/**
 * Image tokens of pictures seen before, so that several questions about one picture pay for SigLIP once: in memory, and
 * behind that in blobs that outlive the process.
 */

import type { Backend, Tensor } from "../backend/backend.ts";
import { sha256 } from "../digest.ts";
import { Recent } from "../store/recent.ts";
import type { BlobInfo, Blobs } from "../store/store.ts";
import type { Pause, Pixels } from "../types.ts";
import type { Weights } from "../weights/load.ts";
import { tensorTable } from "../weights/table.ts";
import type { Vision } from "./siglip.ts";

/** Where image tokens are kept. */
export interface FeatureCacheOptions {
  /** Bytes of image tokens in memory; 64 MiB by default, 0 for none. */
  readonly featureCacheBytes?: number;
  /** Where they are kept for longer than the process lives, under `features/`; by default nowhere. */
  readonly blobs?: Blobs;
  /** Bytes of image tokens there, 512 MiB by default; the oldest go first. */
  readonly featureBlobBytes?: number;
  /** Told when image tokens cannot be read or stored there, which does an answer no harm. */
  readonly onError?: (error: unknown) => void;
}

/** An encoder that looks a picture up before it computes. */
export interface RememberingVision {
  /** Image tokens of one picture. */
  readonly imageTokens: number;
  /** What the image tokens of a picture depend on, as a word: equal keys, equal tokens. */
  key(pixels: Pixels): Promise<string>;
  /** Whether the image tokens of the picture with this key are in memory. */
  knows(key: string): boolean;
  /** Writes the image tokens of the picture with this key to out [P, D]; tells whether they were known. */
  encode(out: Tensor, pixels: Pixels, key: string, pause: Pause): Promise<boolean>;
}

const ROOT = "features/";
/** SHA-256 of what follows it: a blob that was damaged is not taken for image tokens. */
const SUM_BYTES = 32;

/**
 * @param revision tells the weights apart, see {@link visionRevision}.
 * @param stage what is kept of the picture.
 */
export function remembering(
  vision: Vision,
  backend: Backend,
  { featureCacheBytes = 64 * 2 ** 20, blobs, featureBlobBytes = 512 * 2 ** 20, onError }: FeatureCacheOptions,
  revision: string,
  stage = "image-tokens",
): RememberingVision {
  const memory = new Recent<Float32Array>(featureCacheBytes, (it) => it.byteLength);

  async function stored(key: string, length: number): Promise<Float32Array | undefined> {
    try {
      const bytes = await blobs?.get(ROOT + key);
      if (bytes?.length !== SUM_BYTES + 4 * length) return undefined;
      const rows = bytes.slice(SUM_BYTES);
      const sum = await sha256(rows);
      return sum.every((it, i) => it === bytes[i]) ? new Float32Array(rows.buffer) : undefined;
    } catch (error) {
      onError?.(error);
    }
  }

  async function store(key: string, rows: Float32Array): Promise<void> {
    if (!blobs || featureBlobBytes === 0) return;
    try {
      const data = new Uint8Array(rows.buffer as ArrayBuffer, rows.byteOffset, rows.byteLength);
      const blob = new Uint8Array(SUM_BYTES + data.length);
      blob.set(await sha256(data));
      blob.set(data, SUM_BYTES);
      await blobs.put(ROOT + key, blob);
      await evict(blobs, featureBlobBytes);
    } catch (error) {
      onError?.(error);
    }
  }

  return {
    imageTokens: vision.imageTokens,
    async key(pixels) {
      // The pixels after preprocessing stand for the file and every setting of the resize.
      const digest = await sha256(
        new Uint8Array(pixels.data.buffer as ArrayBuffer, pixels.data.byteOffset, pixels.data.byteLength),
      );
      return `${revision}/${digest.toHex()}-${pixels.size}-${stage}`;
    },
    knows: (key) => memory.get(key) !== undefined,
    async encode(out, pixels, key, pause) {
      const known = memory.get(key) ?? await stored(key, out.rows * out.cols);
      if (known) {
        backend.write(out, known);
        memory.set(key, known);
        return true;
      }
      await vision.encode(out, pixels, pause);
      if (featureCacheBytes > 0 || blobs) {
        const rows = await backend.read(out);
        memory.set(key, rows);
        store(key, rows); // nobody waits for the disk
      }
      return false;
    },
  };
}

/** Forgets the blobs that were written first, until the rest is within its limit. */
async function evict(blobs: Blobs, maxBytes: number): Promise<void> {
  const all: BlobInfo[] = await Array.fromAsync(blobs.list(ROOT));
  let size = all.reduce((sum, it) => sum + it.sizeBytes, 0);
  for (const { key, sizeBytes } of all.sort((a, b) => a.writtenAt - b.writtenAt)) {
    if (size <= maxBytes) return;
    await blobs.delete(key);
    size -= sizeBytes;
  }
}

/**
 * A word that is the same for the same vision weights in the same format, computed by the same backend: 32 hex digits of a
 * SHA-256 over all of them. A fine-tuned decoder leaves it as it is, and may share what is stored.
 */
export async function visionRevision(weights: Weights, backend: Backend): Promise<string> {
  const sums: string[] = [`${backend.name} ${JSON.stringify(weights.config.vision)}`];
  for (const { name, part, lowest } of tensorTable(weights.config)) {
    if (part !== "vision") continue;
    const { scheme, data, scale } = lowest === "f32"
      ? { scheme: "f32", data: await weights.vector(name), scale: undefined }
      : await weights.matrix(name);
    const digests = [data, ...scale ? [scale] : []].map(async (it) => (await sha256(it)).toHex());
    sums.push([name, scheme, ...await Promise.all(digests)].join(" "));
  }
  return (await sha256(sums.join("\n"))).toHex().slice(0, 32);
}
