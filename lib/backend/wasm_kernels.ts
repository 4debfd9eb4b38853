/**
 * The kernels of `wasm/src/*.c` as functions, the choice between the two builds, and the self-test before either is
 * trusted. Pointers are byte addresses below 2³², strides count elements.
 */

import { groupBytes, NARROW, TILE, WIDE } from "./wasm_parts.ts";

/** A kernel; C tells the meaning and order of its arguments. */
type Kernel = (...addressesAndNumbers: number[]) => void;

/** What both builds export; each function is described where it is written. */
export interface Kernels extends
  Record<
    | "pack_f32"
    | "gemm_f32"
    | "gemv_f32"
    | "embed_f32"
    | "quantize7"
    | "columns_int8"
    | "gemm_int8"
    | "gemv_int8"
    | "embed_int8"
    | "quantize8"
    | "quantize8_tall"
    | "gemm_int4"
    | "gemm_int4_bytes"
    | "gemv_int4"
    | "gemv_int4_wide"
    | "embed_int4"
    | "layer_norm"
    | "rms_norm"
    | "add"
    | "rope"
    | "patches"
    | "attention"
    | "attention_row"
    | "attention_int8",
    Kernel
  > {
  /** Bytes of the copies of operands that products of many rows have made, of this instance. */
  readonly copies_bytes: () => number;
  readonly __heap_base: WebAssembly.Global;
  /** Where the stack begins; it grows down. */
  readonly __stack_pointer: WebAssembly.Global;
  /** Steps of four k that may be summed in 16 bits: 8, 4 or 1. */
  bound_int8(w: number, padded: number, panels: number): number;
  /** Makes the scales of int4 groups bytes, where they all can be; bytes that those of a group take then. */
  narrow_int4(w: number, groups: number): number;
  /** Sums of the columns of int4 weights times their groups' scales, which are bytes; 1 where the products all are, too. */
  columns_int4(sums: number, w: number, padded: number, panels: number): number;
  /** Rows of a tile of activations for weights of bytes and a kernel, by its number. */
  tile_rows(kernel: number): number;
  /** Bytes of a value in a tile: 1, or 2 in the plain build, which multiplies words. */
  tile_bytes(): number;
  /** The same work `turns` times, of pairs of vectors or of single ones. */
  time_twins(turns: number, pairs: number): number;
  /** What the engine makes of a dot product out of range. */
  probe_dot(a: number, b: number): number;
}

/** The two builds; without the relaxed one, plain SIMD runs. */
export interface Builds {
  readonly simd: WebAssembly.Module;
  readonly relaxed?: WebAssembly.Module;
}

/** How a product is finished; the same numbers as in `wasm/src/simd.h`. */
export const FINISH = { plain: 0, gelu: 1, multiply: 2 } as const;

/**
 * How integers are multiplied: `dot` by the relaxed dot product with addition, one instruction where the processor
 * has it; `words` in 16 bits, several steps before they are widened, where a dot product would be five instructions, and in
 * the plain build. The integers are the same.
 */
export type Multiplier = "dot" | "words";

/** How many rows and single ones are multiplied; by default as probes of the processor and the engine find best. */
export interface Ways {
  readonly multiplier: Multiplier;
  /** Whether many rows are multiplied as an engine can take two vectors at once. */
  readonly twins: boolean;
}

/**
 * The zero point with which activations of eight bits fill the operand of the relaxed dot product that is promised only
 * seven: out of range the product gives away what it is made of. An operand of -1 taken as 255 and summed without
 * saturation is `vpdpbusd`, taken as -1 it is ARM's `sdot`. Undefined for the saturating chain of older x86, 2 · 32,767,
 * and in the plain build.
 */
export function probeZero(kernels: Kernels): 128 | 0 | undefined {
  switch (kernels.probe_dot(127, -1)) {
    case 4 * 127 * 255:
      return 128;
    case 4 * 127 * -1:
      return 0;
  }
}

/**
 * Number of the kernel of a row alone that multiplies bytes of two nibbles as they are: for an engine that takes all eight
 * bits of that operand, unsigned, which a zero point of 128 tells.
 */
export const UNSIGNED = 2;

/** Beside the number of a kernel: that of many rows, of which two vectors may be joined. */
export const TWIN = 16;

/** The fastest ways on this processor, in this engine, as far as they are not given. */
export function waysOf(kernels: Kernels, { multiplier, twins }: Partial<Ways> = {}): Ways {
  return {
    multiplier: multiplier ?? (probeZero(kernels) === undefined ? "words" : "dot"),
    twins: twins ?? (joins ??= probeTwins(kernels)),
  };
}

/**
 * The zero point of activations of eight bits beside int4 weights that are multiplied as bytes, where that can be: by dot
 * products, and as words.
 */
