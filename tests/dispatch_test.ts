/**
 * Budgets decide, with real engines: a small model here, in plain loops where it is to be slow, and the same one behind a
 * worker's message format.
 */

import assert from "node:assert/strict";
import { createReferenceBackend } from "../lib/backend/reference.ts";
import { createWasmBackend } from "../lib/backend/wasm.ts";
import { openEngine } from "../lib/engine.ts";
import { createMetrics } from "../lib/metrics.ts";
import { collect, createPipeline, type PipelineParts } from "../lib/pipeline.ts";
import { type Pool, PoolError, type Work } from "../lib/pool/pool.ts";
import type { CostModel } from "../lib/schedule/cost_model.ts";
import { Planner } from "../lib/schedule/planner.ts";
import { createMemoryStore } from "../lib/store/memory.ts";
import type { Answer, AnswerEvent, Budget, Question } from "../lib/types.ts";
import { relaxed, simd } from "../wasm/kernels.js";
import { directoryBytes, memoryFiles } from "./memory_files.ts";
import { wired } from "./pool/wire.ts";

const CHECKPOINT = new URL("./golden/checkpoints/pg1", import.meta.url).pathname;
const PICTURE = Deno.readFileSync(new URL("./fixtures/scene.png", import.meta.url));
const BYTES = directoryBytes(CHECKPOINT);

const parts = (slow = false) => ({
  backend: slow ? createReferenceBackend() : createWasmBackend({ simd, relaxed }),
  files: memoryFiles(BYTES, "pg1"),
});

function load(more: Partial<PipelineParts> = {}, slow = false) {
  return createPipeline({ ...parts(slow), name: "pg1", featureCacheBytes: 0, prefixCacheBytes: 0, ...more });
}

const question = (budget?: Budget, tokens = 8): Question => ({
  images: [PICTURE],
  prompt: "caption en",
  maxTokens: tokens,
  ignoreEos: true,
  ...budget && { budget, arrivedAt: Date.now() },
});

const worker = await openEngine({ ...parts(), featureCacheBytes: 0, prefixCacheBytes: 0 });
const expected = (await collect((await load()).answer(question()))).tokenIds;

/** A machine that is thought to take so long, in milliseconds, whatever it is. */
const thought = (vision: number, prefill: number, step: number) => (model: CostModel) => {
  const line = (baseMs: number) => ({ baseMs, perUnitMs: 0 });
  model.calibrate("edge", { vision: line(vision), prefill: line(prefill), step: line(step) });
  return new Planner(model);
};

/** Answers, and holds the tokens to those of a model alone. */
async function answered(
  pipeline: Awaited<ReturnType<typeof load>>,
  asked: Question,
): Promise<Required<Answer>["route"]> {
  const { tokenIds, route } = await collect(pipeline.answer(asked));
  assert.deepEqual(tokenIds, expected);
  return route!;
}

Deno.test("without a pool there is one way; the decision comes before the first token, its outcome with usage", async () => {
  const metrics = createMetrics();
  const pipeline = await load({ metrics });
  const events: AnswerEvent[] = await Array.fromAsync(pipeline.answer(question()));
  assert.deepEqual(events.map((it) => it.type), ["route", ...Array(8).fill("token"), "usage", "done"]);
  const [route] = events;
  const usage = events.at(-2)!;
  assert.ok(route.type === "route" && usage.type === "usage");
  const { chosen, reason, candidates, excluded } = route;
  assert.deepEqual([chosen, reason, candidates.length, excluded], ["local", "usual", 1, []]);
  const { firstMs, totalMs, ...rest } = usage.route!;
  assert.deepEqual(rest, { route: "local" });
  assert.ok(firstMs > 0 && totalMs > firstMs);
  assert.equal(metrics.plans.value("local", "usual"), 1);
  assert.equal(metrics.goodput.value(), 8);
  const met = await answered(pipeline, question({ totalMs: 60_000 }));
  assert.deepEqual([met.chosen, met.actual?.met, metrics.budgets.value("met")], ["local", true, 1]);
  assert.equal(metrics.predictions.value("covered") + metrics.predictions.value("exceeded"), 2);
});

