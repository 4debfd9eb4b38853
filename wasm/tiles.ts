/**
 * The innermost loops of products of many rows, as WebAssembly text: what C cannot say.
 *
 * An engine without guard pages around its memories (Deno, workerd) looks at every address before it loads from it, by a
 * comparison and a jump, and every pointer has to be moved. All that costs next to nothing while a core works for one
 * thread alone, and a fifth of the speed where two share it. The fields of a struct need none of it. So operands are
 * copied to structs of sixteen steps, once for many tiles, and a step of a tile is loads, rotations and products, no more.
 *
 * A step is two vectors of eight columns, and the rows of a tile as two vectors: four of them, to be rotated three times,
 * and those that are left, spread. `wasm/src/tiles.h` declares what C calls of this.
 */

import { type Build, type Product, PRODUCTS } from "./products.ts";
import {
  add,
  descaled,
  get,
  lanes,
  lines,
  load,
  rotated,
  SCALES,
  set,
  STEPS,
  steps,
  VECTOR,
} from "./text.ts";
import { twinsOf } from "./twins.ts";

/** How a step lies in memory, and in a struct. */
interface Layout {
  /** Bytes. */
  readonly stride: number;
  /** Type, instruction that loads it, and bytes, of what is beyond one vector. */
  readonly rest: readonly [type: string, load: string, bytes: number];
  /** How often the vector was rotated that is there: more than once where a rotation would wait for a product's units. */
  readonly turns: readonly number[];
}

/** Of the rows of a tile: of four, and beyond them. */
interface Rows extends Layout {
  /** Spreads them, if they are not already. */
  readonly spread: (rest: string) => string;
  /** How many: two are rotated once. */
  readonly count: 1 | 2;
}

const PANELS: Layout = { stride: 2 * VECTOR, rest: ["v128", "v128.load", VECTOR], turns: [0] };

const as = (rest: string) => rest;
const ROWS: Record<Product["rows"], Rows> = {
  six: { stride: 24, rest: ["v128", "v128.load64_splat", 16], spread: as, count: 2, turns: [0] },
  five: { stride: 20, rest: ["v128", "v128.load32_splat", 16], spread: as, count: 1, turns: [0, 2] },
  floats: {
    stride: 20,
    rest: ["f32", "f32.load", 4],
    spread: (rest) => `(f32x4.splat ${rest})`,
    count: 1,
    turns: [0],
  },
};

/** Field of the struct that the local of its type's name holds. */
const field = (type: string, i: number) => `(struct.get $${type} ${i} ${get(type)})`;
const keep = (type: string, i: number, value: string) => `(struct.set $${type} ${i} ${get(type)} ${value})`;
const at = (type: string, list: string, index: string) => `(array.get $list_${type} ${list} ${get(index)})`;

/** Structs of sixteen steps, and as many of them as were ever needed. */
function types(type: string, { rest: [rest], turns }: Layout): string {
  const first = "(field (mut v128))".repeat(turns.length);
  return `(type $${type} (struct ${lines(STEPS, () => `${first} (field (mut ${rest}))`)}))
    (type $list_${type} (array (mut (ref $${type}))))
    (global $all_${type} (mut (ref $list_${type})) (array.new_fixed $list_${type} 0))
    (global $key_${type} (mut i32) (i32.const 0))`;
}

/**
 * Copies of `count` times `steps` steps, `skip` bytes apart, each in structs of its own, from struct `i` on; none where those
 * of this key are the last that were made. Key 0 is never there.
 */
function stage(type: string, { stride, rest: [, rest], turns }: Layout): string {
  const [one, list, all] = [`(ref $${type})`, `(ref $list_${type})`, `(global.get $all_${type})`];
  const fields = turns.length + 1;
  const four = `(v128.load ${get("from")})`;
  const copy = (i: number) =>
    turns.map((turn, j) => keep(type, fields * i + j, turn ? rotated(four, turn) : four)).join("") +
    keep(type, fields * (i + 1) - 1, `(${rest} offset=${VECTOR} ${get("from")})`) + add("from", stride);
  return `(func $room_${type} (param $count i32) (local $now ${list}) (local $more ${list}) (local $i i32)
      ${set("now", all)}
      (if (i32.le_u ${get("count")} (array.len ${get("now")})) (then (return)))
      ${set("more", `(array.new $list_${type} (struct.new_default $${type}) ${get("count")})`)}
      (loop $next
        (array.set $list_${type} ${get("more")} ${get("i")}
          (if (result ${one}) (i32.lt_u ${get("i")} (array.len ${get("now")}))
            (then ${at(type, get("now"), "i")}) (else (struct.new_default $${type}))))
        ${add("i", 1)}
        (br_if $next (i32.lt_u ${get("i")} ${get("count")})))
      (global.set $all_${type} ${get("more")}))
    (func (export "stage_${type}") (param $i i32) (param $from i32) (param $count i32) (param $steps i32) (param $skip i32)
      (param $key i32) (local $list ${list}) (local $${type} ${one}) (local $left i32)
      (if (i32.and (i32.ne ${get("key")} (i32.const 0)) (i32.eq ${
    get("key")
  } (global.get $key_${type}))) (then (return)))
      (call $room_${type} (i32.add ${get("i")} (i32.mul ${get("count")}
        (i32.shr_u (i32.add ${get("steps")} (i32.const ${STEPS - 1})) (i32.const ${Math.log2(STEPS)})))))
      ${set("list", all)}
      (loop $each
        ${set("left", get("steps"))}
        ${steps(set(type, at(type, get("list"), "i")) + add("i", 1), copy)}
        ${add("from", get("skip"))}
        (br_if $each (local.tee $count (i32.sub ${get("count")} (i32.const 1)))))
      (global.set $key_${type} ${get("key")}))`;
}

