import assert from "node:assert/strict";
import { cpuUsage } from "node:process";
import { dirname, join } from "@std/path";
import { loadModel, TINY } from "../../functions/model.ts";
import type { Scheme } from "../../lib/backend/backend.ts";
import { createThreadedBackend, type ThreadedBackend } from "../../lib/backend/threads.ts";
import { createWasmBackend, type WasmOptions } from "../../lib/backend/wasm.ts";
import { createSharedMemory } from "../../lib/backend/wasm_arena.ts";
import { selfTest } from "../../lib/backend/wasm_kernels.ts";
import { collect } from "../../lib/mod.ts";
import { pack } from "../../lib/weights/load.ts";
import { examples } from "../../models/demo.ts";
import { relaxed, simd } from "../../wasm/kernels.js";
import * as shared from "../../wasm/kernels_shared.js";
import { random, tensor, testBackend } from "./suite.ts";
import { alike } from "./alike.ts";

const odd = (how: string) => new URL(`./odd_thread.ts?${how}`, import.meta.url);

/** Backends that many tests use; the last test of this file closes them. */
const open = new Map<string, ThreadedBackend>();

function many(threads: number, options: WasmOptions & { simd?: boolean }): ThreadedBackend {
  const key = JSON.stringify([threads, options]);
  if (!open.has(key)) {
    const builds = options.simd ? { simd: shared.simd } : shared;
    open.set(key, createThreadedBackend(builds, { threads, shareAboveNs: 0, ...options }));
  }
  return open.get(key)!;
}

// The whole suite, every operation shared out however small, each result also against one thread.
testBackend("wasm, 1 thread, shared memory", () => alike(createWasmBackend({ simd, relaxed }), many(1, {})));
testBackend("wasm, 2 threads", () => alike(createWasmBackend({ simd, relaxed }), many(2, {})));
testBackend(
  "wasm, 3 threads, 16-bit sums",
  () => alike(createWasmBackend(relaxed, { multiplier: "words" }), many(3, { multiplier: "words" })),
);
for (const multiplier of ["dot", "words"] as const) {
  const ways = { multiplier, twins: true };
  testBackend(
    `wasm, 3 threads, twins, ${multiplier}`,
    () => alike(createWasmBackend(relaxed, ways), many(3, ways)),
  );
}
testBackend("wasm, 3 threads, plain SIMD", () => alike(createWasmBackend(simd), many(3, { simd: true })));

Deno.test("threads: both shared builds pass the self-test", () => {
  assert.equal(selfTest(shared.simd, createSharedMemory()), undefined);
  assert.equal(selfTest(shared.relaxed, createSharedMemory()), undefined);
});

