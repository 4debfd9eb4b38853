/** A thread of `threads.ts`: makes its own instance of the kernels in the shared memory, then computes with the crew. */

import { parentPort, workerData } from "node:worker_threads";
import { Control, follow } from "./crew.ts";
import type { WorkerData } from "./threads.ts";
import { instantiate } from "./wasm_kernels.ts";

const { module, memory, control, thread, stack } = workerData as WorkerData;
const kernels = instantiate(module, memory, stack);
parentPort!.postMessage("ready");
follow(new Control(control), kernels, thread);