/** What `scaled` reads. */
const SCALED_LOCALS = ["zeros", "scales"].flatMap((name) =>
  ["0", "1", "2", "3", "_last0", "_last1"].map((of) => name + of)
)
  .concat(["w_scale0", "w_scale1", "w_sums0", "w_sums1"]).map((name) => `(local $${name} v128)`).join(" ");

/**
 * Sums of a tile to floats, `out` rows of sixteen: less the zero points of rows times the sums of columns, times the scales
 * of both. They lie as the loop leaves them: lane i of sum j belongs to row i + j, of four; of those beyond four likewise.
 */
function scaled(sum: (i: number) => string, beyond: number): string {
  const two = beyond === 2;
  const last = two ? "v128.load64_splat" : "v128.load32_splat";
  const turn = (i: number) => i < 8 ? i % 4 : (i - 8) >> 1;
  const half = (i: number) => i < 8 ? i >> 2 : i % 2;
  /** Local that holds what the rows of sum i have of it. */
  const of = (name: string, i: number) => get(`${name}${i < 8 ? "" : "_last"}${turn(i)}`);
  const rows = (name: string) => [
    set(`${name}0`, load(name, 0)),
    ...[1, 2, 3].map((j) => set(`${name}${j}`, rotated(get(`${name}${j - 1}`), 1))),
    beyond ? set(`${name}_last0`, load(name, VECTOR, last)) : "",
    two ? set(`${name}_last1`, rotated(get(`${name}_last0`), 1)) : "",
  ];
  const columns = (name: string) => [0, 1].map((h) => set(`${name}${h}`, load(name, VECTOR * h)));
  const floats = (i: number) => {
    const [zeros, scales] = [of("zeros", i), of("scales", i)];
    return descaled(sum(i), zeros, get(`w_sums${half(i)}`), scales, get(`w_scale${half(i)}`));
  };
  const store = (r: number, h: number, value: string) =>
    `(v128.store offset=${4 * VECTOR * r + VECTOR * h} ${get("out")} ${value})`;
  const straight = (r: number, h: number) => {
    const c = (j: number) => get(`c${4 * h + (r + j) % 4}`);
    return store(r, h, lanes(lanes(c(0), c(3), 0, 5, 2, 7), lanes(c(2), c(1), 0, 5, 2, 7), 0, 1, 6, 7));
  };
  const c = (i: number) => set(`c${i}`, floats(i));
  return [
    ...["zeros", "scales"].flatMap(rows),
    ...["w_sums", "w_scale"].flatMap(columns),
    ...[0, 1].flatMap((h) => {
      const [a, b] = [get(`c${8 + h}`), get(`c${10 + h}`)];
      return [
        ...[0, 1, 2, 3].map((j) => c(4 * h + j)),
        ...[0, 1, 2, 3].map((r) => straight(r, h)),
        beyond ? c(8 + h) : "",
        two ? c(10 + h) : "",
        beyond ? store(4, h, two ? lanes(a, b, 0, 5, 2, 7) : a) : "",
        two ? store(5, h, lanes(b, a, 0, 5, 2, 7)) : "",
      ];
    }),
  ].join("\n");
}

/**
 * A tile of `left` steps from structs `row` and `panel` on, or the first four rows of it, to `out`; sums are ordered as
 * `straighten` takes them.
 */