export function bytesZero(kernels: Kernels, { multiplier, twins }: Ways): 128 | 0 | undefined {
  if (kernels.tile_bytes() > 1) return twins ? 0 : undefined;
  return multiplier === "words" ? undefined : probeZero(kernels);
}

/** What `probeTwins` found in this process: it does not change. */
let joins: boolean | undefined;

/** Turns of a look, some microseconds; how long looks may go on in ms, and how many there are where clocks stand still. */
const [PROBE_TURNS, PROBE_MS, PROBE_LOOKS] = [2000, 100, 8];
/** Looks in a row that are believed, and how many tell that there is nothing to be seen in optimised code. */
const [SURE, ENOUGH] = [16, 128];

/**
 * Whether the engine makes one vector of 256 bits of two: V8 with `--experimental-wasm-revectorize`, and only what it has
 * optimised, which takes it some 10 ms, or 40 beside other work. The results are the same, so that only the time tells: single
 * vectors take twice that of pairs then, and half of what they took at first.
 */
function probeTwins({ time_twins: time }: Kernels): boolean {
  const since = performance.now();
  let [atFirst, faster, optimised] = [Infinity, 0, 0];
  for (let looks = 0, now = since; now - since < PROBE_MS && optimised < ENOUGH; looks++) {
    if (now === since && looks === PROBE_LOOKS) return false;
    time(PROBE_TURNS, 0);
    const between = performance.now();
    time(PROBE_TURNS, 1);
    const end = performance.now();
    const [single, pairs] = [between - now, end - between];
    // Not one look or a few: a thread that has to wait meanwhile would tell anything.
    faster = pairs < 0.7 * single ? faster + 1 : 0;
    if (faster === SURE) return true;
    if (looks < SURE) atFirst = Math.min(atFirst, single);
    else if (single < 0.6 * atFirst) optimised++;
    now = end;
  }
  return false;
}

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

/** Bytes of the stack of one instance, as `wasm/build.ts` sets it. */
export const STACK_BYTES = 65_536;

/** Kernels of a module in a memory that it imports; where instances share one, each needs a stack of its own. */
export function instantiate(
  module: WebAssembly.Module,
  memory: WebAssembly.Memory,
  stack = STACK_BYTES,
): Kernels {
  const kernels = new WebAssembly.Instance(module, { env: { memory } }).exports as unknown as Kernels;
  kernels.__stack_pointer.value = stack;
  return kernels;
}

/**
 * The fastest build that this engine runs and that computes correctly here: relaxed SIMD where it validates and
 * passes the self-test, otherwise plain SIMD. `memory`: the one that the shared builds
 * import; its first pages are overwritten.
 *
 * @throws {TypeError} when the plain build fails the self-test too; the message names the kernel.
 */
export function chooseKernels(builds: Builds, memory?: WebAssembly.Memory): WebAssembly.Module {
  if (builds.relaxed && WebAssembly.validate(RELAXED_PROBE) && !selfTest(builds.relaxed, memory)) {
    return builds.relaxed;
  }
  const wrong = selfTest(builds.simd, memory);
  if (wrong) throw new TypeError(`Broken engine: ${wrong}`);
  return builds.simd;
}

/**
 * Runs small products and compares them with plain loops, on values that every engine must get right. Some engines
 * have had wrong relaxed operations. Returns what was wrong, or undefined. Overwrites the first 256 KiB of the memory.
 */
export function selfTest(
  module: WebAssembly.Module,
  memory: WebAssembly.Memory = new WebAssembly.Memory({ initial: 4, maximum: 4 }),
): string | undefined {
  const kernels = instantiate(module, memory);
  const from = Math.ceil(kernels.__heap_base.value / 64) * 64;
  return floatTest(kernels, memory, from) ?? integerTest(kernels, memory, from);
}

/**
 * Rows enough for copies of operands (`wasm/tiles.ts`), 11 columns, k = 37: every tail of the f32 product at once; and k = 36,
 * which twins can have.
 */
function floatTest(kernels: Kernels, memory: WebAssembly.Memory, from: number): string | undefined {
  const twins = waysOf(kernels).twins ? floatProduct(kernels, memory, from, 36, TWIN) : undefined;
  return twins ?? floatProduct(kernels, memory, from, 37, 0);
}

