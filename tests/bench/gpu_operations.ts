/** What a GPU takes for the parts of a token: a submission, a dispatch, a choice, the operations of a layer. */

import type { RowSampling, Scheme, Tensor } from "../../lib/backend/backend.ts";
import type { WebgpuBackend } from "../../lib/backend/webgpu.ts";
import { packedBytes } from "../../lib/backend/layout.ts";
import type { Pause } from "../../lib/types.ts";
import type { Loaded } from "./decoding.ts";
import { numbers, randomMatrix } from "./random.ts";
import { median } from "./statistics.ts";

/** Milliseconds of submissions that do next to nothing and are read back. */
export async function floorMs(backend: WebgpuBackend, rounds = 100): Promise<number[]> {
  const x = written(backend, 1, 4);
  const times: number[] = [];
  for (let i = 0; i <= rounds; i++) {
    const since = performance.now();
    backend.add(x, x);
    await backend.read(x);
    times.push(performance.now() - since);
  }
  backend.free(x);
  return times.slice(1);
}

/** Microseconds of a dispatch that does next to nothing but waits for the one before, as those of a layer do. */
export async function dispatchCost(backend: WebgpuBackend): Promise<{ usEach: number; usIssued: number }> {
  const [x, y] = [written(backend, 1, 64), written(backend, 1, 64)];
  const [each, issued]: number[][] = [[], []];
  const count = 400;
  for (let round = 0; round < 9; round++) {
    await backend.read(x);
    const since = performance.now();
    for (let i = 0; i < count; i += 2) {
      backend.add(x, y);
      backend.add(y, x);
    }
    issued.push(performance.now() - since);
    await backend.read(x);
    each.push(performance.now() - since);
  }
  backend.free(x, y);
  return { usEach: median(each) * 1000 / count, usIssued: median(issued) * 1000 / count };
}

/** Milliseconds of a choice from logits that are there, read back. */
export async function sampleTimes(backend: WebgpuBackend, vocab: number, pause: Pause) {
  const ways: [string, RowSampling][] = [
    ["likeliest", { temperature: 0, topK: 0, topP: 1, random: 0 }],
    ["drawn", { temperature: 1, topK: 0, topP: 1, random: 0.4 }],
    ["topK 40, topP 0.9", { temperature: 0.8, topK: 40, topP: 0.9, random: 0.4 }],
  ];
  const found: { name: string; rows: number; ms: number }[] = [];
  for (const rows of [1, 16]) {
    const [logits, chosen] = [written(backend, rows, vocab), backend.tensor(rows, 2)];
    for (const [name, way] of ways) {
      await pause();
      const times: number[] = [];
      for (let i = 0; i < 4; i++) {
        const since = performance.now();
        backend.sample!(chosen, logits, Array(rows).fill(way), vocab, []);
        await backend.read(chosen);
        times.push(performance.now() - since);
      }
      found.push({ name, rows, ms: median(times.slice(1)) });
    }
    backend.free(logits, chosen);
  }
  return found;
}

/** One operation of a layer. */
export interface Operation {
  readonly name: string;
  readonly us: number;
  /** Of weights. */
  readonly bytes?: number;
}

/** So many bytes of weights are read in turns, more than caches hold. */
const ROUND_BYTES = 160e6;
const MOST_COPIES = 64;

/** Every operation of a layer of the decoder by itself, on as many rows as in a token of 1 or 16 answers and in a prefill. */
export async function measureOperations(
  backend: WebgpuBackend,
  { model: { decoder }, rows: prefix }: Loaded,
  pause: Pause,
  tell: (it: Operation) => void,
): Promise<Operation[]> {
  const { width, heads, kvHeads, headDim, mlp, attentionScale: scale, ropeTheta, eps } = decoder;
  const found: Operation[] = [];
  /** Times `issue` i = 0, 1, 2 …, many in a submission. */
  const time = async (name: string, issue: (i: number) => void, bytes?: number) => {
    await pause();
    const run = async (count: number) => {
      const since = performance.now();
      for (let i = 0; i < count; i++) issue(i);
      await backend.read(x1);
      return performance.now() - since;
    };
    await run(2); // compiles
    const [floor, more] = [await run(1), await run(9)];
    const count = Math.max(1, Math.min(200, Math.floor(60 / Math.max((more - floor) / 8, 0.001))));
    const times = [];
    for (let i = 0; i < 3; i++) times.push((await run(count + 1) - await run(1)) / count);
    const it = { name, us: median(times) * 1000, bytes };
    found.push(it);
    tell(it);
  };
  const x1 = written(backend, 1, 1);
  const shapes: [string, number, number][] = [
    ["q", heads * headDim, width],
    ["k or v", kvHeads * headDim, width],
    ["o", width, heads * headDim],
    ["gate or up", mlp, width],
    ["down", width, mlp],
  ];
  const scheme: Scheme = "int4-g32-p8";
  for (const [what, n, k] of shapes) {
    const bytes = packedBytes(scheme, n, k);
    const stored = randomMatrix(scheme, n, k);
    const copies = Math.min(MOST_COPIES, Math.ceil(ROUND_BYTES / bytes));
    const all = Array.from({ length: copies }, () => backend.matrix(stored));
    for (const rows of [1, 4, 16, prefix]) {
      const [x, out] = [written(backend, rows, k), written(backend, rows, n)];
      await time(
        `${what} [${n}, ${k}], ${rows} rows`,
        (i) => backend.linear(out, x, all[i % copies]),
        rows > 16 ? undefined : bytes,
      );
      backend.free(x, out);
    }
    if (what === "gate or up") {
      const [x, out] = [written(backend, 1, k), written(backend, 1, n)];
      await time(
        `gate and up, GeGLU, 1 row`,
        (i) => backend.gated(out, x, all[i * 2 % copies], all[(i * 2 + 1) % copies]),
        2 * bytes,
      );
      backend.free(x, out);
    }
    backend.free(...all);
  }
  for (const rows of [1, 16, prefix]) {
    const [x, y, weight] = [
      written(backend, rows, width),
      written(backend, rows, width),
      written(backend, 1, width),
    ];
    const [q, mixed] = [written(backend, rows, heads * headDim), written(backend, rows, heads * headDim)];
    const caches = Array.from(
      { length: Math.min(rows, 16) },
      () => written(backend, prefix, kvHeads * headDim),
    );
    await time(`rmsNorm, ${rows} rows`, () => backend.rmsNorm(y, x, weight, eps));
    await time(`add, ${rows} rows`, () => backend.add(y, x));
    await time(`rope of q, ${rows} rows`, () => backend.rope(q, headDim, 5, ropeTheta));
    const how = { heads, kvHeads, headDim, scale };
    if (rows > 16) {
      const [cache] = caches;
      await time(
        `attention, ${rows} rows`,
        () => backend.attention(mixed, q, cache, cache, { ...how, start: 0, prefix: rows }),
      );
    } else {
      await time(
        `attentionEach over ${prefix} keys, ${rows} rows`,
        () => backend.attentionEach(mixed, q, caches, caches, how),
      );
    }
    backend.free(x, y, weight, q, mixed, ...caches);
  }
  backend.free(x1);
  return found;
}

/** A tensor with numbers in it. */
function written(backend: WebgpuBackend, rows: number, cols: number): Tensor {
  const t = backend.tensor(rows, cols);
  backend.write(t, numbers(rows * cols));
  return t;
}
