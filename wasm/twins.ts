/**
 * Tiles for an engine that makes one vector of two (V8 with --experimental-wasm-revectorize): they take little more than half
 * the time there. `tiles.ts` has those for others.
 */

import { type Build, type Ends, type Product, PRODUCTS, TWIN_ROWS, words } from "./products.ts";
import { add, descaled, get, lanes, lines, load, rotated, SCALES, set, steps, VECTOR } from "./text.ts";

/** Two vectors that may be a pair: each of its own first half and itself. */
const paired = (name: string, value: (half: number) => string) =>
  [0, 1].map((h) => set(`${name}${h}`, value(h))).join("") +
  [0, 1].map((h) => get(`${name}${h}`)).map((it, h) =>
    set(`${name}${h}`, `(f64x2.replace_lane 0 ${it} (f64x2.extract_lane 0 ${it}))`)
  ).join("");

/** The two halves of a panel. */
const halves = [0, 1];
/** Of two rows, which it spreads or trades. */
const both = (name: string, r: number, spread: string) => set(name, r % 2 ? rotated(get(name), 1) : spread);
/** Columns of a step at $panel to twins $b0 and $b1. */
const nextColumns = () => paired("b", (h) => load("panel", VECTOR * h)) + add("panel", 2 * VECTOR);
/** Each of the first `rows` rows of a step at $row to $a, and what is done with it for both halves. */
const nextRows = (rows: number, line: (r: number, half: number) => string) =>
  lines(rows, (r) =>
    [
      r % 4 ? "" : set("v", load("row", 4 * r)),
      both("a", r, lanes(get("v"), get("v"), r % 4, r % 4 + 1, r % 4, r % 4 + 1)),
      ...halves.map((h) => line(r, h)),
    ].join("\n")) + add("row", 4 * TWIN_ROWS);
/** Two rows' sums, straight. */
const straightRow = (sum: (r: number) => string, r: number) => lanes(sum(r), sum(r ^ 1), 0, 5, 2, 7);

/**
 * The first `rows` rows of a tile at $row, of TWIN_ROWS, by the panel at $panel.
 *
 * Twins are two sums of the same row, and all they are made of. The engine looks for an addition of two vectors that are made
 * alike, and from there on for the same operations in pairs. So such an addition is there, though nobody wants its result.
 * Two loads, or two fields of a struct, it does not take for a pair, for it looks at the address of each; two vectors of which
 * a lane was replaced it does. Of two rows that are spread from a loaded vector it makes one load. As addresses are looked at
 * all the same, nothing is copied.
 *
 * Of two rows the even lanes of the first sum belong to the first, of the second to the second. They leave straight.
 */
function twin({ name, add: sum, first, few }: Product, ends: Ends, rows: number): string {
  const [each, scales] = [Array.from({ length: rows }, (_, r) => r), ends === "scaled"];
  const of = each.flatMap((r) => halves.map((h) => `${r}_${h}`));
  const [parts, sums] = [of.map((it) => `c${it}`), of.map((it) => few ? `s${it}` : `c${it}`)];
  const joined = few ? lines(of.length, (i) => set(sums[i], few.join(get(sums[i]), get(parts[i])))) : "";
  const step = (i: number) =>
    nextColumns() +
    nextRows(rows, (r, h) => {
      const [columns, c] = [get(`b${h}`), `c${r}_${h}`];
      return set(
        c,
        first && i % few!.steps === 0 ? first(columns, get("a")) : sum(columns, get("a"), get(c)),
      );
    }) +
    (few && (i + 1) % few.steps === 0 ? joined : "");
  const all = steps("", step, { end: (i) => few && i % few.steps ? joined : "" });
  const floats = (c: string, h: number) =>
    set(c, descaled(get(c), get("zeros0"), get(`w_sums${h}`), get("scales0"), get(`w_scale${h}`)));
  const allFloats = () =>
    [
      ...["w_sums", "w_scale"].map((name) => paired(name, (h) => load(name, VECTOR * h))),
      ...each.flatMap((r) => [
        ...["zeros", "scales"].map((name) => both(`${name}0`, r, load(name, 4 * r, "v128.load64_splat"))),
        ...halves.map((h) => floats(sums[2 * r + h], h)),
      ]),
    ].join("\n");
  const width = scales ? 4 * VECTOR : 2 * VECTOR;
  const twice = () =>
    `${set("first", get("panel"))} ${set("steps", get("left"))}
    (block $end (loop $again
      ${all}
      (br_if $end (i32.eqz ${get("low")}))
      ${sums.map((c) => set(c, `(i32x4.shl ${get(c)} (i32.const 7))`)).join("\n")}
      ${set("row", get("low"))} ${set("panel", get("first"))} ${set("left", get("steps"))}
      ${set("low", "(i32.const 0)")}
      (br $again)))`;
  const store = (r: number, h: number) =>
    `(v128.store offset=${width * r + VECTOR * h} ${get("out")} ${
      straightRow((r) => get(sums[2 * r + h]), r)
    })`;
  return `(func (export "${ends}_${name}_twin${rows}") (param $row i32) (param $panel i32) (param $left i32)
    (param $out i32)
    ${scales ? SCALES : ends === "halves" ? "(param $low i32) (local $first i32) (local $steps i32)" : ""}
    (local $a v128) (local $b0 v128) (local $b1 v128) (local $v v128)
    ${[...new Set([...parts, ...sums])].map((it) => `(local $${it} v128)`).join(" ")}
    ${ends === "halves" ? twice() : all}
    ${scales ? allFloats() : ""}
    ${each.map((r) => `(drop (i32x4.add ${get(sums[2 * r])} ${get(sums[2 * r + 1])}))`).join("\n")}
    ${each.flatMap((r) => halves.map((h) => store(r, h))).join("\n")})`;
}