for (const threads of [2, 3, 5]) {
  Deno.test(`threads: ${threads} give the bits of one at the model's shapes, again and again`, async () => {
    const b = createThreadedBackend(shared, { threads });
    try {
      await b.ready;
      const both = alike(createWasmBackend({ simd, relaxed }), b);
      for (const scheme of ["f32", "int8-p8-s4", "int4-g32-p8"] as Scheme[]) {
        for (const [t, k, n] of [[1, 2048, 2056], [64, 1152, 1001], [330, 320, 999]]) {
          const w = both.matrix(pack(scheme, random(n * k, 1), n, k));
          const few = both.matrix(pack(scheme, random(72 * k, 8), 72, k));
          const [some, other] = [both.tensor(t, 72), both.tensor(t, 72)];
          const [x, out, residual] = [
            tensor(both, t, k, random(t * k, 2)),
            both.tensor(t, n),
            tensor(both, t, n, random(t * n, 3)),
          ];
          for (let i = 0; i < 5; i++) {
            both.linear(out, x, w, { activation: "gelu", residual });
            await both.read(out);
            both.gated(out, x, w, w);
            await both.read(out);
            both.linearEach([[out, x, w, { residual }], [some, x, few], [other, x, few], [out, x, w]]);
            for (const it of [out, some, other]) await both.read(it);
          }
          both.free(w, few, x, out, some, other, residual);
        }
      }
      const attend = async (rows: number, keys: number, heads: number, kvHeads: number, headDim: number) => {
        const q = tensor(both, rows, heads * headDim, random(rows * heads * headDim, 4, 3));
        const k = tensor(both, keys, kvHeads * headDim, random(keys * kvHeads * headDim, 5));
        const out = both.tensor(rows, heads * headDim);
        const start = keys - rows;
        for (const more of [{ prefix: keys }, { prefix: 20 }, { prefix: 9, window: 37 }]) {
          both.attention(out, q, k, k, { heads, kvHeads, headDim, scale: 0.1, start, softcap: 30, ...more });
          await both.read(out);
        }
        both.free(q, k, out);
      };
      await attend(129, 129, 4, 4, 72);
      await attend(66, 200, 8, 1, 64);
      await attend(35, 35, 6, 2, 64);
      await attend(1, 300, 8, 1, 256);
      await attend(1, 300, 6, 1, 64);
      const rows = tensor(both, 301, 1152, random(301 * 1152, 6));
      const weight = tensor(both, 1, 1152, random(1152, 7));
      both.layerNorm(rows, rows, weight, weight, 1e-6);
      both.rmsNorm(rows, rows, weight, 1e-6);
      both.add(rows, rows);
      both.rope(rows, 72, 5, 10_000);
      await both.read(rows);
    } finally {
      await b.close();
    }
  });
}

Deno.test("threads: all of them take part", async () => {
  const b = createThreadedBackend(shared, { threads: 3, shareAboveNs: 0, script: odd("traps") });
  await b.ready;
  const w = b.matrix(pack("f32", random(64 * 64, 1), 64, 64));
  const [x, out] = [b.tensor(8, 64), b.tensor(8, 64)];
  b.write(x, random(8 * 64, 2));
  // The other threads fail at every part they draw, so that one fails tells that one drew.
  assert.throws(() => {
    for (let i = 0; i < 100_000; i++) b.linear(out, x, w);
  }, { name: "Error", message: /threads have ended: RuntimeError: memory access out of bounds/ });
  assert.throws(() => b.add(x, x), /threads have ended/, "and the backend stays lost");
  await b.close();
});

Deno.test("threads: one that does not come back is an error in time, not a wait for ever", async () => {
  const b = createThreadedBackend(shared, {
    threads: 2,
    shareAboveNs: 0,
    stallMs: 200,
    script: odd("sleeps"),
  });
  await b.ready;
  const w = b.matrix(pack("f32", random(64 * 64, 1), 64, 64));
  const [x, out] = [b.tensor(8, 64), b.tensor(8, 64)];
  const since = performance.now();
  assert.throws(() => {
    for (let i = 0; i < 100_000; i++) b.linear(out, x, w);
  }, /did not finish within 200 ms: \d+ of 4 parts done/);
  assert.ok(performance.now() - since < 2500);
  await b.close();
});

Deno.test("threads: one that cannot start, and one that ends by itself, are errors", async () => {
  for (const [how, message] of [["broken", /no start today/], ["leaves", /ended by itself/]] as const) {
    const b = createThreadedBackend(shared, { threads: 2, script: odd(how) });
    if (how === "broken") await assert.rejects(b.ready, message);
    else await b.ready;
    for (let i = 0; i < 200 && how === "leaves"; i++) await new Promise((done) => setTimeout(done, 5));
    const x = b.tensor(2, 2);
    assert.throws(() => b.add(x, x), message);
    await b.close();
  }
});

