/**
 * The kernels of `wasm/src/*.c` as functions, the choice between the two builds, and the self-test before either is
 * trusted. Pointers are byte addresses below 2³², strides count elements.
 */

/** What both builds export; each function is described where it is written. */
export interface Kernels {
  readonly __heap_base: WebAssembly.Global;
  pack_f32(out: number, x: number, stride: number, rows: number, k: number): void;
  gemm_f32(
    a: number,
    w: number,
    rows: number,
    k: number,
    n: number,
    out: number,
    outStride: number,
    bias: number,
    residual: number,
    residualStride: number,
    mode: number,
  ): void;
  gemv_f32(
    x: number,
    w: number,
    k: number,
    n: number,
    out: number,
    bias: number,
    residual: number,
    mode: number,
  ): void;
  embed_f32(
    out: number,
    outStride: number,
    ids: number,
    count: number,
    w: number,
    k: number,
    scale: number,
  ): void;
  layer_norm(
    out: number,
    outStride: number,
    x: number,
    stride: number,
    rows: number,
    k: number,
    weight: number,
    bias: number,
    eps: number,
  ): void;
  rms_norm(
    out: number,
    outStride: number,
    x: number,
    stride: number,
    rows: number,
    k: number,
    weight: number,
    eps: number,
  ): void;
  add(out: number, outStride: number, x: number, stride: number, rows: number, k: number): void;
  rope(
    x: number,
    stride: number,
    rows: number,
    heads: number,
    half: number,
    cosines: number,
    sines: number,
  ): void;
  patches(out: number, outStride: number, k: number, pixels: number, size: number, patch: number): void;
  attention(
    out: number,
    outStride: number,
    q: number,
    qStride: number,
    k: number,
    kStride: number,
    v: number,
    vStride: number,
    rows: number,
    keys: number,
    group: number,
    headDim: number,
    scale: number,
    softcap: number,
    start: number,
    prefix: number,
    window: number,
    scratch: number,
  ): void;
}

/** The two builds; without the relaxed one, plain SIMD runs. */
export interface Builds {
  readonly simd: WebAssembly.Module;
  readonly relaxed?: WebAssembly.Module;
}

/** How a product is finished; the same numbers as in `wasm/src/simd.h`. */
export const FINISH = { plain: 0, gelu: 1, multiply: 2 } as const;

/** `i16x8.relaxed_dot_i8x16_i7x16_s` on two constants: the smallest module that needs relaxed SIMD. */
// deno-fmt-ignore
const RELAXED_PROBE = new Uint8Array([
  0, 0x61, 0x73, 0x6d, 1, 0, 0, 0, // magic, version
  1, 5, 1, 0x60, 0, 1, 0x7b, // type () -> v128
  3, 2, 1, 0,
  10, 43, 1, 41, 0,
  0xfd, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
  0xfd, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
  0xfd, 0x92, 2, 0x0b,
]);

/** Kernels of a module in a memory that it imports. */
export function instantiate(module: WebAssembly.Module, memory: WebAssembly.Memory): Kernels {
  return new WebAssembly.Instance(module, { env: { memory } }).exports as unknown as Kernels;
}

/**
 * The fastest build that this engine runs and that computes correctly here: relaxed SIMD where it validates and
 * passes the self-test, otherwise plain SIMD.
 *
 * @throws {TypeError} when the plain build fails the self-test too; the message names the kernel.
 */
export function chooseKernels(builds: Builds): WebAssembly.Module {
  if (builds.relaxed && WebAssembly.validate(RELAXED_PROBE) && !selfTest(builds.relaxed)) {
    return builds.relaxed;
  }
  const wrong = selfTest(builds.simd);
  if (wrong) throw new TypeError(`Broken engine: ${wrong}`);
  return builds.simd;
}

/**
 * Runs small products and compares them with plain loops, on values that every engine must get right. Some engines
 * have had wrong relaxed operations. Returns what was wrong, or undefined.
 */
export function selfTest(module: WebAssembly.Module): string | undefined {
  const memory = new WebAssembly.Memory({ initial: 4, maximum: 4 });
  const kernels = instantiate(module, memory);
  const from = Math.ceil(kernels.__heap_base.value / 64) * 64;
  return productTest(kernels, memory, from);
}

/** 5 rows, 11 columns, k = 37: every tail of the f32 product at once. */
function productTest(kernels: Kernels, memory: WebAssembly.Memory, from: number): string | undefined {
  const [rows, n, k] = [5, 11, 37];
  const at = { x: from, w: from + 4096, a: from + 12_288, out: from + 20_480, one: from + 24_576 };
  const floats = new Float32Array(memory.buffer);
  const x = (t: number, i: number) => (t * 7 + i * 5) % 11 - 5;
  const w = (c: number, i: number) => c < n ? (c * 3 + i * 13) % 17 - 8 : 0;
  for (let t = 0; t < rows; t++) for (let i = 0; i < k; i++) floats[at.x / 4 + t * k + i] = x(t, i);
  for (let c = 0; c < 16; c++) {
    for (let i = 0; i < k; i++) floats[at.w / 4 + ((c >> 3) * k + i) * 8 + c % 8] = w(c, i);
  }
  kernels.pack_f32(at.a, at.x, k, rows, k);
  kernels.gemm_f32(at.a, at.w, rows, k, n, at.out, n, 0, 0, 0, FINISH.plain);
  kernels.gemv_f32(at.x, at.w, k, n, at.one, 0, 0, FINISH.plain);
  for (let t = 0; t < rows; t++) {
    for (let c = 0; c < n; c++) {
      let expected = 0;
      for (let i = 0; i < k; i++) expected += x(t, i) * w(c, i);
      const found = floats[at.out / 4 + t * n + c];
      if (found !== expected) return `gemm_f32: expected ${expected}, found ${found}`;
      const single = floats[at.one / 4 + c];
      if (t === 0 && single !== expected) return `gemv_f32: expected ${expected}, found ${single}`;
    }
  }
  return undefined;
}
