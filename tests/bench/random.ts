/** Numbers and matrices without meaning, the same every time; for any engine. */

import type { Scheme, StoredMatrix } from "../../lib/backend/backend.ts";
import { groupBytes, NARROW, WIDE } from "../../lib/backend/wasm_parts.ts";
import { packedBytes } from "../../lib/weights/quantize.ts";

/** Bytes of such a matrix, and of one from `models/synth.ts`, as the WASM kernels read it: their int4 scales are bytes there. */
export function bytesRead(scheme: Scheme, n: number, k: number): number {
  const bytes = packedBytes(scheme, n, k);
  return scheme === "int4-g32-p8" ? bytes / groupBytes(WIDE) * groupBytes(NARROW) : bytes;
}

/** Numbers of variance 1 or so, the same every time. */
export function numbers(length: number, seed = 1): Float32Array {
  let state = seed;
  const uniform = () => (state = Math.imul(state, 1664525) + 1013904223 >>> 0) / 2 ** 32;
  return Float32Array.from({ length }, () => (uniform() + uniform() + uniform() + uniform() - 2) * 1.7);
}

/** Weights as a converter leaves them, but random: within the bound of int8, full scales of int4. */
export function randomMatrix(scheme: Scheme, n: number, k: number): StoredMatrix {
  if (scheme === "f32") return { scheme, n, k, data: numbers(n * k, 7).map((it) => it / Math.sqrt(k)) };
  const data = new Uint8Array(packedBytes(scheme, n, k));
  let state = 7;
  for (let i = 0; i < data.length; i++) {
    data[i] = (state = Math.imul(state, 1664525) + 1013904223 >>> 0) >>> 24;
  }
  if (scheme === "int8-p8-s4") { for (let i = 0; i < data.length; i++) data[i] = (data[i] & 63) - 32; }
  else {
    const words = new DataView(data.buffer);
    for (let at = 0; at < data.length; at += 144) {
      for (let column = 0; column < 8; column++) words.setInt16(at + 2 * column, 13, true);
    }
  }
  const scale = new Float32Array(n).fill(1 / ((scheme === "int8-p8-s4" ? 18.5 : 4.6 * 13) * Math.sqrt(k)));
  return { scheme, n, k, data, scale };
}
