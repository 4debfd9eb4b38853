/**
 * Where the numbers of a quantised matrix lie, byte by byte, and how activations are rounded to meet them. The
 * kernels in `wasm/src`, the packing in `lib/weights/quantize.ts` and the reference all follow this file.
 *
 * Both schemes: W [N, K], out = x · Wᵀ. Output columns come in panels of 8, N padded to 8; what is padded is zero.
 *
 * `int8-p8-s4`: bytes [N/8][K/4][8][4], s8 from -127 to 127, K padded to 16. W[n, k] = q · scale[n].
 *
 * `int4-g32-p8`: [N/8][K/32] groups of 144 bytes: 8 × i16 group scales (little-endian, -1023 to 1023, one per
 * column), then 8 × 16 bytes, byte 4·(n mod 4) + k mod 4 of the 16 for four k at a time; column n mod 8 below 4 in
 * the low nibble, the others in the high one. K padded to 32. W[n, k] = (nibble - 8) · groupScale · scale[n]. Where no
 * group scale of a matrix is beyond ±15, as `lib/weights/quantize.ts` writes them, (nibble - 8) · groupScale is a byte, and
 * kernels may multiply it as one: the integers are the same. The WASM backend keeps group scales as bytes in memory, where
 * all those of a matrix are within ±127.
 */

import type { Scheme, StoredMatrix } from "./backend.ts";

/** Output columns of a panel. */
export const PANEL = 8;
/** Values of k that share an int4 group scale. */
export const GROUP = 32;
/** Bytes of one int4 group of 8 columns. */
export const GROUP_BYTES = PANEL * 2 + PANEL * GROUP / 2;
/** Largest magnitude of an integer group scale. */
export const MAX_GROUP_SCALE = 1023;
/** The same where every weight times its group's scale is a byte: 8 · 15 = 120. */
export const BYTE_GROUP_SCALE = 15;
/** Nibble that stands for zero. */
export const NIBBLE_ZERO = 8;
/** K of `int8-p8-s4` is padded to this: four steps of four, which the portable kernel sums in 16 bits. */
const INT8_K = 16;

/** Bytes of a packed matrix; for f32, of N·K floats. */
export function packedBytes(scheme: Scheme, n: number, k: number): number {
  switch (scheme) {
    case "f32":
      return n * k * 4;
    case "int8-p8-s4":
      return roundUp(n, PANEL) * roundUp(k, INT8_K);
    case "int4-g32-p8":
      return roundUp(n, PANEL) / PANEL * (roundUp(k, GROUP) / GROUP) * GROUP_BYTES;
  }
}

/** K as it lies in memory. */
export function paddedK(scheme: Scheme, k: number): number {
  return scheme === "f32" ? k : roundUp(k, scheme === "int8-p8-s4" ? INT8_K : GROUP);
}

export function roundUp(value: number, multiple: number): number {
  return Math.ceil(value / multiple) * multiple;
}

/** Byte of W[n, k] in `int8-p8-s4`; `padded` is `paddedK`. */
export function int8At(n: number, k: number, padded: number): number {
  return (n >> 3) * PANEL * padded + (k >> 2) * 32 + (n & 7) * 4 + (k & 3);
}

/** First byte of the group of W[n, k] in `int4-g32-p8`: its scales, 16 bytes, then its nibbles. */
export function groupAt(n: number, k: number, padded: number): number {
  return ((n >> 3) * (padded / GROUP) + Math.floor(k / GROUP)) * GROUP_BYTES;
}

/** Byte of the nibble of W[n, k], from the first byte of its group. */
export function nibbleAt(n: number, k: number): number {
  return PANEL * 2 + ((k & 31) >> 2) * 16 + (n & 3) * 4 + (k & 3);
}

/**
 * Fails unless the data are as long as scheme and shape say and every column has a scale.
 *
 * @throws {RangeError} with the numbers; {TypeError} for a scheme that is not known.
 */
export function checkStored({ scheme, n, k, data, scale }: StoredMatrix): void {
  const bytes = packedBytes(scheme, n, k);
  if (bytes === undefined) throw new TypeError(`Cannot take a matrix of scheme "${scheme}"`);
  if (data.byteLength !== bytes || (scheme === "f32") !== (data instanceof Float32Array)) {
    throw new RangeError(
      `Cannot take a matrix [${n}, ${k}]: ${scheme} takes ${bytes} bytes, found ${data.byteLength}`,
    );
  }
  if (scheme !== "f32" && scale?.length !== n) {
    throw new RangeError(`Cannot take a matrix [${n}, ${k}]: expected ${n} scales, found ${scale?.length}`);
  }
}

/**
 * The integers of a quantised matrix, row-major [N, K] without padding: s8 for int8, -8 to 7 for int4, and for int4
 * the group scales [N, ⌈K/32⌉].
 */
