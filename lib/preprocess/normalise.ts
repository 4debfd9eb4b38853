/** Bytes to the numbers that SigLIP takes. By itself, since workers, who are sent prepared pictures, decode none. */

/**
 * (x/255 − mean) / std per channel, rounded to f32 after every step as Hugging Face's numpy code does: u8 [N, 3] to
 * f32 [N, 3], for mean = std = ½ in [-1, 1].
 *
 * @example
 * ```ts
 * import { normalise } from "./normalise.ts";
 * const half = [0.5, 0.5, 0.5];
 * console.assert(normalise(new Uint8Array([0, 51, 255]), half, half).join() === "-1,-0.6000000238418579,1");
 * ```
 */
export function normalise(
  samples: Uint8Array,
  mean: readonly number[],
  std: readonly number[],
): Float32Array {
  if (samples.length % 3 || mean.length !== 3 || std.length !== 3) {
    throw new RangeError(
      `Cannot normalise: expected [N, 3], 3 means and 3 deviations, found ${samples.length} samples, ` +
        `${mean.length} and ${std.length}`,
    );
  }
  const round = Math.fround;
  // 256 values a channel: computed once instead of once a pixel.
  const tables = [0, 1, 2].map((c) =>
    Float32Array.from({ length: 256 }, (_, x) => round(round(x * (1 / 255)) - round(mean[c])) / round(std[c]))
  );
  const [r, g, b] = tables;
  const out = new Float32Array(samples.length);
  for (let i = 0; i < out.length; i += 3) {
    out[i] = r[samples[i]];
    out[i + 1] = g[samples[i + 1]];
    out[i + 2] = b[samples[i + 2]];
  }
  return out;
}
