/** How rows and columns are multiplied, in each build. */

/** Rows of a tile of twins: as many as registers hold the sums of. */
export const TWIN_ROWS = 12;
const SCALED_TWINS = [4, 8, TWIN_ROWS].map((rows) => ["scaled", rows] as const);
const SUMS_OF_TWINS = ["sums", TWIN_ROWS] as const;

/** How they are multiplied. */
export interface Product {
  readonly name: string;
  /** How rows lie: `tiles.ts` tells. */
  readonly rows: "six" | "five" | "floats";
  /** A sum, to which columns times rows are added. */
  add(columns: string, rows: string, sum: string): string;
  /** Sums that are taken of so many steps only, and then joined with others. */
  readonly few?: { readonly steps: number; join(sum: string, few: string): string };
  /** Columns times rows, where these begin anew. */
  first?(columns: string, rows: string): string;
  /** What its sums end as, of copies. */
  readonly ends: readonly ("sums" | "scaled")[];
  /**
   * Who trades neighbours in tiles of twins, so that every row meets every column: the columns of a step, once for all rows, or
   * every second row. Rows where a product waits for its addition in the register that columns in two orders would need.
   */
  readonly traders: "columns" | "rows";
  /** The same of twins, and of so many rows; nothing if there are none. */
  readonly twins?: readonly (readonly [ends: Ends, rows: number])[];
}

/**
 * What sums end as: themselves; floats with the scales of rows and columns; or, of a tile whose values are in halves of seven
 * bits, 128 times the sums of the upper ones and those of the lower.
 */
export type Ends = "sums" | "scaled" | "halves";

const multiplied = (columns: string, rows: string) => `(f32x4.mul ${columns} ${rows})`;

const floats = (add: Product["add"], traders: Product["traders"]): Product => ({
  name: "f32",
  rows: "floats",
  ends: ["sums"],
  first: multiplied,
  add,
  traders,
  few: { steps: 64, join: (sum, few) => `(f32x4.add ${sum} ${few})` },
});

export const words = (steps: number): Product => {
  const first = (columns: string, rows: string) => `(i16x8.relaxed_dot_i8x16_i7x16_s ${columns} ${rows})`;
  const join = (sum: string, few: string) => `(i32x4.add ${sum} (i32x4.extadd_pairwise_i16x8_s ${few}))`;
  return {
    name: `words${steps}`,
    rows: "five",
    ends: ["scaled"],
    twins: SCALED_TWINS,
    // Sums of a few steps have left the registers already; to rotate rows would cost more.
    traders: "columns",
    first,
    add: (columns, rows, sum) => `(i16x8.add ${sum} ${first(columns, rows)})`,
    few: { steps, join },
  };
};

const addWords: Product["add"] = (columns, rows, sum) =>
  `(i32x4.add ${sum} (i32x4.dot_i16x8_s ${columns} ${rows}))`;

/** Of each build; where there is no product of bytes, these are words, and a step is half as many. */
export const PRODUCTS = {
  simd: [
    floats((columns, rows, sum) => `(f32x4.add ${multiplied(columns, rows)} ${sum})`, "rows"),
    {
      name: "words",
      rows: "five",
      ends: ["sums", "scaled"],
      twins: [...SCALED_TWINS, SUMS_OF_TWINS],
      traders: "rows",
      add: addWords,
    },
  ],
  relaxed: [
    floats((columns, rows, sum) => `(f32x4.relaxed_madd ${columns} ${rows} ${sum})`, "columns"),
    { ...words(1), ends: [] },
    words(4),
    words(8),
    { name: "words", rows: "five", ends: [], twins: [SUMS_OF_TWINS], traders: "rows", add: addWords },
    {
      name: "dot",
      rows: "six",
      ends: ["sums", "scaled"],
      twins: [...SCALED_TWINS, ["halves", TWIN_ROWS]],
      traders: "columns",
      add: (columns, rows, sum) => `(i32x4.relaxed_dot_i8x16_i7x16_add_s ${columns} ${rows} ${sum})`,
    },
  ],
} satisfies Record<string, Product[]>;

export type Build = keyof typeof PRODUCTS;
