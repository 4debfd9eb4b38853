/** The pieces `<loc0000>` to `<loc1023>` and `<seg000>` to `<seg127>` of a vocabulary. */

import type { Span } from "../types.ts";
import type { Tokenizer } from "./tokenizer.ts";

export const LOCATIONS = 1024;
export const MASK_CODES = 128;
/** Codes of one mask, a grid of 4 × 4. */
export const CODES_PER_MASK = 16;

/**
 * Bins by which two locations may differ and still mean one place: a thirty-second of the picture's side. A model spreads
 * its probability over neighbouring bins, and a box that far off is still the same box.
 */
const NEAR = 32;

/** The pieces by number and by id. Looked up once for a model: that takes milliseconds. */
export interface Locations {
  /** Ids by bin; undefined where the vocabulary lacks a piece. */
  readonly ids: readonly (number | undefined)[];
  /** Ids by mask code. */
  readonly codeIds: readonly (number | undefined)[];
  /** From the first of the ids to after the last; undefined where there is none. */
  readonly within: Span | undefined;
  readonly bins: ReadonlyMap<number, number>;
  readonly codes: ReadonlyMap<number, number>;
}

/** Looks the pieces up. */
export function findLocations(tokenizer: Tokenizer): Locations {
  const ids = numbered(tokenizer, "loc", LOCATIONS, 4), codeIds = numbered(tokenizer, "seg", MASK_CODES, 3);
  const bins = inverse(ids);
  const within = bins.size ? [Math.min(...bins.keys()), Math.max(...bins.keys()) + 1] as const : undefined;
  return { ids, codeIds, within, bins, codes: inverse(codeIds) };
}

/** Ids of the locations within a thirty-second of the picture's side of this one; undefined for other tokens. */
export function nearby({ ids, bins }: Locations, id: number): readonly Span[] | undefined {
  const bin = bins.get(id);
  if (bin === undefined) return undefined;
  const near = ids.slice(Math.max(0, bin - NEAR), bin + NEAR + 1).filter((it) => it !== undefined);
  return near.map((it) => [it, it + 1] as const);
}

function inverse(ids: readonly (number | undefined)[]): ReadonlyMap<number, number> {
  return new Map(ids.flatMap((id, number) => id === undefined ? [] : [[id, number] as const]));
}

function numbered(tokenizer: Tokenizer, name: string, count: number, digits: number) {
  return Array.from(
    { length: count },
    (_, number) => tokenizer.idOf(`<${name}${String(number).padStart(digits, "0")}>`),
  );
}
