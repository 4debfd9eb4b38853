// deno-lint-ignore-file no-console -- a program of twins_test.ts; what it prints is read there
/** Prints whether an engine that has only just begun is found to make one vector of two. */

import { instantiate, waysOf } from "../../lib/backend/wasm_kernels.ts";
import { relaxed, simd } from "../../wasm/kernels.js";

const memory = new WebAssembly.Memory({ initial: 4, maximum: 65_535 });
console.log(waysOf(instantiate(Deno.args[0] === "plain" ? simd : relaxed, memory)).twins);
