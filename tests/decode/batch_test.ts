/** Answers that are computed together are those that each would have been alone, bit for bit on WASM with integer weights. */

import assert from "node:assert/strict";
import { createWasmBackend } from "../../lib/backend/wasm.ts";
import { Batch } from "../../lib/decode/batch.ts";
import type { DecodeWork } from "../../lib/decode/decode.ts";
import type { Decoder, Near } from "../../lib/decode/decoder.ts";
import { loadDecoder } from "../../lib/decode/gemma.ts";
import { type Choice, GREEDY } from "../../lib/decode/sampler.ts";
import { parseConfig } from "../../lib/weights/config.ts";
import { openWeights } from "../../lib/weights/load.ts";
import { relaxed, simd } from "../../wasm/kernels.js";
import { directoryBytes, memoryFiles } from "../memory_files.ts";
import { listen } from "./listen.ts";

const CHECKPOINT = new URL("../golden/checkpoints/pg1", import.meta.url).pathname;
const pause = () => Promise.resolve();

const backend = createWasmBackend({ simd, relaxed });
const files = memoryFiles(directoryBytes(CHECKPOINT), "pg1");
const config = parseConfig(JSON.parse(new TextDecoder().decode(await files.read("config.json"))));
const decoder = await loadDecoder(backend, await openWeights(files, config, "int4"));
const held = backend.sizeBytes;

/** How many sequences were in each pass. */
let passes: number[] = [];
const watched: Decoder = {
  cache: (...all) => decoder.cache(...all),
  prefill: (...all) => decoder.prefill(...all),
  step: (...all) => (passes.push(1), decoder.step(...all)),
  extend: (...all) => decoder.extend(...all),
  steps: (...all) => (passes.push(all[0].length), decoder.steps!(...all)),
};
const { steps: _, ...single } = watched;

type Ask = Partial<DecodeWork> & { readonly seed?: number };

const NEAR: Near = {
  within: [3, config.imageTokenId],
  of: (id) => [[Math.max(3, id - 2), Math.min(id + 3, config.imageTokenId)]],
};

function asked({ seed = 0, ...more }: Ask): DecodeWork {
  const ids = [config.bosId, ...Array.from({ length: 2 + seed % 5 }, (_, i) => 300 + seed * 13 + i), 108];
  const prefix = backend.tensor(4 + ids.length, config.decoder.width);
  const image = Float32Array.from(
    { length: 4 * config.decoder.width },
    (_, i) => Math.sin(seed + i * 1.3) * 0.5,
  );
  backend.write(backend.slice(prefix, 0, 4), image);
  return { prefix, ids, maxTokens: 12, sampling: GREEDY, ignoreEos: true, topLogits: 2, ...more };
}

/** An answer to its end, told token by token. */
async function answer(
  batch: Batch,
  ask: Ask,
  { signal, onToken }: { signal?: AbortSignal; onToken?: (count: number) => unknown } = {},
): Promise<{ choices: Choice[]; reason: string }> {
  const work = asked(ask);
  const tokens = batch.decode(work, pause, signal);
  const choices: Choice[] = [];
  try {
    return { choices, reason: await listen(tokens, choices, onToken) };
  } finally {
    backend.free(work.prefix);
  }
}

function test(name: string, fn: (batch: Batch) => Promise<void>): void {
  Deno.test(name, async () => {
    passes = [];
    await fn(new Batch(watched, config, pause));
    assert.equal(backend.sizeBytes, held, "all memory is given back");
  });
}

/** Only even ids, and the end after five. */
function even() {
  let count = 0;
  return {
    allowed: () =>
      count >= 5 ? [[1, 2] as const] : Array.from({ length: 200 }, (_, i) => [i * 2, i * 2 + 1] as const),
    advance: () => void count++,
  };
}

const ASKS: readonly (() => Ask)[] = [
  () => ({ seed: 1 }),
  () => ({ seed: 2, sampling: { temperature: 1, topK: 0, topP: 1, seed: 7 }, maxTokens: 9 }),
  () => ({ seed: 3, sampling: { temperature: 1.5, topK: 40, topP: 0.9, seed: 8 }, topLogits: 0 }),
  () => ({ seed: 4, constraint: even(), ignoreEos: false }),
  () => ({ seed: 5, forced: [400, 401, 402], maxTokens: 5 }),
  () => ({ seed: 6, near: NEAR, maxTokens: 1 }),
  () => ({
    seed: 7,
    given: [500, 501, 502, 503],
    sampling: { temperature: 1, topK: 0, topP: 0.95, seed: 9 },
  }),
];

test("answers of every kind that come one after another and overlap", async (batch) => {
  const alone = [];
  for (const ask of ASKS) alone.push(await answer(batch, ask()));
  assert.ok(passes.every((it) => it === 1));
  const single = passes.length;
  passes = [];
  // Each begins when the one before has three tokens, or its end.
  const running: ReturnType<typeof answer>[] = [];
  const begin = (i: number) => {
    if (i < ASKS.length && !running[i]) {
      running[i] = answer(batch, ASKS[i](), { onToken: (count) => void (count === 3 && begin(i + 1)) });
      running[i].finally(() => begin(i + 1));
    }
  };
  begin(0);
  const together = [];
  for (let i = 0; i < ASKS.length; i++) together.push(await running[i]);
  assert.deepEqual(together, alone);
  assert.deepEqual(alone.map((it) => it.reason), [..."lllslll"].map((it) => it === "s" ? "stop" : "length"));
  assert.equal(passes.reduce((a, b) => a + b), single, "no token is computed twice or for nobody");
  assert.ok(Math.max(...passes) >= 3 && passes.length < single * 0.7, `${passes}`);
});

