/** Where a pass of the decoder goes: the host's part of it, and the GPU's by kernel. */

import type { WebgpuBackend } from "../../lib/backend/webgpu.ts";
import type { KernelTime } from "../../lib/backend/webgpu_trace.ts";
import type { Pause } from "../../lib/types.ts";
import { eachPass, type Loaded, prefillTimes, tokenTimes } from "./decoding.ts";
import { median } from "./statistics.ts";

/** Passes whose parts are told by their medians, and submissions in parts that are tried. */
const PASSES = 16;
const PARTS = [10, 20, 40, 80, Infinity];

/** Milliseconds of one pass. */
export interface PassParts {
  readonly ms: number;
  /** Of it: issuing dispatches, encoding and submitting them, and then waiting for what is read. */
  readonly issueMs: number;
  readonly submitMs: number;
  readonly waitMs: number;
  readonly submissions: number;
}

/** What the GPU did, where it has timestamps: all its kernels, with a pass to each dispatch. */
export interface Traced {
  readonly gpuMs?: number;
  readonly kernels?: readonly KernelTime[];
}

/** The parts of a pass for so many answers, submitted as the backend is set to. */
export async function passParts(
  backend: WebgpuBackend,
  loaded: Loaded,
  together: number,
  pause: Pause,
): Promise<PassParts> {
  const { queue } = backend;
  const all: PassParts[] = [];
  await eachPass(loaded, together, PASSES, pause, async (pass) => {
    const { submitMs, waitMs, submissions } = queue;
    const since = performance.now();
    await pass();
    const ms = performance.now() - since;
    const [submitted, waited] = [queue.submitMs - submitMs, queue.waitMs - waitMs];
    all.push({
      ...{ ms, issueMs: ms - submitted - waited, submitMs: submitted, waitMs: waited },
      submissions: queue.submissions - submissions,
    });
  });
  const of = (key: keyof PassParts) => median(all.map((it) => it[key]));
  return {
    ...{ ms: of("ms"), issueMs: of("issueMs"), submitMs: of("submitMs"), waitMs: of("waitMs") },
    submissions: of("submissions"),
  };
}

/** Milliseconds of a pass by dispatches of a submission. */
export async function partTimes(backend: WebgpuBackend, loaded: Loaded, together: number, pause: Pause) {
  const { queue } = backend;
  const before = queue.maxDispatches;
  const found: { maxDispatches: number | null; ms: number }[] = [];
  try {
    for (const most of PARTS) {
      queue.maxDispatches = most;
      const ms = median(await tokenTimes(loaded, together, PASSES, pause));
      found.push({ maxDispatches: most === Infinity ? null : most, ms });
    }
  } finally {
    queue.maxDispatches = before;
  }
  return found;
}

/** One pass for so many answers. */
export async function tracePass(
  backend: WebgpuBackend,
  loaded: Loaded,
  together: number,
  pause: Pause,
): Promise<Traced> {
  let times: KernelTime[] | undefined;
  await eachPass(loaded, together, 2, pause, async (pass) => {
    times = await backend.queue.trace(pass);
  });
  return summed(times);
}

/** Two prefills. */
export async function tracePrefill(backend: WebgpuBackend, loaded: Loaded, pause: Pause): Promise<Traced> {
  return summed(await backend.queue.trace(() => prefillTimes(loaded, pause, 1)));
}

function summed(kernels: readonly KernelTime[] | undefined): Traced {
  return { gpuMs: kernels && kernels.reduce((sum, it) => sum + it.count * it.usEach, 0) / 1000, kernels };
}
