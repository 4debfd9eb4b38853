/**
 * WGSL put together: constants, what all kernels share, and the kernel; and what this device's WGSL can do.
 *
 * Runtimes differ in two words. `enable subgroups;` is demanded by Tint (Dawn, Chromium) and refused by older naga
 * (Deno), which does not list the feature either; so it is written exactly where the feature is listed.
 */

import add from "./wgsl/add.wgsl" with { type: "text" };
import arena from "./wgsl/arena.wgsl" with { type: "text" };
import attention from "./wgsl/attention.wgsl" with { type: "text" };
import attentionEach from "./wgsl/attention_each.wgsl" with { type: "text" };
import attentionInt8 from "./wgsl/attention_int8.wgsl" with { type: "text" };
import combine from "./wgsl/combine.wgsl" with { type: "text" };
import dot4Builtin from "./wgsl/dot4_builtin.wgsl" with { type: "text" };
import dot4Plain from "./wgsl/dot4_plain.wgsl" with { type: "text" };
import embed from "./wgsl/embed.wgsl" with { type: "text" };
import gemmF32 from "./wgsl/gemm_f32.wgsl" with { type: "text" };
import gemmInt from "./wgsl/gemm_int.wgsl" with { type: "text" };
import matvec from "./wgsl/matvec.wgsl" with { type: "text" };
import matvecF32 from "./wgsl/matvec_f32.wgsl" with { type: "text" };
import matvecInt from "./wgsl/matvec_int.wgsl" with { type: "text" };
import norm from "./wgsl/norm.wgsl" with { type: "text" };
import patches from "./wgsl/patches.wgsl" with { type: "text" };
import place from "./wgsl/place.wgsl" with { type: "text" };
import product from "./wgsl/product.wgsl" with { type: "text" };
import quantise from "./wgsl/quantise.wgsl" with { type: "text" };
import row from "./wgsl/row.wgsl" with { type: "text" };
import rope from "./wgsl/rope.wgsl" with { type: "text" };
import rows1 from "./wgsl/rows1.wgsl" with { type: "text" };
import rows4 from "./wgsl/rows4.wgsl" with { type: "text" };
import sample from "./wgsl/sample.wgsl" with { type: "text" };
import sumShared from "./wgsl/sum_shared.wgsl" with { type: "text" };
import sumSubgroups from "./wgsl/sum_subgroups.wgsl" with { type: "text" };
import type { Scheme } from "./backend.ts";

/** What kernels may use beyond plain WGSL. The results are the same with and without. */
export interface Features {
  /** Sums over neighbouring lanes without workgroup memory. */
  readonly subgroups: boolean;
  /** DP4A: four products of eight bits at a time. */
  readonly dot4: boolean;
}

/** A kernel to be compiled. */
export interface Kernel {
  /** Tells it from others, with its constants. */
  readonly name: string;
  /** Asked for once, when it is compiled. */
  readonly text: () => string;
  readonly entry: string;
  /** Whether it writes `side`, binding 2. */
  readonly writesSide: boolean;
}

const SCHEMES: Readonly<Record<Scheme, number>> = { f32: 0, "int8-p8-s4": 1, "int4-g32-p8": 2 };

/** What makes a row before it is rounded: a norm, centred or not, or the parts of so many heads of attention. */
export interface RowMaker {
  readonly norm?: boolean;
  readonly heads?: number;
}

/** Activations for integer weights, in tiles of 1 or 4 rows. */
export interface Rounding {
  readonly scheme: Scheme;
  readonly tile: number;
}

/** Parts that the keys of a row are cut into, at most. */
export const MOST_PARTS = 32;

/** Rows that are multiplied with weights read once. */
export const FEW_ROWS = 16;

/** Panels that fill any GPU, and turns along K that are long for 64 lanes. */
const [MANY_PANELS, MANY_TURNS] = [1024, 256];

/** Makes the texts. */
export class Kernels {
  /** Keys that a workgroup of a token's attention takes at a time. */
  readonly keysTogether: number;
  readonly #rowSize: Readonly<Record<"LANES" | "UNROLLED", string>>;
  readonly #made = new Map<string, Kernel>();

  /**
   * @param software a program that stands in for a GPU takes seconds to compile loops that are written out.
   * @param manyLanes of a workgroup: for such a program, those that wait for one another cost more than they bring.
   */
  constructor(
    private readonly features: Features,
    private readonly software: boolean,
    manyLanes: boolean,
  ) {
    this.keysTogether = manyLanes ? 32 : 64;
    this.#rowSize = manyLanes ? { LANES: "256u", UNROLLED: "8u" } : { LANES: "64u", UNROLLED: "1u" };
  }