/** `body` again and again, each time with `count` of $left, or those that remain, of which it leaves none. */
const inTurns = (name: string, count: number, body: string) =>
  `(block $${name}_end (loop $${name}
    ${set(name, `(i32.sub ${get("left")} (i32.const ${count}))`)}
    (if (i32.gt_s ${get(name)} (i32.const 0)) (then ${set("left", `(i32.const ${count})`)}))
    ${body}
    ${set("left", get(name))}
    (br_if $${name}_end (i32.le_s ${get(name)} (i32.const 0)))
    (br $${name})))`;

/**
 * A function that adds up products in $c, these in $s after `some` of $left, and these in f64 after `many`, and makes one float of
 * each in the end, straight, rows of sixteen.
 */
function wide(
  name: string,
  rows: number,
  few: { readonly count: number; readonly body: string; readonly join: (it: string) => string },
  many: number,
  low: string,
): string {
  const all = Array.from({ length: rows }, (_, r) => halves.map((h) => `${r}_${h}`)).flat();
  const each = (line: (it: string) => string) => all.map(line).join("\n");
  const zero = (it: string) => set(it, "(v128.const i32x4 0 0 0 0)");
  const gather = (it: string) => {
    const [high, s] = [lanes(get(`s${it}`), get(`s${it}`), 2, 3, 2, 3), get(`s${it}`)];
    return [["l", s], ["h", high]].map(([d, half]) =>
      set(`${d}${it}`, `(f64x2.add ${get(`${d}${it}`)} (${low} ${half}))`)
    ).join("");
  };
  const narrow = (it: string) => {
    const [l, h] = ["l", "h"].map((d) => `(f32x4.demote_f64x2_zero ${get(`${d}${it}`)})`);
    return set(`s${it}`, lanes(l, h, 0, 1, 4, 5));
  };
  const some = inTurns("some", few.count, few.body + each(few.join) + each((it) => zero(`c${it}`)));
  const store = (r: number, h: number) =>
    `(v128.store offset=${4 * VECTOR * r + VECTOR * h} ${get("out")} ${
      straightRow((r) => get(`s${r}_${h}`), r)
    })`;
  const pairs = each((it) =>
    it.endsWith("0") ? `(drop (i32x4.add ${get(`s${it}`)} ${get(`s${it.slice(0, -1)}1`)}))` : ""
  );
  return `(func (export "${name}_twin${rows}") (param $row i32) (param $panel i32) (param $left i32) (param $out i32)
    (local $a v128) (local $b0 v128) (local $b1 v128) (local $v v128) (local $some i32) (local $many i32)
    ${each((it) => ["c", "s", "l", "h"].map((of) => `(local $${of}${it} v128)`).join(" "))}
    ${inTurns("many", many, some + pairs + each(gather) + each((it) => zero(`s${it}`)))}
    ${each(narrow)}
    ${lines(2 * rows, (i) => store(i >> 1, i % 2))})`;
}

/**
 * Sums of floats as `attention.c` takes them: of $first steps, any number, then of $block steps each, until $left are done, added up
 * in f32. Straight, rows of eight.
 */
