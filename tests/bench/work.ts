/** What a work of the benchmark is: something of true shape that is checked, then run and timed. */

import type { Backend } from "../../lib/backend/backend.ts";
import type { WasmBackend } from "../../lib/backend/wasm.ts";
import { createWasmBackend } from "../../lib/backend/wasm.ts";
import type { Ways } from "../../lib/backend/wasm_kernels.ts";
import type { Pause } from "../../lib/types.ts";
import { relaxed, simd } from "../../wasm/kernels.js";
import { type LimitName, STEPS } from "./limits.ts";

/** Formats that a figure is given for. */
export type Weights = "f32" | "int8" | "int4";

/** How this run was asked to compute. */
export interface Settings extends Partial<Ways> {
  readonly threads: number;
  readonly build?: "simd" | "relaxed";
}

/** A work, set up and found to be right. */
export interface Prepared {
  /** Called before each run, off the clock. */
  ready?(): Promise<void>;
  /** @param pause called between the parts of a long run; how long it takes is not the run's. */
  run(pause: Pause): Promise<void>;
  /** Parts of a run that the figure is given for: 32 tokens. */
  readonly parts?: number;
  /** Multiplications and additions of a part, in matrices. */
  readonly operations: number;
  /** Bytes of weights read by a part. */
  readonly bytes: number;
  /** What bounds it. */
  readonly bound: "dramRead" | { readonly kernel: number; readonly floats?: boolean };
  /** Further figures, after the runs. */
  readonly extra?: () => { readonly rssBytes?: number; readonly [more: string]: unknown };
  close(): Promise<void>;
}

/** Something to measure. */
export interface Work {
  readonly name: string;
  readonly weights: Weights;
  /** Runs at the least, where each takes long. */
  readonly rounds?: number;
  /** Sets up, and throws when what is to be timed computes wrongly. */
  prepare(settings: Settings): Promise<Prepared>;
}

/** Of the number of a kernel: that of twins; not imported, since revisions without it are measured too. */
export const TWIN = 16;

/** The limit that bounds a work, and how it is called; none where nobody knows one. */
export function limitOf({ bound }: Prepared): { name: LimitName; title: string } | undefined {
  if (bound === "dramRead") return { name: bound, title: "DRAM read" };
  const [kernel, twins] = [bound.kernel & ~TWIN, bound.kernel & TWIN];
  const [of, title] = twins ? ["_twins", " of twins"] as const : ["", ""] as const;
  if (bound.floats) return { name: `multiply_add${of}`, title: `FMA${title}` };
  if (kernel === 0) return { name: `dot_add${of}`, title: `dot-add${title}` };
  const steps = STEPS.find((it) => it === kernel);
  return steps && { name: `words_${steps}${of}`, title: `pmaddubsw S = ${steps}${title}` };
}

/** The backend under test, and what ends its threads. */
export async function openBackend(
  { threads, build, ...ways }: Settings,
): Promise<{ backend: WasmBackend; close(): Promise<void> }> {
  const builds = (it: { simd: WebAssembly.Module; relaxed: WebAssembly.Module }) =>
    build === "simd" ? { simd: it.simd } : it;
  if (threads === 1) {
    return { backend: createWasmBackend(builds({ simd, relaxed }), ways), close: async () => {} };
  }
  // By a path put together here, so that a revision without threads can be measured by this code too.
  const [{ createThreadedBackend }, shared] = await Promise.all([
    import(new URL("../../lib/backend/threads.ts", import.meta.url).href),
    import(new URL("../../wasm/kernels_shared.js", import.meta.url).href),
  ]);
  const backend = createThreadedBackend(builds(shared), { threads, ...ways });
  await backend.ready;
  return { backend, close: () => backend.close() };
}

/** Milliseconds spent in each operation of a backend. */
export type Clock = Map<string, number>;

/** The same backend, its time kept. Operations must have computed when they return, as they do in WASM. */
export function timed<B extends Backend>(backend: B, clock: Clock): B {
  return new Proxy(backend, {
    get(target, name) {
      const value = Reflect.get(target, name);
      if (typeof value !== "function") return value;
      return (...args: unknown[]) => {
        const before = performance.now();
        try {
          return value.apply(target, args);
        } finally {
          clock.set(String(name), (clock.get(String(name)) ?? 0) + performance.now() - before);
        }
      };
    },
  });
}