  #once(key: string, make: () => Kernel): Kernel {
    const found = this.#made.get(key) ?? make();
    this.#made.set(key, found);
    return found;
  }

  readonly add = this.#kernel("add", [add]);
  readonly rope = this.#kernel("rope", [rope]);
  readonly patches = this.#kernel("patches", [patches]);
  readonly place = this.#kernel("place", [place]);

  #kernel(
    name: string,
    parts: readonly string[] | (() => readonly string[]),
    constants: Readonly<Record<string, string>> = {},
    { entry = "main", writesSide = false, enable = "" } = {},
  ): Kernel {
    const text = () => {
      const given = Object.entries(constants).map(([key, value]) => `const ${key} = ${value};\n`).join("");
      const dot4 = this.features.dot4 ? dot4Builtin : dot4Plain;
      const all = typeof parts === "function" ? parts() : parts;
      return [enable + given, arena, dot4, ...all].join("\n");
    };
    return { name: [name, entry, ...Object.values(constants)].join(" "), text, entry, writesSide };
  }

  /** The stages in the order they run; `count` and `gather` where a row is cut to its likeliest ids. */
  readonly sample = (["blocks", "count", "gather", "choose"] as const).map((entry) =>
    this.#kernel("sample", [sample], {}, { entry, writesSide: true })
  );

  /** One workgroup a row: what makes it, if anything, and how it is rounded for integer weights, if at all. */
  row(make: RowMaker | undefined, rounding?: Rounding): Kernel {
    const { norm: centred, heads } = make ?? {};
    return this.#once(["row", centred, heads, rounding?.scheme, rounding?.tile].join(), () => {
      const first = heads ? "combine" : make ? "norm" : "range_of";
      const parts = [row];
      if (heads) parts.push(combine);
      else if (make) parts.push(norm);
      if (rounding) parts.push(quantise);
      const last = rounding ? "storageBarrier();\n  quantise(group.x, lane, range);" : "_ = range;";
      const name = [make && first, rounding && "quantise"].filter(Boolean).join("_");
      return this.#kernel(name, [...parts, perRow(`let range = ${first}(group.x, lane);\n  ${last}`)], {
        ...this.#rowSize,
        CENTRED: `${!!centred}`,
        HEADS: `${heads ?? 1}u`,
        MOST_PARTS: `${MOST_PARTS}u`,
        SEVEN_BITS: `${rounding?.scheme === "int8-p8-s4"}`,
        TILE: `${rounding?.tile ?? 1}u`,
      }, { writesSide: !!rounding });
    });
  }

  embed(scheme: Scheme): Kernel {
    return this.#once(`embed ${scheme}`, () => this.#kernel("embed", [embed], schemes(scheme)));
  }

  /**
   * For at most {@link FEW_ROWS} rows: workgroups of one panel of 8 columns each, of two matrices with `gated`.
   *
   * @param steps along K. @param panels of all workgroups.
   */
  matvec(scheme: Scheme, rows: number, steps: number, panels: number, gated = false): Kernel {
    const tiles = rows > 8 ? 4 : rows > 4 ? 2 : 1;
    const lanes = this.#lanes(scheme === "int4-g32-p8" ? steps / 4 : steps, panels, tiles);
    const key = ["matvec", scheme, lanes, rows > 1, tiles, gated].join();
    return this.#once(key, () => this.#matvec(scheme, rows > 1, lanes, tiles, gated));
  }

  #matvec(scheme: Scheme, several: boolean, lanes: number, tiles: number, gated: boolean): Kernel {
    const { subgroups } = this.features;
    const texts = () => [
      product,
      several ? rows4 : rows1,
      `alias Sum = ${scheme === "f32" ? "Real" : "Whole"};`,
      subgroups ? sumSubgroups : sumShared,
      scheme === "f32" ? matvecF32 : matvecInt.replace("FOUR", this.software ? "min(4, p.steps)" : "4"),
      matvec.replace("SUBGROUP_SIZE", subgroups ? "@builtin(subgroup_size) size: u32," : "")
        .replaceAll("SIZE", subgroups ? "size" : "0u"),
    ];
    return this.#kernel("matvec", texts, {
      ...schemes(scheme),
      LANES: `${lanes}u`,
      ROWS: several ? "4u" : "1u",
      TILES: `${tiles}u`,
      GATED: `${gated}`,
    }, { enable: subgroups ? "enable subgroups;\n" : "" });
  }

  /**
   * Lanes of a panel: with few panels and many turns, as many as workgroup memory has room for, since then it is the wait
   * for memory that counts.
   */
  #lanes(turns: number, panels: number, tiles: number): number {
    if (turns > MANY_TURNS && panels < MANY_PANELS) return (this.features.subgroups ? 256 : 128) / tiles;
    return tiles > 1 ? 32 : 64;
  }

  /** For any number of rows: workgroups of 64 rows and 64 columns. */
  gemm(scheme: Scheme): Kernel {
    return this.#kernel("gemm", [product, scheme === "f32" ? gemmF32 : gemmInt], schemes(scheme));
  }

  attention(headDim: number, rows: number): Kernel {
    return this.#kernel("attention", [attention], heads(headDim, rows));
  }

  /** To be combined by {@link row}. */
  attentionEach(headDim: number): Kernel {
    const { HEAD } = heads(headDim, 1);
    return this.#once(`attention_each ${HEAD}`, () =>
      this.#kernel("attention_each", [attentionEach], {
        HEAD,
        LANES: this.#rowSize.LANES,
        BLOCK: `${this.keysTogether}u`,
        MOST_PARTS: `${MOST_PARTS}u`,
      }));
  }

  /** The stages in the order they run. */
  attentionInt8(headDim: number, rows: number): readonly Kernel[] {
    return ["means", "rows", "values", "mix"].map((entry) =>
      this.#kernel("attention_int8", [attentionInt8], heads(headDim, rows), { entry, writesSide: true })
    );
  }
}

/** One workgroup a row. */
function perRow(body: string): string {
  return `@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  ${body}
}`;
}

function schemes(scheme: Scheme): Readonly<Record<string, string>> {
  return { SCHEME: `${SCHEMES[scheme]}`, F32: "0", INT8: "1" };
}

function heads(headDim: number, rows: number): Readonly<Record<string, string>> {
  return { HEAD: `${Math.ceil(headDim / 64) * 64}u`, ROWS: `${rows}u` };
}