function product(
  { name, rows: layout, add: sum, first, few }: Product,
  ends: Product["ends"][number],
  short = false,
): string {
  const { spread, turns, count } = ROWS[layout];
  const beyond = short ? 0 : count;
  const fields = turns.length + 1;
  const rows = `rows_${layout}`;
  const sums = 8 + 2 * beyond;
  // Sums of more than a struct are cleared instead.
  const long = few && few.steps > STEPS;
  const begins = (i: number) => few && !long && i % few.steps === 0 && first;
  const pair = (i: number, ...pairs: number[]) =>
    pairs.map((c, half) => {
      const [columns, c0] = [get(`b${half}`), `c${c}`];
      return set(c0, begins(i) ? first!(columns, get("a")) : sum(columns, get("a"), get(c0)));
    }).join("\n");
  const rotate = set("a", rotated(get("a"), 1));
  const joined = few && lines(sums, (i) => keep("sums", i, few.join(field("sums", i), get(`c${i}`))));
  const cleared = lines(sums, (i) => set(`c${i}`, "(v128.const i32x4 0 0 0 0)"));
  const step = (i: number) =>
    [
      set("b0", field("panels", 2 * i)),
      set("b1", field("panels", 2 * i + 1)),
      ...[0, 1, 2, 3].flatMap((turn) => {
        const there = turns.indexOf(turn);
        return [there < 0 ? rotate : set("a", field(rows, fields * i + there)), pair(i, turn, turn + 4)];
      }),
      ...(beyond > 0 ? [set("a", spread(field(rows, fields * (i + 1) - 1))), pair(i, 8, 9)] : []),
      ...(beyond > 1 ? [rotate, pair(i, 10, 11)] : []),
      few && (i + 1) % few.steps === 0 ? joined : "",
    ].join("\n");
  const begin = [[rows, "row"], ["panels", "panel"]].map(([of, index]) =>
    set(of, at(of, `(global.get $all_${of})`, index)) + add(index, 1)
  );
  const ended = (i: number) => few ? field("sums", i) : get(`c${i}`);
  const scales = ends === "scaled" ? SCALES + SCALED_LOCALS : "";
  return `(func (export "${ends}_${name}${short ? "_short" : ""}") (param $row i32) (param $panel i32)
    (param $left i32) (param $out i32) ${scales} (local $${rows} (ref $${rows})) (local $panels (ref $panels))
    (local $sums (ref $sums)) (local $structs i32)
    (local $a v128) (local $b0 v128) (local $b1 v128) ${lines(sums, (i) => `(local $c${i} v128)`)}
    ${set("sums", "(global.get $sums)")}
    ${few ? lines(sums, (i) => keep("sums", i, "(v128.const i32x4 0 0 0 0)")) : ""}
    ${
    steps(begin.join("\n"), step, {
      between: long
        ? `(if (i32.eq (local.tee $structs (i32.add ${get("structs")} (i32.const 1)))
          (i32.const ${few.steps / STEPS})) (then ${set("structs", "(i32.const 0)")} ${joined} ${cleared}))`
        : "",
      end: (i) => few && !long && i % few.steps ? joined! : "",
    })
  }
    ${long ? joined : ""}
    ${
    ends === "scaled"
      ? scaled(ended, beyond)
      : lines(sums, (i) => `(v128.store offset=${VECTOR * i} ${get("out")} ${ended(i)})`)
  })`;
}

/** Bytes of the structs of a type, heads included as V8 has them. */
const bytesOf = (type: string, { rest: [, , rest], turns }: Layout) =>
  `(i32.mul (array.len (global.get $all_${type})) (i32.const ${
    VECTOR + STEPS * (VECTOR * turns.length + rest)
  }))`;

/** The module for a build: it takes the memory of the kernels, and has the functions that `wasm/src/tiles.h` names. */
export function tilesModule(build: Build): string {
  const products: readonly Product[] = PRODUCTS[build];
  const used = Object.entries(ROWS).filter(([name]) => products.some((it) => it.rows === name));
  const layouts: [type: string, Layout][] = [
    ["panels", PANELS],
    ...used.map(([name, rows]): [string, Layout] => [`rows_${name}`, rows]),
  ];
  const bytes = layouts.map(([type, layout]) => bytesOf(type, layout));
  return `(module
    (import "kernels" "memory" (memory 0))
    (type $sums (struct ${lines(10, () => "(field (mut v128))")}))
    (global $sums (ref $sums) (struct.new_default $sums))
    ${layouts.map(([type, layout]) => types(type, layout) + stage(type, layout)).join("\n")}
    ${products.flatMap((it) => it.ends.map((ends) => product(it, ends))).join("\n")}
    ${
    products.filter((it) => it.rows === "five" && it.ends.length).map((it) => product(it, "scaled", true))
      .join(
        "\n",
      )
  }
    ${twinsOf(build)}
    (func (export "copies_bytes") (result i32) ${bytes.reduce((sum, one) => `(i32.add ${sum} ${one})`)}))`;
}
