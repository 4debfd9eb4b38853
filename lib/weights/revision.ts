/** What tells one model's weights from another's, without reading all of them. */

import { sha256 } from "../digest.ts";
import type { ModelFiles } from "../types.ts";

/** Bytes of one sample, and how many are taken of each file. Fine-tuning changes nearly every number. */
const SAMPLE_BYTES = 4096;
const SAMPLES = 16;

/**
 * A fingerprint of a model directory: the first 16 hexadecimal digits of a SHA-256 over its configuration and, of every
 * file of weights (by default every safetensors file), its name, its size and 16 samples of 4 KiB at even distances.
 */
export async function revisionOf(files: ModelFiles, weights?: readonly string[]): Promise<string> {
  const parts: Uint8Array[] = [await files.read("config.json")];
  for (const name of weights ?? (await files.list()).filter((it) => it.endsWith(".safetensors"))) {
    const size = await files.size(name) ?? 0;
    parts.push(new TextEncoder().encode(`${name} ${size}\n`));
    const last = Math.max(0, size - SAMPLE_BYTES);
    const starts = Array.from({ length: SAMPLES }, (_, i) => Math.floor(last * i / (SAMPLES - 1)));
    const sample = (start: number) => files.read(name, start, Math.min(size, start + SAMPLE_BYTES));
    parts.push(...await Promise.all(starts.map(sample)));
  }
  const digest = await sha256(await new Blob(parts as BlobPart[]).arrayBuffer());
  return digest.toHex().slice(0, 16);
}
