/** What the test of WebGPU in a browser runs there: a checkpoint from its pixels to its tokens. */

import type { Backend } from "../../lib/backend/backend.ts";
import { createWebgpuBackend } from "../../lib/backend/webgpu.ts";
import { loadDecoder } from "../../lib/decode/gemma.ts";
import { argmax } from "../../lib/decode/sampler.ts";
import { loadVision } from "../../lib/vision/siglip.ts";
import { parseConfig } from "../../lib/weights/config.ts";
import { openWeights } from "../../lib/weights/load.ts";
import { memoryFiles } from "../memory_files.ts";

const pause = () => Promise.resolve();

/** Greedy tokens after a picture of a pattern and some ids. */
export async function greedy(
  backend: Backend,
  directory: Record<string, Uint8Array>,
  weights: "f32" | "int4",
): Promise<number[]> {
  const files = memoryFiles(directory);
  const config = parseConfig(JSON.parse(new TextDecoder().decode(await files.read("config.json"))));
  const stored = await openWeights(files, config, weights);
  const vision = await loadVision(backend, stored);
  const decoder = await loadDecoder(backend, stored);
  const size = config.vision.imageSize;
  const data = Float32Array.from({ length: size * size * 3 }, (_, i) => Math.sin(i * i % 1009));
  const ids = [config.bosId, 300, 310, 320, 108];
  const prefix = backend.tensor(vision.imageTokens + ids.length, config.decoder.width);
  await vision.encode(backend.slice(prefix, 0, vision.imageTokens), { size, data }, pause);
  const cache = decoder.cache(prefix.rows + 8);
  const found = [argmax(await decoder.prefill(cache, prefix, ids, pause))];
  while (found.length < 8) found.push(argmax(await decoder.step(cache, found.at(-1)!, pause)));
  return found;
}

/** The same in a page, which has the files at /files. */
async function inPage(weights: "f32" | "int4") {
  const names: string[] = await (await fetch("/files/")).json();
  const bytes = await Promise.all(names.map(async (it) => (await fetch(`/files/${it}`)).bytes()));
  const directory = Object.fromEntries(names.map((it, i) => [it, bytes[i]]));
  const backend = await createWebgpuBackend(navigator.gpu);
  try {
    return { ids: await greedy(backend, directory, weights), software: backend.software };
  } finally {
    backend.close();
  }
}
(globalThis as unknown as { inPage: unknown }).inPage = inPage;
