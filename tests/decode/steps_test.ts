/** One token for each of several sequences in one pass: the logits of one sequence at a time. */

import assert from "node:assert/strict";
import type { Backend } from "../../lib/backend/backend.ts";
import { createReferenceBackend } from "../../lib/backend/reference.ts";
import { createWasmBackend } from "../../lib/backend/wasm.ts";
import { loadDecoder } from "../../lib/decode/gemma.ts";
import { choose, GREEDY } from "../../lib/decode/sampler.ts";
import { parseConfig } from "../../lib/weights/config.ts";
import { openWeights } from "../../lib/weights/load.ts";
import { relaxed, simd } from "../../wasm/kernels.js";
import { openSoftware } from "../backend/gpus.ts";
import { directoryBytes, memoryFiles } from "../memory_files.ts";

const CHECKPOINTS = new URL("../golden/checkpoints/", import.meta.url).pathname;
const pause = () => Promise.resolve();

const backends: [string, Backend | undefined][] = [
  ["reference", createReferenceBackend()],
  ["wasm", createWasmBackend({ simd, relaxed })],
  ["webgpu on lavapipe", await openSoftware({ driver: "lavapipe" })],
];

for (const [name, backend] of backends) {
  for (const family of ["pg1", "pg2"]) {
    for (const weights of ["f32", "int4"] as const) {
      Deno.test({
        name: `${name}: ${family} in ${weights}, 5 sequences of different lengths a pass as one by one` +
          (backend ? "" : " (skipped: no driver)"),
        ignore: !backend,
        fn: () => compare(backend!, family, weights),
      });
    }
  }
}

async function compare(backend: Backend, family: string, weights: "f32" | "int4"): Promise<void> {
  const files = memoryFiles(directoryBytes(`${CHECKPOINTS}${family}`), family);
  const config = parseConfig(JSON.parse(new TextDecoder().decode(await files.read("config.json"))));
  // Windows so small that they cut something off.
  const open = { ...config, decoder: { ...config.decoder, window: config.decoder.window && 7 } };
  const decoder = await loadDecoder(backend, await openWeights(files, open, weights), "hf");
  const started = async (count: number) => {
    const ids = Array.from({ length: 3 + count * 2 }, (_, i) => 300 + i * 7 + count);
    const cache = decoder.cache(ids.length + 4);
    const prefix = backend.tensor(ids.length, config.decoder.width);
    await decoder.prefill(cache, prefix, ids, pause);
    backend.free(prefix);
    return cache;
  };
  const held = backend.sizeBytes;
  const together = [];
  for (let i = 0; i < 5; i++) together.push(await started(i));
  const id = (sequence: number, token: number) => 400 + sequence * 11 + token * 3;
  const found: Float32Array[][] = [];
  for (let token = 0; token < 4; token++) {
    found.push(await decoder.steps!(together, together.map((_, i) => id(i, token)), pause));
  }
  await assert.rejects(decoder.steps!(together, [1, 2, 3, 4, 5], pause), { name: "RangeError" });
  for (const [i, cache] of together.entries()) {
    assert.equal(cache.length, cache.capacity);
    cache.free();
    const alone = await started(i);
    for (let token = 0; token < 4; token++) {
      const expected = await decoder.step(alone, id(i, token), pause);
      const worst = expected.reduce((most, it, at) => Math.max(most, Math.abs(it - found[token][i][at])), 0);
      assert.ok(worst < (weights === "f32" ? 1e-4 : 0.1), `sequence ${i}, token ${token}: ${worst}`);
    }
    alone.free();
  }
  assert.equal(backend.sizeBytes, held);
  assert.equal(decoder.choices === undefined, backend.sample === undefined);
  if (!decoder.choices) return;
  const again = [];
  for (let i = 0; i < 5; i++) again.push(await started(i));
  const ids = again.map((_, i) => id(i, 0));
  const greedy = again.map(() => ({ temperature: 0, topK: 0, topP: 1, random: 0 }));
  const chosen = await decoder.choices(again, ids, greedy, config.imageTokenId, [0, 2], pause);
  chosen.forEach((it, i) => {
    const { id, logprob } = choose(found[0][i].slice(), config.imageTokenId, [0, 2], GREEDY, Math.random);
    assert.equal(it.id, id);
    assert.ok(Math.abs(it.logprob - logprob) < 1e-4);
  });
  for (const it of again) it.free();
}