Deno.test("a budget that no way can meet is refused before anything is computed, unless a worse answer is allowed", async () => {
  const metrics = createMetrics();
  const pipeline = await load({ metrics }, true);
  await pipeline.calibrate();
  const late = { ...question({ totalMs: 1000 }), arrivedAt: Date.now() - 2000 };
  await assert.rejects(collect(pipeline.answer(late)), {
    code: "budget_hopeless",
    message:
      /expected an answer within -\d+ ms, found local takes \d+ ms \(P95 \d+ ms\) to the first token, \d+ ms \(P95/,
  });
  assert.equal(metrics.budgets.value("refused"), 1);
  const slow = await load({ planner: thought(100, 100, 100) });
  const short = await collect(slow.answer(question({ totalMs: 1500, quality: "degrade" }, 40)));
  assert.equal(short.route!.chosen, "local-short", JSON.stringify(short.route));
  assert.deepEqual([short.finishReason, short.tokenIds.slice(0, 8)], ["length", expected]);
  assert.ok(short.tokenIds.length < 16, `${short.tokenIds.length}`);
});

Deno.test("where no time is set the pool is asked first; one that is gone falls to this machine and is left to rest", async () => {
  const metrics = createMetrics();
  let [asked, dead] = [0, false];
  const pool = wired(worker, {
    asked() {
      asked++;
      if (dead) throw new PoolError("gone", "The way to the worker broke");
    },
  });
  const pipeline = await load({ pool, metrics });
  const first = await answered(pipeline, question());
  assert.deepEqual([first.chosen, first.actual!.route], ["pixels", "pixels"]);
  assert.deepEqual(first.candidates.map((it) => it.route), ["local", "features", "pixels"]);
  dead = true;
  asked = 0;
  const second = await answered(pipeline, question());
  assert.deepEqual([second.chosen, second.actual!.route, asked], ["pixels", "local", 3]);
  const third = await answered(pipeline, question());
  assert.deepEqual([third.chosen, third.actual!.route, asked], ["local", "local", 3]);
  assert.ok(third.candidates.filter((it) => it.route !== "local").every((it) => it.totalP95Ms === null));
  assert.deepEqual([metrics.routes.value("pool"), metrics.routes.value("local")], [1, 2]);
  assert.ok(pipeline.planner().pool!.distrust > 0.5);
});

Deno.test("a machine that is too slow for the budget leaves the answer to the pool, and keeps the picture if it has to", async () => {
  const asked: Work[] = [];
  const pool = wired(worker, { asked: (work) => void asked.push(work) });
  const pipeline = await load({ pool }, true);
  await pipeline.calibrate();
  const ask = async (budget: Budget) => (await collect(pipeline.answer(question(budget, 40)))).route!;
  // What it knows of both it learns from their answers.
  let local = 0;
  for (let i = 0; i < 3; i++) {
    const { actual } = await ask({ privacy: "pixels-stay" });
    assert.equal(actual!.route, "local");
    local = actual!.totalMs;
    await ask({});
  }
  const first = await ask({ totalMs: 60_000 });
  assert.deepEqual([first.chosen, first.reason, first.actual!.met], ["local", "in-time", true]);
  asked.length = 0;
  const second = await ask({ totalMs: local / 2 });
  assert.match(second.actual!.route, /^(features|pixels)$/, JSON.stringify([local, second]));
  assert.equal(asked.at(-1)!.images.stage, second.actual!.route);
  const third = await ask({ totalMs: local / 2, privacy: "pixels-stay" });
  assert.deepEqual(third.excluded, [{ route: "pixels", why: "privacy" }]);
  assert.ok(asked.slice(1).every((it) => it.images.stage === "features"), third.chosen);
});

Deno.test("what may not leave does not, whatever fails; what costs too much is not bought", async () => {
  const seen: string[] = [];
  const pool: PipelineParts["pool"] = () => ({
    // deno-lint-ignore require-yield
    async *submit({ images }) {
      seen.push(images.stage);
      await Promise.resolve();
      throw new PoolError("gone", "The worker died");
    },
  });
  const priced = await load({ pool, poolPrice: 1000 });
  await answered(priced, question({ privacy: "pixels-stay" }));
  await answered(priced, question({ maxCost: 0 }));
  assert.ok(!seen.includes("pixels"), `${seen}`);
  const streamed = await load({ pool, residence: "streamed" });
  await assert.rejects(collect(streamed.answer(question({ maxCost: 1, privacy: "pixels-stay" }))), {
    code: "overloaded",
    message: /worker died/,
  });
  const dear = await load({ pool, poolPrice: 1e9, residence: "streamed" });
  await assert.rejects(collect(dear.answer(question({ maxCost: 1e-6 }))), {
    code: "budget_hopeless",
    message: /expected a way that the budget allows, found features is excluded by cost/,
  });
});

Deno.test("a pool that takes no features is asked for that once", async () => {
  const asked: string[] = [];
  const pool = wired(worker, {
    asked({ images }) {
      asked.push(images.stage);
      if (images.stage !== "pixels") throw new PoolError("forbidden", "Features are not taken");
    },
  });
  const pipeline = await load({ pool, poolPrice: 1, planner: thought(1, 5000, 1000) });
  const routes = async (budget: Budget) =>
    (await answered(pipeline, question(budget))).candidates.map((it) => it.route);
  for (let i = 0; i < 2; i++) await routes({ privacy: "pixels-stay", ttftMs: 2000, quality: "degrade" });
  assert.deepEqual(asked, ["features"]);
  assert.deepEqual(await routes({}), ["local", "pixels"]);
});

Deno.test("pictures that were seen before need no vision, and leave as what is known of them", async () => {
  const asked: Work[] = [];
  const pool = wired(worker, { asked: (work) => void asked.push(work) });
  const pipeline = await load({
    pool,
    poolImages: { stage: "features", dtype: "f16" },
    featureCacheBytes: 2 ** 24,
  });
  const stay = question({ privacy: "pixels-stay" });
  await answered(pipeline, stay);
  await pipeline.classify({ images: [PICTURE], prompt: "", labels: ["a"] }); // encodes it here
  const known = await answered(pipeline, stay);
  assert.deepEqual(known.candidates.map((it) => it.route), ["local-known", "features-known"]);
  assert.deepEqual(asked.map((it) => it.images.stage), ["features", "projected"]);
});

Deno.test("where nobody is in the pool and nothing decodes here, that is said; workers that tell are believed", async () => {
  const here: { workers: { worker: string; slots: number; running: number; waiting: number }[] } = {
    workers: [],
  };
  const pool: PipelineParts["pool"] = (model) => {
    const { submit } = wired(worker)(model);
    return { submit, present: () => here } satisfies Pool;
  };
  const streamed = await load({ pool, residence: "streamed" });
  await assert.rejects(collect(streamed.answer(question())), { code: "overloaded", message: /no worker/ });
  here.workers.push({ worker: "a", slots: 1, running: 0, waiting: 0, ...{ firstMs: 40, tokenMs: 2 } });
  const route = await answered(streamed, question());
  assert.equal(route.chosen, "features");
  const { prefill, vision, step } = streamed.planner().calibration.pool;
  const { imageTokens, imageSize } = worker.shape;
  const firstMs = prefill.baseMs + prefill.perUnitMs * (imageTokens + 2) + vision.baseMs +
    vision.perUnitMs * imageSize ** 2;
  assert.ok(Math.abs(firstMs - 40) < 1e-6 && step.baseMs === 2, `${firstMs}`);
});

Deno.test("calibration is a short timed answer; what was learned is there after a restart", async () => {
  const { records } = createMemoryStore();
  const errors: unknown[] = [];
  const onError = (error: unknown) => errors.push(error);
  const first = await load({ records, onError }, true);
  const guessed = first.planner().calibration.edge;
  await first.calibrate();
  const measured = first.planner().calibration.edge;
  assert.ok(measured.prefill.perUnitMs > 2 * guessed.prefill.perUnitMs, "plain loops are slow");
  await answered(first, question());
  const second = await load({ records, onError }, true);
  await second.calibrate(); // there is nothing to be timed
  assert.deepEqual(second.planner().calibration.edge, measured);
  const keys = await Array.fromAsync(records.keys("planner/"));
  assert.equal(keys.length, 1);
  await records.set(keys[0], { model: 7 }, (await records.get(keys[0]))!.version);
  const third = await load({ records, onError }, true);
  await answered(third, question());
  assert.match(String(errors[0]), /Cannot read the cost model/);
});

Deno.test("calibration gives way to whoever asks", async () => {
  const pipeline = await load({}, true);
  const calibrating = pipeline.calibrate();
  const [{ actual }] = await Promise.all([answered(pipeline, question()), calibrating]);
  assert.ok(actual);
});
