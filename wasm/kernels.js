// @ts-self-types="./kernels.d.ts"
// TypeScript cannot parse source-phase imports yet, hence JavaScript.
import source simd from "./kernels_simd.wasm";
import source relaxed from "./kernels_relaxed.wasm";

export { relaxed, simd };