function floatProduct(
  kernels: Kernels,
  memory: WebAssembly.Memory,
  from: number,
  k: number,
  kernel: number,
): string | undefined {
  const [rows, n] = [36, 11];
  const at = { x: from, w: from + 8192, a: from + 12_288, out: from + 20_480, one: from + 24_576 };
  const floats = new Float32Array(memory.buffer);
  const x = (t: number, i: number) => (t * 7 + i * 5) % 11 - 5;
  const w = (c: number, i: number) => c < n ? (c * 3 + i * 13) % 17 - 8 : 0;
  for (let t = 0; t < rows; t++) for (let i = 0; i < k; i++) floats[at.x / 4 + t * k + i] = x(t, i);
  for (let c = 0; c < 16; c++) {
    for (let i = 0; i < k; i++) floats[at.w / 4 + ((c >> 3) * k + i) * 8 + c % 8] = w(c, i);
  }
  kernels.pack_f32(at.a, at.x, k, rows, k, kernel ? kernels.tile_rows(kernel) : TILE);
  kernels.gemm_f32(at.a, at.w, 0, rows, k, n, at.out, n, 0, 0, 0, FINISH.plain, kernel);
  kernels.gemv_f32(at.x, at.w, k, n, at.one, 0, 0, FINISH.plain);
  for (let t = 0; t < rows; t++) {
    for (let c = 0; c < n; c++) {
      let expected = 0;
      for (let i = 0; i < k; i++) expected += x(t, i) * w(c, i);
      const found = floats[at.out / 4 + t * n + c];
      if (found !== expected) return `gemm_f32 ${kernel}: expected ${expected}, found ${found}`;
      const single = floats[at.one / 4 + c];
      if (t === 0 && single !== expected) return `gemv_f32: expected ${expected}, found ${single}`;
    }
  }
  return undefined;
}

