/** Several tokens in one pass, of several sequences or of one: the logits of one token at a time. */

import assert from "node:assert/strict";
import type { Backend } from "../../lib/backend/backend.ts";
import { createReferenceBackend } from "../../lib/backend/reference.ts";
import { createWasmBackend } from "../../lib/backend/wasm.ts";
import type { Cache, Near, Turn } from "../../lib/decode/decoder.ts";
import { loadDecoder } from "../../lib/decode/gemma.ts";
import { choose, GREEDY } from "../../lib/decode/sampler.ts";
import { parseConfig } from "../../lib/weights/config.ts";
import { openWeights } from "../../lib/weights/load.ts";
import { relaxed, simd } from "../../wasm/kernels.js";
import { nameOf, openSoftware } from "../backend/gpus.ts";
import { directoryBytes, memoryFiles } from "../memory_files.ts";

const CHECKPOINTS = new URL("../golden/checkpoints/", import.meta.url).pathname;
const pause = () => Promise.resolve();

const gpu = await openSoftware({ driver: "lavapipe" });
const backends: [string, Backend | undefined][] = [
  ["reference", createReferenceBackend()],
  ["wasm", createWasmBackend({ simd, relaxed })],
  [`webgpu on ${nameOf("lavapipe")}`, gpu],
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

/** Integer products are exact, however many rows there are; sums of floats are not. */
const tolerance = (backend: Backend, weights: "f32" | "int4") =>
  weights === "f32" ? 1e-4 : backend.name === "reference" ? 0.1 : 0;

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
  const id = (sequence: number, token: number) => 400 + sequence * 11 + token * 3;
  const alike = (found: Float32Array, expected: Float32Array, what: string) => {
    const worst = expected.reduce((most, it, at) => Math.max(most, Math.abs(it - found[at])), 0);
    assert.ok(worst <= tolerance(backend, weights), `${what}: ${worst}`);
  };
  const held = backend.sizeBytes;
  const together: Cache[] = [];
  for (let i = 0; i < 5; i++) together.push(await started(i));
  const turns = (token: number): Turn[] => together.map((cache, i) => ({ cache, id: id(i, token) }));
  const found: Float32Array[][] = [];
  for (let token = 0; token < 4; token++) {
    found.push(await (await decoder.steps!(turns(token), pause)).found as Float32Array[]);
  }
  await assert.rejects(decoder.steps!(turns(4), pause), { name: "RangeError" });
  for (const [i, cache] of together.entries()) {
    assert.equal(cache.length, cache.capacity);
    cache.free();
    const alone = await started(i);
    for (let token = 0; token < 4; token++) {
      alike(
        found[token][i],
        await decoder.step(alone, id(i, token), pause),
        `sequence ${i}, token ${token}`,
      );
    }
    alone.free();
    const resumed = await started(i);
    await decoder.extend(resumed, [], pause);
    await decoder.extend(resumed, [0, 1, 2].map((token) => id(i, token)), pause);
    assert.equal(resumed.length, resumed.capacity - 1);
    alike(await decoder.step(resumed, id(i, 3), pause), found[3][i], `sequence ${i}, three at once`);
    await assert.rejects(decoder.extend(resumed, [1], pause), { name: "RangeError" });
    resumed.free();
  }
  assert.equal(backend.sizeBytes, held);

  // What the backend chooses is what is chosen here; who wants logits gets logits.
  const again: Cache[] = [];
  for (let i = 0; i < 5; i++) again.push(await started(i));
  const near: Near = {
    within: [3, config.imageTokenId],
    of: (id) => [[Math.max(3, id - 2), Math.min(id + 3, config.imageTokenId)]],
  };
  const { found: choosing } = await decoder.steps!(
    again.map((cache, i) => {
      const choice = { temperature: 0, topK: 0, topP: 1, random: 0, near: i % 2 ? near : undefined };
      return { cache, id: id(i, 0), choice: i === 4 ? undefined : choice };
    }),
    pause,
  );
  (await choosing).forEach((it, i) => {
    if (it instanceof Float32Array) {
      assert.ok(i === 4 || !backend.sample);
      return alike(it, found[0][i], `sequence ${i}, logits`);
    }
    const [limit, never] = [config.imageTokenId, [config.padId, config.bosId]];
    const logits = found[0][i].slice();
    const expected = choose(
      logits,
      limit,
      never,
      GREEDY,
      Math.random,
      0,
      undefined,
      i % 2 ? near.of : undefined,
    );
    assert.ok(backend.sample);
    assert.equal(it.id, expected.id);
    assert.ok(Math.abs(it.logprob - expected.logprob) < 1e-4);
    assert.ok(Math.abs(it.nearLogprob - expected.nearLogprob) < 1e-4);
    assert.equal(it.nearLogprob > it.logprob, i % 2 === 1);
  });
  for (const it of again) it.free();

  // What was chosen goes on before it is read, in company with what is known.
  const free: Cache[] = [];
  for (let i = 0; i < 5; i++) free.push(await started(i));
  const choice = { temperature: 0, topK: 0, topP: 1, random: 0, near };
  if (!backend.sample) {
    assert.ok(!decoder.chooses);
    await decoder.steps!([{ cache: free[0], id: 300, choice }], pause);
    await assert.rejects(decoder.steps!([{ cache: free[0], choice }], pause), { name: "TypeError" });
  } else {
    assert.ok(decoder.chooses);
    const passes = [];
    for (let token = 0; token < 4; token++) {
      const turns = free.map((cache, i): Turn => {
        const known = token === 0 || i === 2;
        return { cache, id: known ? id(i, token) : undefined, choice: i === 2 ? undefined : choice };
      });
      passes.push((await decoder.steps!(turns, pause)).found);
    }
    const unread = await Promise.all(passes);
    for (const cache of free) {
      cache.truncate(cache.length - 4);
      await assert.rejects(decoder.steps!([{ cache, choice }], pause), { name: "TypeError" });
    }
    for (let token = 0; token < 4; token++) {
      const turns = free.map((cache, i): Turn => {
        const before = token && unread[token - 1][i];
        const known = before && "id" in before ? before.id : id(i, token);
        return { cache, id: known, choice: i === 2 ? undefined : choice };
      });
      assert.deepEqual(await (await decoder.steps!(turns, pause)).found, unread[token]);
    }
  }
  for (const it of free) it.free();
  assert.equal(backend.sizeBytes, held);
}

