/**
 * What stages cost before anything was timed: their arithmetic, at the usual speed of what computes them. A short timed
 * answer corrects it where the clock runs while it computes; what is seen later corrects both.
 */

import type { ModelConfig } from "../weights/config.ts";
import type { Linear, PlaceCosts } from "./cost_model.ts";

/** What a place computes with. */
export interface Machine {
  /** 10⁹ multiplications or additions a second, in products of many rows. */
  readonly gigaflops: number;
  /** 10⁹ bytes of weights a second, in products of one row. */
  readonly gigabytes: number;
  /** Of every stage, whatever its size. */
  readonly overheadMs: number;
}

/** One thread of our int8 kernels: the README's PaliGemma 3B on an Intel, 1.9 s a picture, 124 ms a token of int4. */
export const THREAD: Machine = { gigaflops: 115, gigabytes: 13, overheadMs: 0.5 };
/** A middling GPU, not at its best. It is thought quick until it was seen: what is thought slow is never tried. */
export const GPU: Machine = { gigaflops: 20_000, gigabytes: 300, overheadMs: 2 };

/** A way that nobody has measured: 20 Mbit/s, at the end of 20 ms. */
export const UNKNOWN_LINK: Linear = { baseMs: 20, perUnitMs: 0.0004 };

/** Of a weight, where nobody tells. */
const WEIGHT_BYTES = 0.6;

/** A model's costs on a machine. */
export function assumed({ vision, decoder }: ModelConfig, machine: Machine): PlaceCosts {
  const { gigaflops, gigabytes, overheadMs } = machine;
  const tokens = (vision.imageSize / vision.patch) ** 2;
  const encoder = vision.layers *
    (tokens * (8 * vision.width ** 2 + 4 * vision.width * vision.mlp) + 4 * tokens ** 2 * vision.width);
  const { width, heads, kvHeads, headDim, mlp, layers, vocab } = decoder;
  const weights = layers * width * (2 * heads * headDim + 2 * kvHeads * headDim + 3 * mlp);
  return {
    vision: { baseMs: overheadMs, perUnitMs: encoder / vision.imageSize ** 2 / gigaflops / 1e6 },
    prefill: { baseMs: overheadMs, perUnitMs: 2 * weights / gigaflops / 1e6 },
    step: { baseMs: overheadMs + (weights + vocab * width) * WEIGHT_BYTES / gigabytes / 1e6, perUnitMs: 0 },
  };
}

/** A timed answer: sizes as a route has them, milliseconds of its stages. */
export interface Trial {
  readonly pixels: number;
  readonly prefix: number;
  readonly visionMs: number;
  readonly prefillMs: number;
  readonly stepMs: number;
}

/** Of two trials of the same work the shorter stages: what is longer was disturbed. */
export function shortest(a: Trial, b: Trial): Trial {
  const of = (stage: "visionMs" | "prefillMs" | "stepMs") => Math.min(a[stage], b[stage]);
  return { ...a, visionMs: of("visionMs"), prefillMs: of("prefillMs"), stepMs: of("stepMs") };
}

/** The same costs where a trial took so long; what took no time, on a clock that stands, stays as it was. */
export function timed(costs: PlaceCosts, { pixels, prefix, visionMs, prefillMs, stepMs }: Trial): PlaceCosts {
  return {
    ...costs,
    vision: scaled(costs.vision, pixels, visionMs),
    prefill: scaled(costs.prefill, prefix, prefillMs),
    step: scaled(costs.step, 1, stepMs),
  };
}

/** The same costs for a place of which is told how long it is until the first token, and from one to the next. */
export function told(
  costs: PlaceCosts,
  { pixels, prefix }: Pick<Trial, "pixels" | "prefix">,
  { firstMs, tokenMs }: { readonly firstMs: number; readonly tokenMs: number },
): PlaceCosts {
  const [visionMs, prefillMs] = [linear(costs.vision, pixels), linear(costs.prefill, prefix)];
  const by = firstMs / (visionMs + prefillMs);
  return timed(costs, {
    pixels,
    prefix,
    visionMs: visionMs * by,
    prefillMs: prefillMs * by,
    stepMs: tokenMs,
  });
}

function scaled(cost: Linear, size: number, ms: number): Linear {
  if (!(ms > 0)) return cost;
  const by = ms / linear(cost, size);
  return { baseMs: cost.baseMs * by, perUnitMs: cost.perUnitMs * by };
}

function linear({ baseMs, perUnitMs }: Linear, size: number): number {
  return baseMs + perUnitMs * size;
}
