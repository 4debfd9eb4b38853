/** The kernels for every engine with SIMD128. */
export const simd: WebAssembly.Module;
/** The same kernels in relaxed SIMD, the faster build; `chooseKernels` tells whether the engine runs it well. */
export const relaxed: WebAssembly.Module;