Deno.test({
  name: "webgpu: keys and values of several sequences go to their caches in one dispatch a layer",
  ignore: !gpu,
  async fn() {
    const files = memoryFiles(directoryBytes(`${CHECKPOINTS}pg2`), "pg2");
    const config = parseConfig(JSON.parse(new TextDecoder().decode(await files.read("config.json"))));
    const decoder = await loadDecoder(gpu!, await openWeights(files, config, "int4"));
    const dispatches = async (count: number) => {
      const turns = Array.from({ length: count }, (_, i) => ({ cache: decoder.cache(1), id: 400 + i }));
      const before = gpu!.queue.dispatches;
      await (await decoder.steps!(turns, pause)).found;
      for (const { cache } of turns) cache.free();
      return gpu!.queue.dispatches - before;
    };
    assert.equal(await dispatches(3), await dispatches(1) + config.decoder.layers);
  },
});

Deno.test("of the last layer, rows that nobody asks for come to their keys and values and no further", async () => {
  const backend = createReferenceBackend();
  const rows: number[] = [];
  const counted: Backend = Object.assign(Object.create(backend), {
    gated: (...all: Parameters<Backend["gated"]>) => (rows.push(all[1].rows), backend.gated(...all)),
  });
  const files = memoryFiles(directoryBytes(`${CHECKPOINTS}pg1`), "pg1");
  const config = parseConfig(JSON.parse(new TextDecoder().decode(await files.read("config.json"))));
  const decoder = await loadDecoder(counted, await openWeights(files, config, "f32"));
  const cache = decoder.cache(9);
  await decoder.prefill(cache, backend.tensor(5, config.decoder.width), [300, 301, 302, 303, 304], pause);
  await decoder.extend(cache, [305, 306, 307], pause);
  await decoder.steps!([{ cache, id: 308 }], pause);
  const { layers } = config.decoder;
  const expected = [5, 3, 1].flatMap((count) => [...Array(layers - 1).fill(count), 1]);
  assert.deepEqual(rows, expected);
});