export function unpack(stored: StoredMatrix): { values: Int8Array; groupScales?: Int16Array } {
  checkStored(stored);
  const { scheme, n, k } = stored;
  const data = stored.data as Uint8Array;
  const padded = paddedK(scheme, k);
  const values = new Int8Array(n * k);
  if (scheme === "int8-p8-s4") {
    for (let row = 0; row < n; row++) {
      for (let i = 0; i < k; i++) values[row * k + i] = data[int8At(row, i, padded)];
    }
    return { values };
  }
  const groups = padded / GROUP;
  const groupScales = new Int16Array(n * groups);
  for (let row = 0; row < n; row++) {
    for (let g = 0; g < groups; g++) {
      const at = groupAt(row, g * GROUP, padded);
      const two = at + (row & 7) * 2;
      groupScales[row * groups + g] = data[two] | data[two + 1] << 8;
      const end = Math.min(k, (g + 1) * GROUP);
      for (let i = g * GROUP; i < end; i++) {
        const byte = data[at + nibbleAt(row, i)];
        values[row * k + i] = (row & 4 ? byte >> 4 : byte & 15) - NIBBLE_ZERO;
      }
    }
  }
  return { values, groupScales };
}

/**
 * Writes columns [first, first + n) of a matrix f32 [N, K] to panels: [⌈n/8⌉][K][8], zeros for columns that are not
 * there.
 */
export function packPanels(
  panels: Float32Array,
  data: Float32Array,
  k: number,
  first: number,
  n: number,
): void {
  for (let row = 0; row < panels.length / k; row++) {
    let to = (row - row % PANEL) * k + row % PANEL;
    const from = (first + row) * k;
    for (let i = 0; i < k; i++, to += PANEL) panels[to] = row < n ? data[from + i] : 0;
  }
}

/** A matrix of any scheme as f32 [N, K]. */
export function dequantize(stored: StoredMatrix): Float32Array {
  if (stored.scheme === "f32") return stored.data as Float32Array;
  const { n, k } = stored;
  const { values, groupScales } = unpack(stored);
  const groups = Math.ceil(k / GROUP);
  const out = new Float32Array(n * k);
  for (let row = 0; row < n; row++) {
    const scale = stored.scale![row];
    for (let i = 0; i < k; i++) {
      const group = groupScales ? groupScales[row * groups + (i >> 5)] : 1;
      out[row * k + i] = values[row * k + i] * group * scale;
    }
  }
  return out;
}

/**
 * A row of activations for int8 weights: 7 bits, asymmetric, x ≈ (q - zero) · scale with q from 0 to 127.
 *
 * The range always holds zero, so zero is exact. Seven bits because the operand of the relaxed dot product that may
 * be unsigned must stay below 128; asymmetric because what follows a GELU has a short negative side, and the
 * correction by `zero` times a column's sum costs nothing per product. All arithmetic in f32, rounding half to even,
 * so that every backend finds the same integers.
 */
export function quantizeRow7(x: Float32Array): { q: Uint8Array; zero: number; scale: number } {
  let [low, high] = [0, 0];
  for (const v of x) {
    if (v < low) low = v;
    if (v > high) high = v;
  }
  const range = Math.fround(high - low);
  const q = new Uint8Array(x.length);
  if (!(range >= TINY)) return { q, zero: 0, scale: 0 };
  const inverse = Math.fround(127 / range);
  const zero = roundEven(Math.fround(-low * inverse));
  for (let i = 0; i < x.length; i++) {
    q[i] = Math.min(127, Math.max(0, roundEven(Math.fround(x[i] * inverse)) + zero));
  }
  return { q, zero, scale: Math.fround(range / 127) };
}

/** A row of activations for int4 weights: 8 bits, symmetric, x ≈ q · scale with q from -127 to 127; as above. */
export function quantizeRow8(x: Float32Array): { q: Int8Array; scale: number } {
  let most = 0;
  for (const v of x) most = Math.max(most, Math.abs(v));
  const q = new Int8Array(x.length);
  if (!(most >= TINY)) return { q, scale: 0 };
  const inverse = Math.fround(127 / most);
  for (let i = 0; i < x.length; i++) {
    q[i] = Math.min(127, Math.max(-127, roundEven(Math.fround(x[i] * inverse))));
  }
  return { q, scale: Math.fround(most / 127) };
}

/** What a weight of 1 is in `attentionInt8`: the greatest number of 14 bits, two of seven. */
export const WEIGHT_ONE = 2 ** 14 - 1;

/** Rows that span less than this count as zero: 127 divided by it is still finite. */
const TINY = Math.fround(1e-30);

function roundEven(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor;
  if (rest !== 0.5) return rest < 0.5 ? floor : floor + 1;
  return floor % 2 ? floor + 1 : floor;
}
