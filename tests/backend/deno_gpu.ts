/**
 * Prints the greedy tokens of a checkpoint directory on Deno's own WebGPU, `deno_gpu.ts DIR f32|int4`. A process of its
 * own, because a driver that Dawn and Deno load into one process may be freed twice when it ends.
 */

import { directoryBytes } from "../memory_files.ts";
import { greedy } from "./browser_page.ts";
import { openSoftware } from "./gpus.ts";

const [directory, ...formats] = Deno.args;
const backend = (await openSoftware({ driver: "lavapipe", provider: "deno" }))!;
const found = [];
for (const it of formats) found.push(await greedy(backend, directoryBytes(directory), it as "f32" | "int4"));
Deno.stdout.writeSync(new TextEncoder().encode(JSON.stringify({ software: backend.software, found })));
