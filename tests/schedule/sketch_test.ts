import assert from "node:assert/strict";
import { Drift } from "../../lib/schedule/drift.ts";
import { Sketch } from "../../lib/schedule/sketch.ts";

/** Numbers with a heavy tail, the same every time. */
function tailed(count: number, seed = 1): number[] {
  let state = seed;
  return Array.from({ length: count }, () => {
    state = Math.imul(state, 1664525) + 1013904223 >>> 0;
    return (1 - (state + 0.5) / 2 ** 32) ** -0.7;
  });
}

/** The value that a share of the numbers does not exceed. */
function exact(values: readonly number[], q: number): number {
  return values.toSorted((a, b) => a - b)[Math.max(0, Math.ceil(q * values.length) - 1)];
}

Deno.test("quantiles of a sketch are within its accuracy of the exact ones, whatever the tail", () => {
  for (const accuracy of [0.01, 0.05]) {
    const sketch = new Sketch(accuracy);
    const values = tailed(5000);
    for (const it of values) sketch.add(it);
    for (const q of [0, 0.01, 0.25, 0.5, 0.9, 0.95, 0.99, 1]) {
      const [found, wanted] = [sketch.quantile(q), exact(values, q)];
      assert.ok(Math.abs(found / wanted - 1) <= accuracy * 1.0001, `${q}: ${found} of ${wanted}`);
    }
    for (const value of [1.01, 1.5, 3, 20]) {
      const share = values.filter((it) => it <= value).length / values.length;
      assert.ok(Math.abs(sketch.rank(value) - share) < 0.02, `${value}: ${sketch.rank(value)} of ${share}`);
    }
  }
});

Deno.test("sketches of parts add up to the sketch of all, also through JSON", () => {
  const values = tailed(900);
  const parts = [new Sketch(), new Sketch(), new Sketch()];
  const all = new Sketch();
  values.forEach((it, i) => (parts[i % 3].add(it), all.add(it)));
  const sum = Sketch.from(JSON.parse(JSON.stringify(parts[0])));
  sum.merge(parts[1]);
  sum.merge(parts[2]);
  assert.deepEqual(sum.toJSON(), all.toJSON());
  assert.equal(sum.total, 900);
  assert.throws(() => sum.merge(new Sketch(0.02)), /expected an accuracy of 0.01, found 0.02/);
});

Deno.test("what grows old weighs less", () => {
  const sketch = new Sketch();
  for (let i = 0; i < 100; i++) sketch.add(1);
  sketch.age(0.1);
  for (let i = 0; i < 30; i++) sketch.add(4);
  assert.equal(sketch.total, 40);
  assert.ok(Math.abs(sketch.quantile(0.5) - 4) < 0.05);
  assert.ok(Math.abs(sketch.quantile(0.2) - 1) < 0.02);
});

Deno.test("an empty sketch has no quantile, and what is no duration is refused", () => {
  const sketch = new Sketch();
  assert.deepEqual([sketch.quantile(0.5), sketch.rank(1), sketch.total], [NaN, NaN, 0]);
  assert.deepEqual(Sketch.from(sketch.toJSON()).toJSON(), sketch.toJSON());
  for (const value of [0, -1, NaN]) assert.throws(() => sketch.add(value), RangeError);
  assert.throws(() => sketch.add(1, -1), RangeError);
  assert.throws(() => new Sketch(1), RangeError);
  for (const [first, counts] of [[0, [-1]], [0.5, [1]], [1e9, [1]], [0, "x"], [0, [NaN]]]) {
    const json = { accuracy: 0.01, first, counts } as ReturnType<Sketch["toJSON"]>;
    assert.throws(() => Sketch.from(json), RangeError);
  }
  sketch.add(1e-300);
  sketch.add(1e300);
  assert.ok(sketch.quantile(0) < 1.1e-6 && sketch.quantile(1) > 0.9e6);
});

Deno.test("a drift follows within ten values and leans back when nothing is seen", () => {
  const drift = new Drift(0.2, 60_000);
  assert.deepEqual(drift.at(0), { mean: 0, deviation: 0.2 });
  for (let i = 0; i < 20; i++) drift.add(0, i * 100);
  for (let i = 0; i < 10; i++) drift.add(Math.LN2, 2000 + i * 100);
  const { mean } = drift.at(3000);
  assert.ok(mean > 0.65 * Math.LN2 && mean < Math.LN2, `${mean}`);
  const later = drift.at(3000 + 10 * 60_000);
  assert.ok(later.mean < 0.03 && Math.abs(later.deviation - 0.2) < 0.02, JSON.stringify(later));
  // After a silence the next value counts for nearly all.
  drift.add(-1, 3000 + 10 * 60_000);
  assert.ok(drift.at(3000 + 10 * 60_000).mean < -0.6);
});

Deno.test("a drift's deviation is that of what it saw", () => {
  const drift = new Drift(0.2, 60_000);
  for (let i = 0; i < 60; i++) drift.add(i % 2 ? 0.5 : -0.5, i);
  const { mean, deviation } = drift.at(60);
  assert.ok(Math.abs(mean) < 0.1 && Math.abs(deviation - 0.5) < 0.1, `${mean} ${deviation}`);
  const twin = new Drift(0.2, 60_000);
  twin.restore(JSON.parse(JSON.stringify(drift)));
  assert.deepEqual(twin.at(60), drift.at(60));
  assert.throws(() => twin.restore({ mean: NaN, deviation: 1, weight: 1, at: 0 }), RangeError);
  assert.throws(() => twin.add(Infinity, 0), RangeError);
});
