/** The kernels of `kernels.js` for a memory that threads share, for `createThreadedBackend`. */
export const simd: WebAssembly.Module;
export const relaxed: WebAssembly.Module;