function blockTwins({ name, add: sum }: Product): string {
  const all = Array.from({ length: TWIN_ROWS }, (_, r) => halves.map((h) => `${r}_${h}`)).flat();
  const each = (line: (it: string) => string) => all.map(line).join("\n");
  const step = nextColumns() +
    nextRows(TWIN_ROWS, (r, h) => set(`c${r}_${h}`, sum(get(`b${h}`), get("a"), get(`c${r}_${h}`))));
  const some = (count: number) =>
    `(block $done${count} (loop $next${count}
      (br_if $done${count} (i32.lt_u ${get("first")} (i32.const ${count})))
      ${step.repeat(count)} ${add("first", -count)}
      (br $next${count})))`;
  return `(func (export "blocks_${name}_twin${TWIN_ROWS}") (param $row i32) (param $panel i32) (param $left i32)
    (param $first i32) (param $block i32) (param $out i32)
    (local $a v128) (local $b0 v128) (local $b1 v128) (local $v v128)
    ${each((it) => `(local $c${it} v128) (local $s${it} v128)`)}
    (block $end (loop $again
      (if (i32.gt_u ${get("first")} ${get("left")}) (then ${set("first", get("left"))}))
      ${set("left", `(i32.sub ${get("left")} ${get("first")})`)}
      ${some(4)} ${some(1)}
      ${each((it) => set(`s${it}`, `(f32x4.add ${get(`s${it}`)} ${get(`c${it}`)})`))}
      ${each((it) => set(`c${it}`, "(v128.const i32x4 0 0 0 0)"))}
      ${set("first", get("block"))}
      (br_if $end (i32.eqz ${get("left")}))
      (br $again)))
    ${
    each((it) => it.endsWith("0") ? `(drop (i32x4.add ${get(`s${it}`)} ${get(`s${it.slice(0, -1)}1`)}))` : "")
  }
    ${
    lines(2 * TWIN_ROWS, (i) => {
      const h = i % 2;
      return `(v128.store offset=${VECTOR * i} ${get("out")} ${
        straightRow((r) => get(`s${r}_${h}`), i >> 1)
      })`;
    })
  })`;
}

/** Of floats: what `f32.c` says of its sums. $left: values of k, a multiple of four. */
function floatTwins({ name, add: sum, few }: Product, rows: number): string {
  const step = () =>
    nextColumns() +
    nextRows(rows, (r, h) => set(`c${r}_${h}`, sum(get(`b${h}`), get("a"), get(`c${r}_${h}`))));
  const join = (it: string) => set(`s${it}`, few!.join(get(`s${it}`), get(`c${it}`)));
  return wide(
    name,
    rows,
    { count: few!.steps, body: steps("", step), join },
    4 * few!.steps,
    "f64x2.promote_low_f32x4",
  );
}

/**
 * Of int4 weights, of $left groups. Where a product of bytes leaves sums in 16 bits, those of a group just fit. A group of rows
 * begins with a step of words that the sums begin with, a group of columns ends with its scales, each twice. As many groups go to
 * f64 at once as GROUPS of `wasm/src/dots.h`.
 */
function groupTwins(): string {
  const dot = (columns: string) => `(i16x8.relaxed_dot_i8x16_i7x16_s ${get("a")} ${columns})`;
  const body = [
    nextRows(TWIN_ROWS, (r, h) => set(`c${r}_${h}`, get("a"))),
    lines(8, () =>
      nextColumns() +
      nextRows(TWIN_ROWS, (r, h) =>
        set(`c${r}_${h}`, `(i16x8.add ${get(`c${r}_${h}`)} ${dot(get(`b${h}`))})`))),
    nextColumns(),
    add("left", -1),
  ].join("\n");
  const join = (it: string) =>
    set(
      `s${it}`,
      `(i32x4.add ${get(`s${it}`)} (i32x4.dot_i16x8_s ${get(`c${it}`)} ${get(`b${it.at(-1)}`)}))`,
    );
  return wide("int4", TWIN_ROWS, { count: 1, body, join }, 64, "f64x2.convert_low_i32x4_s");
}

/** All of a build, and what times them. */
export function twinsOf(build: Build): string {
  const products: readonly Product[] = PRODUCTS[build];
  return `${products.flatMap((it) => (it.twins ?? []).map((of) => twin(it, ...of))).join("\n")}
    ${
    products.filter((it) => it.rows === "floats").flatMap((it) => [
      ...[4, TWIN_ROWS].map((rows) => floatTwins(it, rows)),
      blockTwins(it),
    ]).join("\n")
  }
    ${build === "relaxed" ? groupTwins() : ""}
    ${timeTwins()}`;
}

/**
 * Whether the engine makes one vector of two cannot be seen, but timed: `turns` turns of the same work, of twelve pairs, or of
 * as many that are no pairs.
 */