Deno.test("threads: the memory grows under them, and they see what lies in the new part", async () => {
  const b = createThreadedBackend(shared, { threads: 3, shareAboveNs: 0 });
  try {
    await b.ready;
    const both = alike(createWasmBackend({ simd, relaxed }), b);
    const w = both.matrix(pack("int8-p8-s4", random(160 * 64, 1), 160, 64));
    for (let i = 0; i < 40; i++) {
      const before = b.memoryBytes;
      both.tensor(700, 700);
      assert.ok(b.memoryBytes > before);
      const x = tensor(both, 16, 64, random(16 * 64, i));
      const out = both.tensor(16, 160);
      both.linear(out, x, w);
      both.add(out, out);
      await both.read(out);
      if (i % 10 === 9) await new Promise((done) => setTimeout(done, 10)); // long enough to fall asleep
    }
  } finally {
    await b.close();
  }
});

Deno.test("threads: without work they sleep, and are back at once when there is some", async () => {
  const b = createThreadedBackend(shared, { threads: 3, shareAboveNs: 0 });
  try {
    await b.ready;
    const x = tensor(b, 64, 64, random(4096, 1));
    b.add(x, x);
    await new Promise((done) => setTimeout(done, 50));
    const before = cpuUsage();
    await new Promise((done) => setTimeout(done, 400));
    const { user, system } = cpuUsage(before);
    // Two that spin would use 800 ms where there are two processors, 400 ms where there is one.
    assert.ok(user + system < 200_000, `${(user + system) / 1000} ms of processor time in 400 ms`);
    b.add(x, x);
    assert.deepEqual(await b.read(x), random(4096, 1).map((it) => 4 * it));
  } finally {
    await b.close();
  }
});

Deno.test("threads: many backends, one after another, opened, used and closed", async () => {
  const expected = random(4096, 1).map((it) => it + it);
  for (let i = 0; i < 24; i++) {
    const b = createThreadedBackend(shared, { threads: 3, shareAboveNs: 0 });
    const x = tensor(b, 64, 64, random(4096, 1));
    b.add(x, x); // at once, whether the threads are there yet or not
    assert.deepEqual(await b.read(x), expected);
    if (i % 2) await b.ready;
    await b.close();
    assert.throws(() => b.add(x, x), /threads have ended: closed/);
  }
});

Deno.test("threads: numbers that make no sense are refused", () => {
  for (const threads of [0, -1, 1.5, NaN, 65]) {
    assert.throws(() => createThreadedBackend(shared, { threads }), { name: "RangeError" });
  }
});

Deno.test("threads: the bundled model answers the same, to the last digit of every logit", async () => {
  const { directory, list } = await examples();
  const { image, prompt } = list[0];
  const question = { images: [await Deno.readFile(join(directory, image))], prompt, topLogits: 5 };
  const answer = async (threads: number) => {
    const { timings: _, route: __, ...rest } = await collect(
      (await loadModel(TINY, { threads })).answer(question),
    );
    return rest;
  };
  const expected = await answer(1);
  assert.ok(expected.tokenIds.length > 0);
  for (const threads of [2, 3]) assert.deepEqual(await answer(threads), expected);
});

Deno.test("threads: a program that ends without closing them ends", async () => {
  const code = `
    import { createThreadedBackend } from "./lib/backend/threads.ts";
    import * as kernels from "./wasm/kernels_shared.js";
    const b = createThreadedBackend(kernels, { threads: 3 });
    if (Deno.args[0] === "ready") await b.ready;
    console.log("end");`;
  for (const when of ["ready", "at once"]) {
    const child = new Deno.Command(Deno.execPath(), {
      args: ["eval", code, when],
      cwd: dirname(import.meta.dirname!).replace(/tests$/, ""),
      stderr: "inherit",
      signal: AbortSignal.timeout(15_000),
    });
    const { code: status, stdout } = await child.output();
    assert.deepEqual([status, new TextDecoder().decode(stdout).trim()], [0, "end"], when);
  }
});

Deno.test("threads: those of this file end", async () => {
  await Promise.all([...open.values()].map((it) => it.close()));
});
