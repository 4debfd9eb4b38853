// @ts-self-types="./kernels_shared.d.ts"
import source simd from "./kernels_simd_shared.wasm";
import source relaxed from "./kernels_relaxed_shared.wasm";

export { relaxed, simd };
