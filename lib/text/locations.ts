/** The pieces `<loc0000>` to `<loc1023>` and `<seg000>` to `<seg127>` of a vocabulary. */

import type { Tokenizer } from "./tokenizer.ts";

export const LOCATIONS = 1024;
export const MASK_CODES = 128;
/** Codes of one mask, a grid of 4 × 4. */
export const CODES_PER_MASK = 16;

/** The pieces by number and by id. Looked up once for a model: that takes milliseconds. */
export interface Locations {
  /** Ids by bin; undefined where the vocabulary lacks a piece. */
  readonly ids: readonly (number | undefined)[];
  /** Ids by mask code. */
  readonly codeIds: readonly (number | undefined)[];
  readonly bins: ReadonlyMap<number, number>;
  readonly codes: ReadonlyMap<number, number>;
}

/** Looks the pieces up. */
export function findLocations(tokenizer: Tokenizer): Locations {
  const ids = numbered(tokenizer, "loc", LOCATIONS, 4), codeIds = numbered(tokenizer, "seg", MASK_CODES, 3);
  return { ids, codeIds, bins: inverse(ids), codes: inverse(codeIds) };
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
