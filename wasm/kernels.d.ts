/** The compiled kernels, for `chooseKernels`: plain SIMD128 runs everywhere, relaxed SIMD is the faster one. */
export const kernels: { readonly simd: WebAssembly.Module; readonly relaxed: WebAssembly.Module };