test("more of them than go into a pass all have their turn", async (batch) => {
  const alone = await answer(batch, { seed: 1 });
  passes = [];
  const many = await Promise.all(Array.from({ length: 20 }, () => answer(batch, { seed: 1 })));
  for (const it of many) assert.deepEqual(it, alone);
  assert.equal(Math.max(...passes), 16);
  assert.equal(passes.reduce((a, b) => a + b), 20 * 11);
  assert.ok(passes.length <= 20, `${passes}`);
});

test("what was answered before is brought in by one pass, and the answer goes on as it would have", async (batch) => {
  const ask = { seed: 2, sampling: { temperature: 1, topK: 0, topP: 1, seed: 3 }, maxTokens: 30 };
  const whole = await answer(batch, ask);
  const ids = whole.choices.map((it) => it.id);
  for (const count of [1, 2, 17, 29]) {
    passes = [];
    const rest = await answer(batch, { ...ask, given: ids.slice(0, count) });
    assert.deepEqual(rest.choices, whole.choices.slice(count));
    assert.equal(passes.length, 30 - count);
  }
  assert.deepEqual(await answer(batch, { ...ask, given: ids }), { choices: [], reason: "length" });
});

test("one that is cancelled leaves with the pass under way, the others go on", async (batch) => {
  const alone = await answer(batch, { seed: 1 });
  const stop = new AbortController();
  const [other, cancelled] = await Promise.allSettled([
    answer(batch, { seed: 1 }),
    answer(batch, { seed: 2, maxTokens: 100 }, {
      signal: stop.signal,
      onToken: (count) => {
        if (count === 3) stop.abort(new Error("went away"));
        assert.ok(count <= 3, "nothing comes after that");
      },
    }),
  ]);
  assert.equal(cancelled.status === "rejected" && cancelled.reason.message, "went away");
  assert.deepEqual(other.status === "fulfilled" && other.value, alone);
  const shared = passes.slice(11);
  assert.ok(shared.filter((it) => it === 2).length <= 5, `${shared}`);
});

test("one alone that is cancelled leaves within a layer", async () => {
  const stop = new AbortController();
  let layers = 0;
  const batch = new Batch(watched, config, () => {
    if (++layers === 5) stop.abort(new Error("went away"));
    return Promise.resolve();
  });
  await assert.rejects(answer(batch, { maxTokens: 100 }, { signal: stop.signal }), { message: "went away" });
  assert.equal(layers, 5);
  assert.equal((await answer(batch, { seed: 1 })).choices.length, 12, "the next one is not disturbed");
});

test("a listener that stops takes nobody along; a slow one waits for itself", async (batch) => {
  const alone = await answer(batch, { seed: 1 });
  const fast = answer(batch, { seed: 1 });
  const work = asked({ seed: 2, maxTokens: 100 });
  const tokens = batch.decode(work, pause);
  await tokens.next();
  passes = [];
  assert.deepEqual(await fast, alone);
  await new Promise((wake) => setTimeout(wake, 20));
  assert.ok(passes.reduce((a, b) => a + b) <= 11 + 8, `eight ahead at most: ${passes}`);
  await tokens.return("stop");
  backend.free(work.prefix);
});

test("what goes wrong in one answer ends that answer, what goes wrong in a pass all that are in it", async (batch) => {
  const broken = { allowed: () => [[9, 9]] as const, advance() {} };
  const alone = await answer(batch, { seed: 1 });
  const [good, bad] = await Promise.allSettled([
    answer(batch, { seed: 1 }),
    answer(batch, { seed: 2, forced: [400], constraint: broken }),
  ]);
  assert.deepEqual(good.status === "fulfilled" && good.value, alone);
  assert.match(bad.status === "rejected" && bad.reason.message, /expected an allowed id/);

  let count = 0;
  const failing = new Batch(
    {
      ...watched,
      steps: (...all) => ++count === 4 ? Promise.reject(new Error("lost")) : decoder.steps!(...all),
    },
    config,
    pause,
  );
  const ends = await Promise.allSettled([answer(failing, { seed: 1 }), answer(failing, { seed: 2 })]);
  assert.deepEqual(ends.map((it) => it.status === "rejected" && it.reason.message), ["lost", "lost"]);
  assert.deepEqual(await answer(failing, { seed: 1 }), alone, "and the next ones are computed");
});

test("a decoder for one sequence at a time takes turns", async (batch) => {
  const seeds = [1, 2, 3];
  const alone = [];
  for (const seed of seeds) alone.push(await answer(batch, { seed }));
  const turns = new Batch(single, config, pause);
  assert.deepEqual(await Promise.all(seeds.map((seed) => answer(turns, { seed }))), alone);
  assert.deepEqual(await answer(turns, { seed: 1, given: alone[0].choices.slice(0, 5).map((it) => it.id) }), {
    ...alone[0],
    choices: alone[0].choices.slice(5),
  });
});

Deno.test("logits of an answer's tokens lie in one room, that of the logits after its prefix", async () => {
  const rooms = new Set<unknown>();
  const told: Decoder = {
    ...watched,
    async prefill(...all) {
      const logits = await decoder.prefill(...all);
      rooms.add(logits);
      return logits;
    },
    async steps(turns, pause) {
      const { found } = await decoder.steps!(turns, pause);
      for (const { room } of turns) rooms.add(room);
      for (const it of await found) rooms.add(it);
      return { found };
    },
  };
  const { choices } = await answer(new Batch(told, config, pause), { seed: 2 });
  assert.deepEqual(choices, (await answer(new Batch(single, config, pause), { seed: 2 })).choices);
  assert.equal(rooms.size, 1);
});