function timeTwins(): string {
  const values = Array.from({ length: 2 * TWIN_ROWS }, (_, i) => `c${i}`);
  const turn = values.map((c) => set(c, `(i32x4.dot_i16x8_s ${get("a")} ${get(c)})`)).join("\n") +
    add("turns", -1);
  // Two ways out, so that what the pairs are taken apart for is not done in every turn.
  const loop = (name: string) =>
    `(block $${name} (loop $next_${name}
      ${turn} (br_if $${name} (i32.eqz ${get("turns")}))
      ${turn} (br_if $next_${name} ${get("turns")})))`;
  const fold = (op: string) =>
    lines(
      TWIN_ROWS,
      (i) => set("a", `(v128.xor ${get("a")} (${op} ${get(`c${2 * i}`)} ${get(`c${2 * i + 1}`)}))`),
    );
  return `(func (export "time_twins") (param $turns i32) (param $pairs i32) (result i32) (local $a v128)
    ${values.map((c) => `(local $${c} v128)`).join(" ")}
    ${set("a", `(i32x4.splat ${get("turns")})`)}
    (if ${get("pairs")} (then ${loop("pairs")} ${fold("i32x4.add")}) (else ${loop("single")} ${
    fold("v128.xor")
  }))
    (i32x4.extract_lane 0 ${get("a")}))`;
}

/**
 * Loops with nothing in them but products of twins, for the benchmark: what `wasm/limits.c` has of single vectors, of the same
 * names. `steps`: which sums in 16 bits.
 */
export function limitsModule(steps: readonly number[]): string {
  const sums = [0, 1, 2, 3, 4];
  const each = (line: (c: string, h: number) => string, of = sums) =>
    of.flatMap((i) => halves.map((h) => line(`${i}_${h}`, h))).join("\n");
  const loop = (name: string, of: number[], begin: string, turn: string) =>
    `(func (export "${name}_twins") (param $turns i32) (param $seed i32) (result i32) (local $a0 v128) (local $a1 v128)
      ${each((it) => `(local $b${it} v128) (local $c${it} v128) (local $s${it} v128)`, of)}
      ${begin}
      (block $done (loop $next
        ${turn} ${add("turns", -1)} (br_if $done (i32.eqz ${get("turns")}))
        ${turn} ${add("turns", -1)} (br_if $next ${get("turns")})))
      ${
      of.map((i) => set("a0", `(v128.xor ${get("a0")} (i32x4.add ${get(`s${i}_0`)} ${get(`s${i}_1`)}))`))
        .join("\n")
    }
      (i32x4.extract_lane 0 ${get("a0")}))`;
  const splat = (add: number) => `(i8x16.splat (i32.add ${get("seed")} (i32.const ${add})))`;
  const rows = Array.from({ length: TWIN_ROWS }, (_, i) => i);
  const alone = (name: string, of: string, a0: string) => {
    const { add: sum } = PRODUCTS.relaxed.find((it) => it.name === of)!;
    const turn = each((it) => set(`s${it}`, sum(get("a0"), get("a0"), get(`s${it}`))), rows);
    return loop(name, rows, set("a0", a0), turn.repeat(4));
  };
  const word = (count: number) => {
    const { add: sum, first, few } = words(count);
    // No product may occur twice, or the engine computes it once: operands trade places, then one of them changes.
    const step = (i: number) => {
      const operands = (it: string, h: number) =>
        i % 2 ? [get(`b${it}`), get(`a${h}`)] : [get(`a${h}`), get(`b${it}`)];
      const product = (it: string, h: number): string => {
        const [x, y] = operands(it, h);
        return set(`c${it}`, i % count ? sum(x, y, get(`c${it}`)) : first!(x, y));
      };
      const joined = (i + 1) % count
        ? ""
        : each((it) => set(`s${it}`, few!.join(get(`s${it}`), get(`c${it}`))));
      const next = i % 2
        ? halves.map((h) => set(`a${h}`, `(i8x16.add ${get(`a${h}`)} ${get(`b0_${h}`)})`)).join("")
        : "";
      return each(product) + joined + next;
    };
    const begin = paired("a", splat) + sums.map((i) => paired(`b${i}_`, (h) => splat(2 * i + h))).join("");
    return loop(`words_${count}`, sums, begin, lines(16, step));
  };
  const float = `(f32x4.splat (f32.convert_i32_s ${get("seed")}))`;
  return `(module ${alone("dot_add", "dot", splat(0))} ${alone("multiply_add", "f32", float)}
    ${steps.map(word).join("\n")})`;
}
