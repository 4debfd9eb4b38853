import assert from "node:assert/strict";
import { calibrated, CostModel, type Estimate, type Route } from "../../lib/schedule/cost_model.ts";
import { PoolView, type WorkerLoad } from "../../lib/schedule/pool_view.ts";
import { Spread, Tracker } from "../../lib/schedule/spread.ts";
import { numbers } from "../bench/random.ts";
import { CALIBRATION } from "./calibration.ts";

const SIZES = { pixels: 224 ** 2, prefix: 264, tokens: 11 };
const LOCAL: Route = { name: "local", vision: "edge", decode: "edge", uploadBytes: 0, ...SIZES };
const FEATURES: Route = { name: "features", vision: "edge", decode: "pool", uploadBytes: 295_000, ...SIZES };
const PIXELS: Route = { name: "pixels", vision: "pool", decode: "pool", uploadBytes: 150_528, ...SIZES };

const near = (found: number, wanted: number, by = 1e-6) =>
  assert.ok(Math.abs(found - wanted) <= by * Math.abs(wanted), `${found}, expected ${wanted}`);

Deno.test("a route's time is the sum of its stages, each linear in its size", () => {
  const model = new CostModel(CALIBRATION);
  const local = model.estimate(LOCAL, {}, 1000, 0);
  near(local.firstMeanMs, 1000 + 750 + 20 + 264 * 13.2);
  near(local.totalMeanMs, local.firstMeanMs + 560);
  const features = model.estimate(FEATURES, {}, 1000, 0);
  near(features.firstMeanMs, 1000 + 750 + 25 + 118 + 66);
  const pixels = model.estimate(PIXELS, {}, 1000, 0);
  near(pixels.firstMeanMs, 25 + 60.2112 + 11 + 66);
  near(pixels.totalMeanMs, pixels.firstMeanMs + 150);
  // The pool's time has a price: features save the pool's vision, not bytes.
  assert.equal(local.cost, 0);
  near(pixels.cost, 0.227 * 0.0005);
  near(features.cost, 0.216 * 0.0005);
  // What was seen before needs no vision.
  near(model.estimate({ ...LOCAL, vision: undefined }, {}, 0, 0).firstMeanMs, 20 + 264 * 13.2);
});

Deno.test("P50 and P95 are around the mean, and the chance is that of what remains", () => {
  const model = new CostModel(CALIBRATION);
  const at = (firstMs?: number, totalMs?: number) => model.estimate(LOCAL, { firstMs, totalMs }, 0, 0);
  const { firstMeanMs, firstP50Ms, firstP95Ms, totalP95Ms, totalMeanMs } = at();
  assert.ok(firstP50Ms < firstP95Ms && firstP95Ms > 1.2 * firstMeanMs && totalP95Ms > totalMeanMs);
  near(at(firstP50Ms).chance, 0.5, 0.05);
  near(at(firstP95Ms).chance, 0.95, 0.02);
  assert.deepEqual([at().chance, at().meets], [1, true]);
  assert.deepEqual([at(firstP95Ms + 1).meets, at(firstP95Ms - 1).meets], [true, false]);
  assert.equal(at(firstP95Ms + 1, totalP95Ms - 1).meets, false);
  for (const none of [0, -5]) assert.deepEqual([at(none).chance, at(none).meets], [0, false]);
});

/** Plays answers whose stages take `slower` times what the calibration says, and their spread. */
function play(model: CostModel, route: Route, slower: number, count: number, from = 0): Estimate[] {
  const noise = numbers(count, 11 + count);
  return Array.from({ length: count }, (_, i) => {
    const now = from + i * 10_000;
    const estimate = model.estimate(route, {}, 0, now);
    const { vision, prefill, step } = CALIBRATION.edge;
    const by = slower * Math.exp(0.2 * noise[i]);
    const visionMs = by * vision.perUnitMs * route.pixels;
    const prefillMs = by * (prefill.baseMs + prefill.perUnitMs * route.prefix);
    const stepMs = by * step.baseMs;
    const firstMs = visionMs + prefillMs;
    const totalMs = firstMs + stepMs * (route.tokens - 1);
    model.observe(route, estimate, { visionMs, prefillMs, stepMs, firstMs, totalMs }, now);
    return { ...estimate, firstMeanMs: firstMs }; // what it took, beside what was expected
  });
}

