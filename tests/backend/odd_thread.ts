/** Threads that go wrong, each in the way that the query of its address says. */

import { parentPort, workerData } from "node:worker_threads";
import { Control, follow } from "../../lib/backend/crew.ts";
import type { WorkerData } from "../../lib/backend/threads.ts";
import { instantiate, type Kernels } from "../../lib/backend/wasm_kernels.ts";

const { module, memory, control, thread, stack } = workerData as WorkerData;
const how = new URL(import.meta.url).search;
if (how === "?broken") throw new Error("no start today");
const kernels = instantiate(module, memory, stack);
parentPort!.postMessage("ready");
const product = (it: () => void): Kernels => ({ ...kernels, gemm_f32: it });
if (how === "?traps") {
  // The kernel itself, sent beyond the end of the memory.
  follow(new Control(control), product(() => kernels.add(2 ** 32 - 64, 4, 0, 4, 1, 4)), thread);
} else if (how === "?sleeps") {
  const word = new Int32Array(new SharedArrayBuffer(4));
  follow(new Control(control), product(() => Atomics.wait(word, 0, 0, 3000)), thread);
} else if (how !== "?leaves") throw new Error(`Unknown way to go wrong: ${how}`);
