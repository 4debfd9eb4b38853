import assert from "node:assert/strict";
import { choose, decay, GREEDY, randomFrom } from "../../lib/decode/sampler.ts";

const never: number[] = [];

/** Frequencies of each id over many draws. */
function frequencies(logits: number[], sampling: object, draws = 20_000): number[] {
  const random = randomFrom(7);
  const counts = logits.map(() => 0);
  for (let i = 0; i < draws; i++) {
    counts[choose(Float32Array.from(logits), logits.length, never, { ...GREEDY, ...sampling }, random).id]++;
  }
  return counts.map((it) => it / draws);
}

Deno.test("greedy takes the largest logit below the limit that is allowed", () => {
  const logits = Float32Array.from([9, 1, 8, 3, 99]);
  const { id, logprob, top } = choose(
    logits,
    4,
    [0, 2],
    GREEDY,
    () => assert.fail("greedy draws nothing"),
    3,
  );
  assert.equal(id, 3);
  assert.ok(Math.abs(logprob - Math.log(Math.exp(3) / (Math.exp(1) + Math.exp(3)))) < 1e-6);
  assert.deepEqual(top.map((it) => [it.id, it.logit]), [[3, 3], [1, 1], [0, -Infinity]]);
  assert.equal(top[0].logprob, logprob);
  assert.ok(Math.abs(Math.exp(top[0].logprob) + Math.exp(top[1].logprob) - 1) < 1e-6);
});

Deno.test("equal logits: the lower id, greedy and in the candidates", () => {
  const { id, top } = choose(Float32Array.from([1, 5, 5, 5]), 4, never, GREEDY, () => 0, 2);
  assert.equal(id, 1);
  assert.deepEqual(top.map((it) => it.id), [1, 2]);
});

Deno.test("a token's near ones count with it, whatever may be chosen", () => {
  const shares = [0.5, 0.25, 0.15, 0.1];
  const pick = (near?: (id: number) => [number, number][] | undefined) =>
    choose(Float32Array.from(shares.map(Math.log)), 4, never, GREEDY, () => 0, 0, [[2, 3]], near);
  const close = (found: number, wanted: number) => assert.ok(Math.abs(Math.exp(found) - wanted) < 1e-6);
  const { id, logprob, nearLogprob } = pick((id) => [[id - 1, id], [id, id + 2]]);
  assert.equal(id, 2);
  close(logprob, 0.15);
  close(nearLogprob, 0.5);
  assert.equal(pick((id) => id === 0 ? [[0, 4]] : undefined).nearLogprob, logprob);
  assert.equal(pick(() => [[0, 4]]).nearLogprob, 0);
});

Deno.test("temperature 1 draws from softmax", () => {
  const expected = [0.5, 0.25, 0.15, 0.1];
  const found = frequencies(expected.map(Math.log), { temperature: 1 });
  expected.forEach((it, i) => assert.ok(Math.abs(it - found[i]) < 0.015, `id ${i}: ${it} ${found[i]}`));
});

Deno.test("temperature 0.5 squares the odds", () => {
  const [a, b] = frequencies([0, Math.log(3)], { temperature: 0.5 });
  assert.ok(Math.abs(b / a - 9) < 1, `${b / a}`);
});

Deno.test("topK and topP cut the tail and keep the proportions", () => {
  const logits = [0.1, 0.5, 0.25, 0.15].map(Math.log);
  const k = frequencies(logits, { temperature: 1, topK: 2 });
  assert.deepEqual([k[0], k[3]], [0, 0]);
  assert.ok(Math.abs(k[1] / k[2] - 2) < 0.15);
  const p = frequencies(logits, { temperature: 1, topP: 0.8 }); // 0.5 + 0.25 < 0.8: the third is needed
  assert.equal(p[0], 0);
  assert.ok(p[3] > 0);
  const one = frequencies(logits, { temperature: 1, topP: 0.01 });
  assert.deepEqual(one, [0, 1, 0, 0]);
});

Deno.test("topP over a flat vocabulary of 257,152 keeps the share asked for", () => {
  const logits = new Float32Array(257_152);
  const random = randomFrom(1);
  const ids = Array.from(
    { length: 20 },
    () => choose(logits, logits.length, never, { ...GREEDY, temperature: 1, topP: 0.25 }, random).id,
  );
  assert.ok(Math.max(...ids) <= 257_152 / 4, `${Math.max(...ids)}`);
  assert.ok(new Set(ids).size > 10);
});

Deno.test("the same seed gives the same numbers, another seed others", () => {
  const take = (seed: number) => Array.from({ length: 5 }, randomFrom(seed));
  assert.deepEqual(take(3), take(3));
  assert.notDeepEqual(take(3), take(4));
});

Deno.test("powers of e are right to 1e-14, and nothing is left of one 2⁶⁴ times less likely", () => {
  const random = randomFrom(5);
  for (let i = 0; i < 100_000; i++) {
    const x = random() * 44.3;
    assert.ok(Math.abs(decay(x) / Math.exp(-x) - 1) < 1e-14, `${x}: ${decay(x)}`);
  }
  assert.deepEqual([0, 1e-300, 44.37, Infinity, NaN].map(decay), [1, 1, 0, 0, NaN]);
});

Deno.test("candidates are in the order of their logits, lower ids first among equals, few or all", () => {
  const random = randomFrom(3);
  const logits = Float32Array.from(
    { length: 1000 },
    (_, id) => Math.round((random() - 0.5) * 60) * (id % 3 ? 1 : 0.1),
  );
  logits.set([0, -0, 1e-40, -1e-40, 3e38, -3e38, Infinity, -Infinity], 500);
  const expected = [...logits.keys()].sort((a, b) => logits[a] === logits[b] ? a - b : logits[b] - logits[a]);
  for (const count of [1, 100, 124, 125, 999, 1000, 2000]) {
    const { top } = choose(logits.slice(), 1000, never, GREEDY, () => 0, count);
    assert.deepEqual(top.map((it) => it.id), expected.slice(0, count), `${count}`);
  }
});

Deno.test("the best of what is allowed, in whatever order the spans are, and an error where nothing is", () => {
  const pick = (...spans: [number, number][]) =>
    choose(Float32Array.from([1, 7, 3, 7, 9, 2]), 6, [4], GREEDY, () => 0, 0, spans).id;
  assert.equal(pick([3, 6], [0, 2]), 1);
  assert.equal(pick([2, 4], [5, 6], [2, 3]), 3);
  assert.equal(pick([5, 100], [2, 3]), 2);
  for (const none of [[], [[4, 5]], [[2, 2]], [[6, 9]]] as [number, number][][]) {
    assert.throws(() => pick(...none), { name: "RangeError", message: /expected an allowed id among 6/ });
  }
});