Deno.test("a machine twice as slow as its calibration is known within ten answers", () => {
  const model = new CostModel(CALIBRATION);
  play(model, LOCAL, 2, 10);
  const { firstP50Ms } = model.estimate(LOCAL, {}, 0, 100_000);
  near(firstP50Ms, 2 * (750 + 20 + 264 * 13.2), 0.2);
});

Deno.test("P95s cover 95 % of what comes, also where the spread is not as expected", () => {
  const model = new CostModel(CALIBRATION);
  const played = play(model, LOCAL, 1.3, 700).slice(100);
  const covered = played.filter((it) => it.firstMeanMs <= it.firstP95Ms).length / played.length;
  assert.ok(covered > 0.93 && covered < 0.97, `${covered}`);
});

Deno.test("a tracker holds its promise for ratios of any distribution", () => {
  for (const power of [0.2, 1, 2]) {
    const [spread, tracker] = [new Spread(), new Tracker()];
    let covered = 0;
    const ratios = numbers(1100, 3).map((it) => Math.abs(it) ** power + 0.1);
    ratios.forEach((ratio, i) => {
      const within = Math.log(ratio) <= spread.at(i * 1000, tracker).p95;
      spread.add(ratio, i * 1000);
      tracker.update(within);
      if (i >= 100 && within) covered++;
    });
    assert.ok(covered > 930 && covered < 970, `${power}: ${covered}`);
  }
});

Deno.test("a clock that stands still teaches nothing", () => {
  const model = new CostModel(CALIBRATION);
  const before = model.estimate(LOCAL, {}, 0, 0);
  const nothing = { visionMs: 0, prefillMs: 0, stepMs: 0, firstMs: 0, totalMs: 0 };
  for (let i = 0; i < 50; i++) model.observe(LOCAL, before, nothing, 0);
  assert.deepEqual(model.estimate(LOCAL, {}, 0, 0), before);
  assert.equal(calibrated([{ size: 10, ms: 0 }, { size: 20, ms: 0 }]), undefined);
});

Deno.test("a few timed runs give a line, and never one below 0", () => {
  const line = calibrated([{ size: 64, ms: 20 + 64 * 13 }, { size: 256, ms: 20 + 256 * 13 }])!;
  near(line.baseMs, 20);
  near(line.perUnitMs, 13);
  assert.deepEqual(calibrated([{ size: 100, ms: 50 }]), { baseMs: 0, perUnitMs: 0.5 });
  assert.equal(calibrated([{ size: 10, ms: 5 }, { size: 20, ms: 20 }])!.baseMs, 0);
  assert.equal(calibrated([{ size: 10, ms: 20 }, { size: 20, ms: 5 }])!.perUnitMs, 0);
  assert.throws(
    () => new CostModel({ edge: { ...CALIBRATION.edge, step: { baseMs: -1, perUnitMs: 0 } } }),
    /Calibration: expected milliseconds of edge step, found -1 and 0/,
  );
});

