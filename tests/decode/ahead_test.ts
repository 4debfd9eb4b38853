/**
 * Passes that are issued before the one ahead of them is read, on WebGPU in software: every answer is what it is when each
 * pass waits, the choice of each token made on the GPU in both.
 */

import assert from "node:assert/strict";
import { Batch } from "../../lib/decode/batch.ts";
import type { DecodeWork } from "../../lib/decode/decode.ts";
import type { Cache, Decoder, Near, Turn } from "../../lib/decode/decoder.ts";
import { loadDecoder } from "../../lib/decode/gemma.ts";
import { type Choice, GREEDY } from "../../lib/decode/sampler.ts";
import { parseConfig } from "../../lib/weights/config.ts";
import { openWeights } from "../../lib/weights/load.ts";
import { nameOf, openSoftware } from "../backend/gpus.ts";
import { directoryBytes, memoryFiles } from "../memory_files.ts";
import { listen } from "./listen.ts";

const CHECKPOINT = new URL("../golden/checkpoints/pg1", import.meta.url).pathname;
const pause = () => Promise.resolve();

const opened = await openSoftware({ driver: "lavapipe" });
const backend = opened!;
const files = memoryFiles(directoryBytes(CHECKPOINT), "pg1");
const config = parseConfig(JSON.parse(new TextDecoder().decode(await files.read("config.json"))));
const decoder = opened && await loadDecoder(backend, await openWeights(files, config, "int4"));
const held = opened?.sizeBytes;

/** Tells of every pass when it is issued, and when it is read. */
class Watched implements Decoder {
  /** Turns of each pass. */
  readonly passes: (readonly Turn[])[] = [];
  /** Passes under way, at most. */
  deepest = 0;
  #reading = 0;

  constructor(readonly chooses: boolean) {}

  cache(capacity: number): Cache {
    return decoder!.cache(capacity);
  }

  prefill(...all: Parameters<Decoder["prefill"]>) {
    return decoder!.prefill(...all);
  }

  step(...all: Parameters<Decoder["step"]>) {
    return decoder!.step(...all);
  }

  extend(...all: Parameters<Decoder["extend"]>) {
    return decoder!.extend(...all);
  }

