import type { Calibration } from "../../lib/schedule/cost_model.ts";

/** A machine of the README's, and a pool at the end of 25 ms and 20 Mbit/s. */
export const CALIBRATION: Calibration = {
  edge: {
    vision: { baseMs: 0, perUnitMs: 750 / 224 ** 2 },
    prefill: { baseMs: 20, perUnitMs: 13.2 },
    step: { baseMs: 56, perUnitMs: 0 },
  },
  pool: {
    vision: { baseMs: 11, perUnitMs: 0 },
    prefill: { baseMs: 0, perUnitMs: 0.25 },
    step: { baseMs: 15, perUnitMs: 0 },
    link: { baseMs: 25, perUnitMs: 0.0004 },
    pricePerSecond: 0.0005,
  },
};