Deno.test("a model goes on from JSON, and refuses what none wrote without taking half of it", () => {
  const model = new CostModel(CALIBRATION);
  play(model, LOCAL, 2, 40);
  play(model, PIXELS, 1, 40);
  const json = JSON.stringify(model);
  assert.ok(json.length < 20_000, `${json.length} bytes`);
  const twin = new CostModel({
    ...CALIBRATION,
    edge: { ...CALIBRATION.edge, step: { baseMs: 1, perUnitMs: 0 } },
  });
  twin.restore(JSON.parse(json));
  const [mine, theirs] = [model, twin].map((it) => it.estimate(LOCAL, { firstMs: 9000 }, 0, 400_000));
  for (const name of ["firstP50Ms", "firstP95Ms", "totalP95Ms", "chance"] as const) {
    near(theirs[name], mine[name], 1e-3);
  }
  const fresh = new CostModel(CALIBRATION);
  const untouched = JSON.stringify(fresh);
  assert.deepEqual(twin.calibration, CALIBRATION);
  const wrong = [null, 7, {}, { version: 2 }, { ...JSON.parse(json), calibration: { edge: { vision: 7 } } }, {
    ...JSON.parse(json),
    raises: { "edge/first": "x" },
  }];
  for (const it of wrong) {
    assert.throws(() => fresh.restore(it), { code: "record_corrupt", message: /Cannot read the cost model/ });
  }
  assert.equal(JSON.stringify(fresh), untouched);
});

Deno.test("models of several isolates add up", () => {
  const [one, two] = [new CostModel(CALIBRATION), new CostModel(CALIBRATION)];
  play(two, LOCAL, 2, 30);
  one.merge(two);
  near(one.estimate(LOCAL, {}, 0, 300_000).firstP50Ms, two.estimate(LOCAL, {}, 0, 300_000).firstP50Ms, 0.02);
});

Deno.test("a pool's wait is what its workers say, or what was seen where they say nothing", () => {
  assert.deepEqual([new PoolView().present(0), new PoolView().waitMs(0)], [true, 0]);
  let workers: WorkerLoad[] = [];
  const pool = new PoolView(() => ({ workers }));
  assert.equal(pool.present(0), false);
  workers = [
    { worker: "a", slots: 2, running: 2, waiting: 3, serviceMs: 400 },
    { worker: "b", slots: 2, running: 2, waiting: 0, serviceMs: 600 },
  ];
  assert.deepEqual([pool.present(0), pool.waitMs(0)], [true, 4 * 500 / 4]);
  workers[1] = { worker: "b", slots: 2, running: 1, waiting: 0 };
  workers[0] = { ...workers[0], waiting: 0 };
  assert.equal(pool.waitMs(0), 0);
  const silent = new PoolView();
  silent.answered(80, 100, 0);
  assert.ok(silent.waitMs(0) > 40 && silent.waitMs(60_000) < 1);
});

Deno.test("a pool that failed is not relied on for a while, then asked again", () => {
  const model = new CostModel(CALIBRATION);
  const estimate = (now: number) => model.estimate(PIXELS, { firstMs: 5000 }, 0, now);
  assert.ok(estimate(0).meets);
  model.gaveUp(PIXELS, estimate(0), 2000, true, 0);
  assert.deepEqual([estimate(1).meets, estimate(20_000).meets], [false, false]);
  assert.ok(estimate(1).chance < 0.5);
  assert.ok(estimate(30_000).meets);
  // Each failure in a row keeps it away for twice as long; an answer, or workers where there were none, end that.
  for (let i = 0; i < 2; i++) model.gaveUp(PIXELS, estimate(30_000), 2000, true, 30_000);
  assert.deepEqual([estimate(149_000).meets, estimate(150_000).meets], [false, true]);
  model.gaveUp(PIXELS, estimate(150_000), 2000, true, 150_000);
  assert.ok(!estimate(150_000).meets);
  model.observe(PIXELS, estimate(150_000), { firstMs: 170, totalMs: 320, queueMs: 0 }, 150_000);
  assert.ok(estimate(150_000).meets);
  // Who came when nobody was there did not fail.
  let since = 140_000;
  const workers = [{ worker: "a", slots: 1, running: 0, waiting: 0 }];
  const told = new CostModel(CALIBRATION, { pool: () => ({ workers, since }) });
  const meets = () => told.estimate(PIXELS, { firstMs: 5000 }, 0, 160_000).meets;
  told.gaveUp(PIXELS, told.estimate(PIXELS, {}, 0, 150_000), 2000, true, 150_000);
  assert.ok(!meets());
  since = 155_000;
  assert.ok(meets());
});
