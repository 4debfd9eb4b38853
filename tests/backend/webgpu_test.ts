/**
 * The suite on drivers that compute WebGPU in software: lavapipe with all that kernels may use, as many lanes as on a GPU
 * among it, SwiftShader without, each through Dawn; and what only this backend promises.
 */

import assert from "node:assert/strict";
import type { Backend, StoredMatrix } from "../../lib/backend/backend.ts";
import { GROUP_BYTES, packedBytes } from "../../lib/backend/layout.ts";
import { choose } from "../../lib/decode/sampler.ts";
import { pack } from "../../lib/weights/load.ts";
import { hardware, nameOf, openSoftware, type Software } from "./gpus.ts";
import { random, tensor, testBackend } from "./suite.ts";

/** Vulkan leaves divisions 2.5 units in the last place, and exponentials more. */
const HARDWARE_TOLERANCE = 1e-5;

const plain = { features: { subgroups: false, dot4: false } };

const machines: readonly [string, Software][] = [
  [`webgpu on ${nameOf("lavapipe")}`, { driver: "lavapipe", options: { manyLanes: true } }],
  [`webgpu on ${nameOf("swiftshader")}, without subgroups and DP4A`, {
    driver: "swiftshader",
    options: plain,
  }],
];
for (const [name, machine] of machines) {
  const backend = await openSoftware(machine);
  if (backend) {
    testBackend(name, () => backend, hardware ? HARDWARE_TOLERANCE : undefined);
    Deno.test(`${name}: a row of a product with integer weights is what it is alone, up to 16 rows`, () =>
      sameAlone(backend));
    Deno.test(`${name}: rows of int4 weights may be 65,536 long, up to which their sums are exact`, () =>
      longest(backend));
  } else Deno.test({ name: `${name}: the suite (skipped: no such driver)`, ignore: true, fn() {} });
}

/** Also where sums do not fit 32 bits: weights and activations at their ends, in a row so long. */
async function sameAlone(b: Backend): Promise<void> {
  const most = 16;
  for (const [scheme, k] of [["int8-p8-s4", 640], ["int4-g32-p8", 640], ["int4-g32-p8", 2400]] as const) {
    const n = 40;
    const values = random(n * k, 1);
    if (k > 2048) values.fill(1, 0, k).fill(-1, k, 2 * k);
    const w = b.matrix(pack(scheme, values, n, k));
    const rows = random(most * k, 2);
    if (k > 2048) rows.fill(1, 0, k);
    const [x, out] = [tensor(b, most, k, rows), b.tensor(most, n)];
    const products = (row: number, count: number) => {
      b.linear(b.slice(out, row, count), b.slice(x, row, count), w);
      return b.read(b.slice(out, row, count));
    };
    const alone: Float32Array[] = [];
    for (let row = 0; row < 5; row++) alone.push(await products(row, 1));
    for (const count of [2, 5, 16]) {
      const found = await products(0, count);
      alone.slice(0, count).forEach((it, row) => {
        assert.deepEqual(found.subarray(row * n, (row + 1) * n), it, `${scheme}, ${count} rows`);
      });
    }
    if (k > 2048) assert.ok(Math.abs(alone[0][0] - k) < 0.01 * k && Math.abs(alone[0][1] + k) < 0.01 * k);
    b.free(w, x, out);
  }
}

/** Every product the largest there is: 65,536 · 127 · 8 · 1023, which has 17 bits and then zeros. */
async function longest(b: Backend): Promise<void> {
  const [n, k] = [8, 65_536];
  const data = new Uint8Array(packedBytes("int4-g32-p8", n, k));
  for (let at = 0; at < data.length; at += GROUP_BYTES) {
    for (let c = 0; c < 16; c += 2) [data[at + c], data[at + c + 1]] = [1023 & 255, 1023 >> 8];
  }
  const w: StoredMatrix = { scheme: "int4-g32-p8", n, k, data, scale: new Float32Array(n).fill(1) };
  const taken = b.matrix(w);
  for (const rows of [1, 17]) {
    const [x, out] = [tensor(b, rows, k, new Float32Array(rows * k).fill(127)), b.tensor(rows, n)];
    b.linear(out, x, taken);
    assert.deepEqual(await b.read(out), new Float32Array(rows * n).fill(-k * 127 * 8 * 1023), `${rows} rows`);
    b.free(x, out);
  }
  b.free(taken);
  const longer = { ...w, k: k + 32, data: new Uint8Array(packedBytes("int4-g32-p8", n, k + 32)) };
  assert.throws(() => b.matrix(longer), {
    name: "RangeError",
    message: /at most 65536 in int4, found 65568/,
  });
}