/** Five tiles or more, or one, 8 columns, k = 96, bytes at the ends of what the kernels allow, by every kernel; exact in f32. */
function integerTest(kernels: Kernels, memory: WebAssembly.Memory, from: number): string | undefined {
  const k = 96;
  const at = {
    a: from,
    x: from + 16_384,
    w8: from + 17_408,
    w4: from + 18_432,
    ones: from + 19_456,
    zeros: from + 19_712,
  };
  const [sums, presets, room, out] = [from + 19_968, from + 20_480, from + 22_528, from + 28_672];
  const bytes = new Int8Array(memory.buffer);
  const words = new Int16Array(memory.buffer);
  const floats = new Float32Array(memory.buffer);
  bytes.fill(0, from, from + 32_768);
  floats.fill(1, at.ones / 4, at.ones / 4 + 64);
  // int8: activations 0 … 127, weights within the bound of eight steps. int4: -127 … 127, nibbles 0 … 15, unscaled.
  const seven = (t: number, i: number) => i % 3 ? 127 - (t * 5 + i) % 9 : t;
  const weight = (c: number, i: number) => (c * 7 + i * 11) % 33 - 16;
  const eight = (t: number, i: number) => (i + t) % 2 ? 127 - t : -127 + i % 5;
  const nibble = (c: number, i: number) => (c + i) % 4 ? (c * 5 + i * 3) % 16 : 15;
  for (let i = 0; i < k; i++) {
    for (let c = 0; c < 8; c++) {
      bytes[at.w8 + (i >> 2) * 32 + c * 4 + i % 4] = weight(c, i);
      const group = at.w4 + (i >> 5) * groupBytes(WIDE);
      bytes[group + c * 2] = 1;
      bytes[group + WIDE + (i % 32 >> 2) * 16 + (c & 3) * 4 + i % 4] |= nibble(c, i) << (c & 4);
    }
  }
  const wrong = (name: string, count: number, expected: (t: number, c: number) => number) => {
    for (let at = 0; at < count; at++) {
      const [found, right] = [floats[out / 4 + at], expected(at >> 3, at % 8)];
      if (found !== right) return `${name}: expected ${right}, found ${found}`;
    }
  };
  const dot = (x: typeof seven, w: typeof weight) => (t: number, c: number) => {
    let sum = 0;
    for (let i = 0; i < k; i++) sum += x(t, i) * w(c, i);
    return sum;
  };
  const [right8, right4] = [dot(seven, weight), dot(eight, (c, i) => nibble(c, i) - 8)];
  const tileBytes = kernels.tile_bytes();
  const [values, step] = tileBytes === 1 ? [bytes, 4] : [words, 2];
  const fill = (x: typeof seven, rows: number, tile: number) => {
    for (let t = 0; t < rows; t++) {
      const to = at.a / tileBytes + Math.floor(t / tile) * tile * k;
      for (let i = 0; i < k; i++) {
        values[to + (Math.floor(i / step) * tile + t % tile) * step + i % step] = x(t, i);
      }
    }
    for (let i = 0; i < k; i++) bytes[at.x + i] = x(0, i);
  };
  // Twins only where they are used: a start would take longer.
  const each = waysOf(kernels).twins ? [0, TWIN] : [0];
  for (const kernel of [0, 1, 4, 8].flatMap((it) => each.map((twin) => it | twin))) {
    const tile = kernels.tile_rows(kernel);
    const rows = Math.min(7 * tile, 60) - 1;
    fill(seven, rows, tile);
    const weights = [at.w8, at.ones, sums];
    const gemm = [
      at.a,
      at.zeros,
      at.ones,
      ...weights,
      room,
      0,
      rows,
      k,
      8,
      out,
      8,
      0,
      0,
      0,
      FINISH.plain,
      kernel,
    ];
    kernels.gemm_int8(...gemm);
    const gemv = [at.x, at.zeros, at.ones, ...weights, k, 8, out, 0, 0, FINISH.plain, kernel];
    const found = wrong(`gemm_int8 ${kernel}`, rows * 8, right8);
    if (found) return found;
    if (kernel & TWIN) continue;
    kernels.gemv_int8(...gemv);
    const single = wrong(`gemv_int8 ${kernel}`, 8, right8);
    if (single) return single;
  }
  const preset = (t: number, group: number, pair: number) => {
    let sum = 0;
    for (let i = group * 32; i < group * 32 + 32; i++) if (i % 4 >> 1 === pair) sum += eight(t, i);
    return -8 * sum;
  };
  const single = room - 64;
  for (let at = 0; at < k / 32 * 2; at++) words[single / 2 + at] = preset(0, at >> 1, at % 2);
  const rows = TILE;
  const zero = probeZero(kernels);
  fill(eight, rows, rows);
  for (let at = 0; at < k / 32 * rows * 2; at++) {
    words[presets / 2 + at] = preset(at % (rows * 2) >> 1, Math.floor(at / (rows * 2)), at % 2);
  }
  for (const head of [WIDE, NARROW]) {
    if (head === NARROW && kernels.narrow_int4(at.w4, k / 32) !== NARROW) {
      return "narrow_int4: found no bytes";
    }
    for (const kernel of [0, 8]) {
      const rest = [room, 0, rows, k, 8, out, 8, 0, 0, 0, FINISH.plain, kernel, head];
      kernels.gemm_int4(at.a, presets, at.ones, at.w4, at.ones, ...rest);
      const found = wrong(`gemm_int4 ${kernel}`, rows * 8, right4);
      if (found) return found;
    }
    if (each.includes(TWIN) && tileBytes === 1) {
      // Tiles of twins have their presets within: as rows of floats are rounded, whose scales are 1.
      const [many, kernel, floatRows] = [3 * kernels.tile_rows(TWIN), 8 | TWIN, from + 32_768];
      for (let at = 0; at < many * k; at++) floats[floatRows / 4 + at] = eight(Math.floor(at / k), at % k);
      kernels.quantize8(at.a, 0, at.zeros, floatRows, k, many, k, k, kernels.tile_rows(TWIN));
      const rest = [room, 0, many, k, 8, out, 8, 0, 0, 0, FINISH.plain, kernel, head];
      kernels.gemm_int4(at.a, 0, at.zeros, at.w4, at.ones, ...rest);
      const found = wrong(`gemm_int4 ${kernel}`, many * 8, right4);
      if (found) return found;
      fill(eight, rows, rows);
    }
    const gemv = head === NARROW ? kernels.gemv_int4 : kernels.gemv_int4_wide;
    for (const kernel of zero === 128 ? [0, UNSIGNED, 8] : [0, 8]) {
      gemv(at.x, single, at.ones, at.w4, at.ones, k, 8, out, 0, 0, FINISH.plain, kernel);
      const found = wrong(`gemv_int4 ${kernel}`, 8, right4);
      if (found) return found;
    }
  }
  // The same weights, now with the largest scales that leave bytes.
  const scale = (c: number) => c % 2 ? 15 : -15;
  for (let i = 0; i < k / 32 * 8; i++) bytes[at.w4 + (i >> 3) * groupBytes(NARROW) + i % 8] = scale(i % 8);
  kernels.columns_int4(sums, at.w4, k, 1);
  for (const kernel of each) {
    const zero = bytesZero(kernels, { multiplier: "dot", twins: kernel === TWIN });
    if (zero === undefined) continue;
    const rows = 42;
    const tile = kernels.tile_rows(kernel);
    fill((t, i) => eight(t, i) + zero, rows, tile);
    new Int32Array(memory.buffer).fill(zero, at.zeros / 4, at.zeros / 4 + rows);
    const rest = [room, 0, rows, k, 8, out, 8, 0, 0, 0, FINISH.plain, kernel];
    kernels.gemm_int4_bytes(at.a, at.zeros, at.ones, at.w4, at.ones, sums, ...rest);
    const found = wrong(`gemm_int4_bytes ${kernel}`, rows * 8, (t, c) => right4(t, c) * scale(c));
    if (found) return found;
  }
  return undefined;
}