  async steps(...[turns, pause]: Parameters<NonNullable<Decoder["steps"]>>) {
    this.passes.push(turns);
    const { found } = await decoder!.steps!(turns, pause);
    this.deepest = Math.max(this.deepest, ++this.#reading);
    found.finally(() => this.#reading--).catch(() => {});
    return { found };
  }
}

type Ask = Partial<DecodeWork> & { readonly seed: number };

async function answer(
  batch: Batch,
  { seed, ...more }: Ask,
  { signal, onToken }: { signal?: AbortSignal; onToken?: (count: number) => unknown } = {},
): Promise<{ choices: Choice[]; reason?: string; error?: string }> {
  const ids = [config.bosId, ...Array.from({ length: 2 + seed % 5 }, (_, i) => 300 + seed * 13 + i), 108];
  const prefix = backend.tensor(ids.length, config.decoder.width);
  const work = { prefix, ids, maxTokens: 12, sampling: GREEDY, ignoreEos: true, topLogits: 0, ...more };
  const tokens = batch.decode(work, pause, signal);
  const choices: Choice[] = [];
  try {
    return { choices, reason: await listen(tokens, choices, onToken) };
  } catch (error) {
    return { choices, error: (error as Error).message };
  } finally {
    backend.free(prefix);
  }
}

const near: Near = {
  within: [3, config.imageTokenId],
  of: (id) => id % 2 ? [[Math.max(3, id - 2), Math.min(id + 3, config.imageTokenId)]] : undefined,
};

/** Only ids that are a multiple of three. */
const constraint = {
  allowed: () => Array.from({ length: 200 }, (_, i) => [3 + i * 3, 4 + i * 3] as const),
  advance() {},
};

const drawn = (seed: number, more = {}) => ({ temperature: 1.3, topK: 0, topP: 1, seed, ...more });

const ASKS: readonly Ask[] = [
  { seed: 1, near },
  { seed: 2, sampling: drawn(7), maxTokens: 9 },
  { seed: 3, sampling: drawn(8, { topK: 40, topP: 0.9 }), near, maxTokens: 20 },
  { seed: 4, sampling: drawn(9, { topP: 0.95 }), given: [500, 501, 502] },
  { seed: 5, forced: [400, 401, 402], sampling: drawn(10), maxTokens: 5 },
  { seed: 6, maxTokens: 1 },
  { seed: 7, maxTokens: 2 },
];
/** These look at logits. */
const READING: readonly Ask[] = [
  { seed: 8, constraint, sampling: drawn(11), maxTokens: 6 },
  { seed: 9, topLogits: 3, maxTokens: 6 },
];

/** Answers by themselves, each pass waiting for the one before. */
const waited = new Map<Ask, Awaited<ReturnType<typeof answer>>>();

async function alone(ask: Ask, watched = new Watched(false)) {
  if (!waited.has(ask)) waited.set(ask, await answer(new Batch(watched, config, pause), ask));
  return waited.get(ask)!;
}

function test(name: string, fn: () => Promise<void>): void {
  Deno.test({
    name: `webgpu on ${nameOf("lavapipe")}: ${name}` + (opened ? "" : " (skipped: no driver)"),
    ignore: !opened,
    async fn() {
      await fn();
      assert.equal(backend.sizeBytes, held, "all memory is given back");
    },
  });
}

test("a pass is issued before the one ahead of it is read, and answers are what they were", async () => {
  for (const ask of [...ASKS, ...READING]) {
    const [waiting, ahead] = [new Watched(false), new Watched(true)];
    const expected = await alone(ask, waiting);
    assert.deepEqual(await answer(new Batch(ahead, config, pause), ask), expected);
    const { length } = expected.choices;
    const { forced = [], given = [], maxTokens = 12 } = ask;
    assert.equal(length, forced.length + maxTokens - given.length);
    assert.equal(expected.reason, "length");
    assert.equal(ahead.passes.length, waiting.passes.length, "nothing is computed in vain");
    assert.equal(waiting.deepest, length > 1 ? 1 : 0);
    assert.equal(ahead.deepest, READING.includes(ask) ? 1 : Math.min(2, length - 1));
    const unread = ahead.passes.filter(([it]) => it.id === undefined).length;
    // The first id comes from the prefix, and what is forced is known from the one before.
    assert.equal(unread > 0, ahead.deepest > 1);
    if (!READING.includes(ask)) {
      assert.equal(unread, Math.max(0, ahead.passes.length - Math.max(1, forced.length)));
    }
  }
});

test("answers that join, leave and look at logits do not change one another", async () => {
  const all = [...ASKS, ...READING];
  const watched = new Watched(true);
  const batch = new Batch(watched, config, pause);
  const running: ReturnType<typeof answer>[] = [];
  const begin = (i: number) => {
    if (i < all.length && !running[i]) {
      running[i] = answer(batch, all[i], { onToken: (count) => void (count === 3 && begin(i + 1)) });
      running[i].then(() => begin(i + 1));
    }
  };
  begin(0);
  for (let i = 0; i < all.length; i++) assert.deepEqual(await running[i], await alone(all[i]));
  assert.equal(watched.deepest, 2);
  assert.ok(Math.max(...watched.passes.map((it) => it.length)) >= 3);
});

test("an end that was not foreseen wastes one row, and nothing of it is told", async () => {
  for (const ask of [ASKS[0], ASKS[2]]) {
    const whole = await alone(ask);
    const end = whole.choices.findIndex(({ id }, i) =>
      i >= 4 && whole.choices.findIndex((it) => it.id === id) === i
    );
    const ending = { ...config, eosIds: [whole.choices[end].id] };
    const watched = new Watched(true);
    const batch = new Batch(watched, ending, pause);
    const other = answer(batch, { ...ASKS[2], maxTokens: 20 });
    assert.deepEqual(await answer(batch, { ...ask, ignoreEos: false }), {
      choices: whole.choices.slice(0, end),
      reason: "stop",
    });
    assert.equal((await other).choices.length, 20);
    // A row for each token but the first, and for the one after the end.
    const rows = watched.passes.reduce((sum, it) => sum + it.length, 0);
    assert.equal(rows, 19 + end + 1);
  }
});

test("one that is cancelled is in no pass that is issued afterwards", async () => {
  const watched = new Watched(true);
  const batch = new Batch(watched, config, pause);
  const stop = new AbortController();
  let before = 0;
  const [other, cancelled] = await Promise.all([
    answer(batch, ASKS[2]),
    answer(batch, { seed: 1, maxTokens: 100 }, {
      signal: stop.signal,
      onToken(count) {
        if (count !== 5) return;
        stop.abort(new Error("went away"));
        before = watched.passes.length;
      },
    }),
  ]);
  assert.equal(cancelled.error, "went away");
  assert.equal(cancelled.choices.length, 5);
  assert.deepEqual(other, await alone(ASKS[2]));
  assert.ok(watched.passes.slice(before).every((it) => it.length === 1));
});

test("a pass that fails under way ends those that are in it, after what came before, and nobody else", async () => {
  const ask = ASKS[2];
  const whole = await alone(ask);
  for (const issued of [true, false]) {
    const watched = new Watched(true);
    let [slow, passed]: [Cache | undefined, number] = [undefined, 0];
    const failing: Decoder = Object.assign(Object.create(watched), {
      async steps(turns: readonly Turn[], pause: () => Promise<void>) {
        slow ??= turns[0].cache;
        const failed = turns.every((it) => it.cache !== slow) && ++passed === 4;
        if (failed && !issued) throw new Error("lost");
        const { found } = await watched.steps(turns, pause);
        return { found: failed ? found.then(() => Promise.reject(new Error("lost"))) : found };
      },
    });
    const batch = new Batch(failing, config, pause);
    const gate = Promise.withResolvers<void>();
    const waiting = answer(batch, ask, {
      onToken: (count) => count === 1 ? gate.promise : undefined,
    });
    while (watched.passes.length < 8) await new Promise((wake) => setTimeout(wake, 1)); // eight ahead, and no more
    const lost = await answer(batch, ask);
    assert.deepEqual(lost, { choices: whole.choices.slice(0, 4), error: "lost" });
    gate.resolve();
    assert.deepEqual(await waiting, whole, "one that was not in it goes on");
    assert.deepEqual(await answer(batch, ask), whole, "and so do the next");
  }
});