const backend = await openSoftware({
  driver: "lavapipe",
  options: { maxBindingBytes: 1 << 20, maxDispatches: Infinity },
});
const test = (name: string, fn: (b: NonNullable<typeof backend>) => Promise<void>) =>
  Deno.test({
    name: `webgpu: ${name}` + (backend ? "" : " (skipped: no driver)"),
    ignore: !backend,
    fn: () => fn(backend!),
  });

test("a program that stands in for a GPU says so", async (b) => {
  assert.equal(b.software, !hardware);
  assert.match(b.name, hardware ? /^webgpu$/ : /^webgpu in software \(llvmpipe/);
  if (!hardware) assert.deepEqual(b.features, { subgroups: true, dot4: true });
  await b.read(b.tensor(1, 1));
});

test("matrices larger than a binding are cut, and activations larger than one refused", async (b) => {
  const [n, k, t] = [4100, 96, 3];
  for (const scheme of ["f32", "int8-p8-s4", "int4-g32-p8"] as const) {
    const stored = pack(scheme, random(n * k, 1), n, k);
    const [whole, cut] = [await openSoftware({ driver: "lavapipe" }), b].map((it) => {
      const w = it!.matrix(stored);
      const x = tensor(it!, t, k, random(t * k, 2));
      const [out, rows] = [it!.tensor(t, n), it!.tensor(2, k)];
      it!.linear(out, x, w, { bias: tensor(it!, 1, n, random(n, 3)) });
      it!.embed(rows, [5, n - 1], w, 2);
      return Promise.all([it!.read(out), it!.read(rows)]);
    });
    assert.deepEqual(await cut, await whole);
  }
  assert.throws(() => b.tensor(512, 513), { name: "RangeError", message: /1050624 bytes needed/ });
});

test("what is issued between two reads is one submission, and reads of one go are one too", async (b) => {
  const w = b.matrix(pack("int8-p8-s4", random(64 * 64, 1), 64, 64));
  const [x, y] = [tensor(b, 1, 64, random(64, 2)), b.tensor(1, 64)];
  await b.read(x);
  const before = b.queue.submissions;
  for (let i = 0; i < 100; i++) {
    b.embed(x, [i % 64], w, 1);
    b.linear(y, x, w, { residual: y });
    b.rmsNorm(y, y, x, 1e-6);
  }
  await Promise.all([b.read(x), b.read(y), b.read(y)]);
  assert.equal(b.queue.submissions, before + 1);
  b.free(w, x, y);
});

test("a submission has at most maxDispatches, and comes to the same", async (b) => {
  const x = tensor(b, 1, 64, random(64, 2));
  b.queue.maxDispatches = 4;
  const before = b.queue.submissions;
  for (let i = 0; i < 10; i++) b.add(x, x);
  assert.deepEqual(await b.read(x), random(64, 2).map((it) => it * 1024));
  assert.equal(b.queue.submissions, before + 3);
  b.queue.maxDispatches = Infinity;
  b.free(x);
});

test("a trace tells what each kernel took, with what was computed as it is", async (b) => {
  const x = tensor(b, 1, 64, random(64, 2));
  const [work, weight] = [b.tensor(1, 64), b.tensor(1, 64)];
  let found: Float32Array | undefined;
  const times = await b.queue.trace(async () => {
    for (let i = 0; i < 3; i++) b.add(x, x);
    b.rmsNorm(work, x, weight, 1e-6);
    found = await b.read(x);
  });
  assert.deepEqual(found, random(64, 2).map((it) => it * 8));
  assert.deepEqual(times!.map((it) => [it.kernel.split(" ")[0], it.count]).sort(), [["add", 3], ["norm", 1]]);
  for (const { usEach } of times!) assert.ok(usEach > 0 && usEach < 1e6, `${usEach}`);
  b.free(x, work, weight);
});

test("activations outlive the growth of the memory they lie in, whatever was issued before", async (b) => {
  const kept = tensor(b, 3, 4, random(12, 1));
  b.add(kept, kept);
  const more = Array.from({ length: 6 }, () => b.tensor(100, 256));
  b.add(kept, kept);
  assert.deepEqual(await b.read(kept), random(12, 1).map((it) => it * 4));
  b.free(...more);
});

test("sample finds what the sampler finds, without the logits being read", async (b) => {
  const [rows, vocab, limit] = [3, 20_000, 19_700];
  const values = random(rows * vocab, 40, 6);
  values.fill(3, vocab, vocab + 50); // ties
  [values[17], values[3 * vocab - 1], values[2 * vocab + 4]] = [50, 60, 55];
  const logits = b.slice(tensor(b, rows, vocab + 1, random(rows * (vocab + 1), 41)), 0, rows, 1);
  b.write(logits, values);
  const never = [17, 4];
  const chosen = b.tensor(rows, 2);
  const seeds = Array.from({ length: 3 }, (_, i) => 0.05 + i * 0.4);
  const ways = [
    { temperature: 0, topK: 0, topP: 1 },
    { temperature: 1, topK: 0, topP: 1 },
    { temperature: 0.7, topK: 40, topP: 1 },
    { temperature: 1.5, topK: 0, topP: 0.9 },
    { temperature: 2, topK: 500, topP: 0.5 },
    { temperature: 1, topK: 1, topP: 1 },
    { temperature: 1, topK: 100_000, topP: 0.01 },
  ];
  for (const way of ways) {
    for (const seed of seeds) {
      b.sample!(chosen, logits, Array.from({ length: rows }, () => ({ ...way, random: seed })), limit, never);
      const found = await b.read(chosen);
      for (let t = 0; t < rows; t++) {
        const row = values.slice(t * vocab, (t + 1) * vocab);
        const { id, logprob } = choose(row, limit, never, { ...way, seed: 0 }, () => seed);
        assert.equal(found[2 * t], id, `${JSON.stringify(way)}, row ${t}, random ${seed}`);
        assert.ok(Math.abs(found[2 * t + 1] - logprob) < 1e-4, `${found[2 * t + 1]} for ${logprob}`);
      }
    }
  }
  assert.throws(() => b.sample!(chosen, logits, [], limit, never), {
    name: "RangeError",
    message: /expected 3, found 0/,
  });
});

test("what sample leaves is embedded before anybody reads it, and no id reads beyond the table", async (b) => {
  const [vocab, k] = [1000, 24];
  const table = b.matrix(pack("int4-g32-p8", random(vocab * k, 5), vocab, k));
  const values = random(2 * vocab, 42, 6);
  [values[700], values[vocab + 3]] = [9, 9];
  const [logits, chosen, own, out] = [b.tensor(2, vocab), b.tensor(2, 2), b.tensor(1, 1), b.tensor(4, k)];
  b.write(logits, values);
  const greedy = { temperature: 0, topK: 0, topP: 1, random: 0 };
  b.sample!(chosen, logits, [greedy, greedy], vocab, []);
  const [first, second] = [0, 1].map((row) => b.slice(chosen, row, 1, 0, 1));
  for (const odd of [vocab, 1e9, 3e38, Infinity, -1, NaN]) {
    b.write(own, Float32Array.of(odd));
    b.embed(out, [first, own, second, 12], table, 1);
    const found = await b.read(out);
    b.embed(out, [700, 0, 3, 12], table, 1);
    const expected = await b.read(out);
    for (const row of [0, 2, 3]) {
      const part = (from: Float32Array) => from.subarray(row * k, (row + 1) * k);
      assert.deepEqual(part(found), part(expected));
    }
  }
  b.free(table, logits, chosen, own, out);
});

test("reads fail with the reason once the device is gone", async () => {
  const own = (await openSoftware({ driver: "lavapipe" }))!;
  const x = tensor(own, 1, 4, random(4, 1));
  await own.read(x);
  own.close();
  await own.lost;
  await assert.rejects(async () => await own.read(x), { name: "Error", message: /GPU/ });
});
