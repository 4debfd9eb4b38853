/**
 * `deno task bench [--only WORK,…] [--json FILE]`: the kernels at SigLIP's and Gemma's true shapes, one thread.
 * Every kernel is first held against plain loops on a few rows, then timed; figures are medians.
 */

import { parseArgs } from "node:util";
import type { Backend, Scheme } from "../../lib/backend/backend.ts";
import { createReferenceBackend } from "../../lib/backend/reference.ts";
import { createWasmBackend } from "../../lib/backend/wasm.ts";
import { pack } from "../../lib/weights/load.ts";
import { relaxed, simd } from "../../wasm/kernels.js";

/** x [T, K] · Wᵀ with W [N, K], named by what it stands for in the model. */
interface Work {
  readonly work: string;
  readonly weights: "f32" | "int8" | "int4";
  readonly t: number;
  readonly n: number;
  readonly k: number;
}

/** One measured figure. */
interface Result {
  readonly work: string;
  readonly engine: "wasm";
  readonly weights: "f32" | "int8" | "int4";
  readonly threads: 1;
  readonly medianMs: number;
  readonly runs: number;
  /** 2·T·N·K operations a second, in 10⁹. */
  readonly gops: number;
  /** Bytes of weights read a second, in 10⁹. */
  readonly gigabytes: number;
}

const WORKS: readonly Work[] = [
  { work: "gemm-f32", weights: "f32", t: 256, n: 4304, k: 1152 },
  { work: "gemm-int8", weights: "int8", t: 256, n: 4304, k: 1152 },
  { work: "gemm-int4", weights: "int4", t: 264, n: 4096, k: 2048 },
  { work: "matvec-int8", weights: "int8", t: 1, n: 16384, k: 2048 },
  { work: "matvec-int4", weights: "int4", t: 1, n: 16384, k: 2048 },
];
const SCHEMES: Record<Work["weights"], Scheme> = { f32: "f32", int8: "int8-p8-s4", int4: "int4-g32-p8" };
const LEAST_MS = 1000;

const { values: flags } = parseArgs({ options: { only: { type: "string" }, json: { type: "string" } } });
const only = flags.only?.split(",");
const unknown = only?.filter((it) => !WORKS.some(({ work }) => work === it)) ?? [];
if (unknown.length) {
  throw new RangeError(`--only: expected ${WORKS.map((it) => it.work).join(", ")}, found ${unknown}`);
}

const machine = await describeMachine();
print(
  `${machine.processor}, ${machine.features.join(" ") || "no vector features reported"}, ${machine.runtime}`,
);
const results: Result[] = [];
for (const work of WORKS.filter((it) => only?.includes(it.work) ?? true)) {
  const result = await measure(work);
  results.push(result);
  const { medianMs, runs, gops, gigabytes } = result;
  print(
    `${work.work.padEnd(12)} ${work.weights}  ${work.t}×${work.k}×${work.n}  ${medianMs.toFixed(3)} ms  ` +
      `${gops.toFixed(1)} GOP/s  ${gigabytes.toFixed(1)} GB/s of weights  (${runs} runs)`,
  );
}
if (flags.json) await Deno.writeTextFile(flags.json, JSON.stringify({ machine, results }) + "\n");

async function measure({ work, weights, t, n, k }: Work): Promise<Result> {
  const random = numbers(1);
  const stored = pack(SCHEMES[weights], Float32Array.from({ length: n * k }, random), n, k);
  const input = Float32Array.from({ length: t * k }, random);
  const backend = createWasmBackend({ simd, relaxed });
  const [x, out, w] = [backend.tensor(t, k), backend.tensor(t, n), backend.matrix(stored)];
  backend.write(x, input);
  backend.linear(out, x, w);
  await compare(await backend.read(out), createReferenceBackend(), stored, input, { t, n, k });

  const times: number[] = [];
  const start = performance.now();
  while (performance.now() - start < LEAST_MS || times.length < 5) {
    const before = performance.now();
    backend.linear(out, x, w);
    await backend.read(backend.slice(out, 0, 1, 0, 1));
    times.push(performance.now() - before);
  }
  const medianMs = times.sort((a, b) => a - b)[times.length >> 1];
  return {
    work,
    engine: "wasm",
    weights,
    threads: 1,
    medianMs,
    runs: times.length,
    gops: 2 * t * n * k / medianMs / 1e6,
    gigabytes: stored.data.byteLength / medianMs / 1e6,
  };
}

/** The first row against plain loops; a wrong kernel is not worth timing. */
async function compare(
  found: Float32Array,
  reference: Backend,
  stored: ReturnType<typeof pack>,
  input: Float32Array,
  { n, k }: { t: number; n: number; k: number },
): Promise<void> {
  const [x, out] = [reference.tensor(1, k), reference.tensor(1, n)];
  reference.write(x, input.subarray(0, k));
  reference.linear(out, x, reference.matrix(stored));
  const wanted = await reference.read(out);
  const worst = wanted.reduce((max, it, i) => Math.max(max, Math.abs(it - found[i])), 0);
  if (!(worst < 1e-3)) {
    throw new RangeError(`Kernel broken at [${n}, ${k}], ${stored.scheme}: off by ${worst}`);
  }
}

/** Gaussian numbers of variance 1, the same every time. */
function numbers(seed: number): () => number {
  let state = seed;
  const uniform = () => (state = Math.imul(state, 1664525) + 1013904223 >>> 0) / 2 ** 32;
  return () => Math.sqrt(-2 * Math.log(uniform() + 1e-12)) * Math.cos(2 * Math.PI * uniform());
}

async function describeMachine() {
  const text = await Deno.readTextFile("/proc/cpuinfo").catch(() => "");
  const field = (name: string) => text.match(new RegExp(`^${name}\\s*: (.*)$`, "m"))?.[1] ?? "";
  return {
    processor: `${field("model name") || "unknown processor"} (family ${field("cpu family")}, model ${
      field("model")
    })`,
    features: field("flags").split(" ").filter((it) => /^(avx2|avx_vnni|avx512_vnni|fma|amx_int8)$/.test(it)),
    runtime: `Deno ${Deno.version.deno}, V8 ${Deno.version.v8}`,
  };
}

function print(line: string): void {
  Deno.stdout.writeSync(new TextEncoder().encode(line + "\n"));
}
