/**
 * Tiles for an engine that makes one vector of two (V8 with --experimental-wasm-revectorize): they take little more than half
 * the time there. `tiles.ts` has those for others.
 */

import { type Build, type Ends, type Product, PRODUCTS, TWIN_ROWS, words } from "./products.ts";
import { add, descaled, get, lanes, lines, load, SCALES, set, steps, VECTOR } from "./text.ts";

/** The two halves of a panel. */
const halves = [0, 1];
type Traders = Product["traders"];
const traded = (value: string) => lanes(value, value, 1, 0, 3, 2);
/** Of the eight of a name, those that a sum of row r is of. */
const columnsOf = (traders: Traders, r: number, half: number, name = "b") =>
  get(`${name}${traders === "columns" && r % 2 ? "_traded" : ""}${half}`);
/** What row r, after those before it, makes of a local that two rows share. */
const turned = (traders: Traders, r: number, local: string) =>
  traders === "rows" && r % 2 ? set(local, traded(get(local))) : "";
const chosenLocals = (name: string) =>
  ["0", "1", "_traded0", "_traded1"].map((it) => `(local $${name}${it} v128)`).join(" ");
/**
 * Eight values at $from, 32 bits each, to twins: 0, 1, 4, 5 and 2, 3, 6, 7. Two loads are no pair for the engine, but the halves of
 * one, extended, are, and so is what is chosen of two such pairs.
 */
function chosen(traders: Traders, name: string, from: string): string {
  const wide = (half: number, it: string) => `(i64x2.extend_${half ? "high" : "low"}_i32x4_u ${get(it)})`;
  return [
    set("a", load(from, 0)),
    set("v", load(from, VECTOR)),
    ...halves.map((h) => set(`${name}${h}`, lanes(wide(h, "a"), wide(h, "v"), 0, 2, 4, 6))),
    ...traders === "rows" ? [] : halves.map((h) => set(`${name}_traded${h}`, traded(get(`${name}${h}`)))),
  ].join("\n");
}
/** Columns of a step at $panel to twins. */
const nextColumns = (traders: Traders) => chosen(traders, "b", "panel") + add("panel", 2 * VECTOR);
/** Each of the first `rows` rows of a step at $row to $a, beside its neighbour, and what is done with it for both halves. */
const nextRows = (traders: Traders, rows: number, line: (r: number, half: number) => string) =>
  lines(rows, (r) =>
    [
      r % 4 ? "" : set("v", load("row", 4 * r)),
      r % 2
        ? turned(traders, r, "a")
        : set("a", lanes(get("v"), get("v"), r % 4, r % 4 + 1, r % 4, r % 4 + 1)),
      ...halves.map((h) => line(r, h)),
    ].join("\n")) + add("row", 4 * TWIN_ROWS);
/** A step of so many rows: what becomes of each sum $c. */
const nextProducts = (
  traders: Traders,
  rows: number,
  product: (columns: string, row: string, sum: string) => string,
) =>
  nextColumns(traders) +
  nextRows(traders, rows, (r, h) =>
    set(`c${r}_${h}`, product(columnsOf(traders, r, h), get("a"), get(`c${r}_${h}`))));
/** What a sum is made a float with. */
const OF_COLUMNS = ["w_sums", "w_scale"];
/** What steps are taken with. */
const STEP_LOCALS = `(local $a v128) (local $v v128) ${chosenLocals("b")}`;
/** A line for each sum of so many rows, by its row and half. */
const each = (rows: number, line: (it: string, half: number, r: number) => string) =>
  lines(rows, (r) => halves.map((h) => line(`${r}_${h}`, h, r)).join("\n"));
/** Sums $c joined with $s. */
const joinedBy = (rows: number, join: (sum: string, few: string, half: number, r: number) => string) =>
  each(rows, (it, h, r) => set(`s${it}`, join(get(`s${it}`), get(`c${it}`), h, r)));
const cleared = (name: string) => set(name, "(v128.const i32x4 0 0 0 0)");
/** What the engine finds twins by. */
const found = (a: string, b: string) => `(drop (i32x4.add ${get(a)} ${get(b)}))`;
const foundAll = (of: string, rows: number) => lines(rows, (r) => found(`${of}${r}_0`, `${of}${r}_1`));
/**
 * Stores sums straight, rows so many bytes apart, each two after they are `made`. Of two rows the first has the even lanes of the
 * first sum, and beside each of them one of the second sum's; the second row has the others.
 */
const stored = (traders: Traders, of: string, rows: number, apart: number, made = (_: number) => "") =>
  lines(rows, (r) => {
    const [own, other] = [r, r ^ 1].map((it) => (h: number) => get(`${of}${it}_${h}`));
    const [i, j] = traders === "rows" ? [0, 1] : [r % 2, r % 2];
    return [
      r % 2 ? "" : made(r),
      ...["a", "v"].map((to, h) => set(to, lanes(own(h), other(h), i, 2 + i, 4 + j, 6 + j))),
      found("a", "v"),
      ...halves.map((h) =>
        `(v128.store offset=${apart * r + VECTOR * h} ${get("out")} ${
          lanes(get("a"), get("v"), h, 2 + h, 4 + h, 6 + h)
        })`
      ),
    ].join("\n");
  });

/**
 * The first `rows` rows of a tile at $row, of TWIN_ROWS, by the panel at $panel.
 *
 * Twins are two sums of the same row, and all they are made of. The engine looks for an addition of two vectors that are made
 * alike, and from there on for the same operations in pairs. So such an addition is there, though nobody wants its result.
 * Two loads, or two fields of a struct, it does not take for a pair, for it looks at the address of each: `chosen` tells what is
 * done instead. Of two rows that are spread from a loaded vector it makes one load. As addresses are looked at all the same,
 * nothing is copied. So a step is 31 instructions where products are dot-adds, 12 of them.
 */
function twin(product: Product, ends: Ends, rows: number): string {
  const { name, add: sum, first, few, traders } = product;
  const [sums, scales] = [few ? "s" : "c", ends === "scaled"];
  const joined = few ? joinedBy(rows, few.join) : "";
  const step = (i: number) =>
    nextProducts(traders, rows, first && i % few!.steps === 0 ? first : sum) +
    (few && (i + 1) % few.steps === 0 ? joined : "");
  const all = steps("", step, { end: (i) => few && i % few.steps ? joined : "" });
  const floats = (r: number, h: number) => {
    const c = `${sums}${r}_${h}`;
    const [wSums, wScale] = OF_COLUMNS.map((name) => columnsOf(traders, r, h, name));
    return set(c, descaled(get(c), get("zero"), wSums, get("scale"), wScale));
  };
  const twoRows = (r: number) =>
    [
      ...[["zero", "zeros"], ["scale", "scales"]].map(([to, from]) =>
        set(to, load(from, 4 * r, "v128.load64_splat"))
      ),
      ...[r, r + 1].flatMap((it) => [
        ...["zero", "scale"].map((local) => turned(traders, it, local)),
        ...halves.map((h) => floats(it, h)),
      ]),
    ].join("\n");
  const twice = () =>
    `${set("first", get("panel"))} ${set("steps", get("left"))}
    (block $end (loop $again
      ${all}
      (br_if $end (i32.eqz ${get("low")}))
      ${each(rows, (it) => set(`c${it}`, `(i32x4.shl ${get(`c${it}`)} (i32.const 7))`))}
      ${set("row", get("low"))} ${set("panel", get("first"))} ${set("left", get("steps"))}
      ${set("low", "(i32.const 0)")}
      (br $again)))`;
  return `(func (export "${ends}_${name}_twin${rows}") (param $row i32) (param $panel i32) (param $left i32)
    (param $out i32)
    ${scales ? SCALES : ends === "halves" ? "(param $low i32) (local $first i32) (local $steps i32)" : ""}
    (local $zero v128) (local $scale v128) ${OF_COLUMNS.map(chosenLocals).join(" ")}
    ${STEP_LOCALS}
    ${each(rows, (it) => `(local $c${it} v128)`)} ${few ? each(rows, (it) => `(local $s${it} v128)`) : ""}
    ${ends === "halves" ? twice() : all}
    ${scales ? OF_COLUMNS.map((name) => chosen(traders, name, name)).join("\n") : ""}
    ${stored(traders, sums, rows, (scales ? 4 : 2) * VECTOR, scales ? twoRows : undefined)})`;
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
 * A function whose `body` leaves in $c the sums of as many of $left as `count` says, or of those that remain. They are added up
 * in $s, these after `many` in f64, of which it makes floats in the end, straight, rows of sixteen.
 */
function wide(
  traders: Traders,
  name: string,
  rows: number,
  few: { readonly count: number; readonly body: string; readonly join: Parameters<typeof joinedBy>[1] },
  many: number,
  low: string,
): string {
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
  const some = few.body + joinedBy(rows, few.join);
  const all = inTurns("some", few.count, some) + foundAll("s", rows) + each(rows, gather) +
    each(rows, (it) => cleared(`s${it}`));
  return `(func (export "${name}_twin${rows}") (param $row i32) (param $panel i32) (param $left i32) (param $out i32)
    ${STEP_LOCALS} (local $some i32) (local $many i32)
    ${each(rows, (it) => ["c", "s", "l", "h"].map((of) => `(local $${of}${it} v128)`).join(" "))}
    ${inTurns("many", many, all)}
    ${each(rows, narrow)}
    ${stored(traders, "s", rows, 4 * VECTOR)})`;
}

/**
 * Sums of floats as `attention.c` takes them: of $first steps, any number, then of $block steps each, until $left are done, added up
 * in f32. Straight, rows of eight.
 */
function blockTwins(product: Product): string {
  const { name, add: sum, few, traders } = product, rows = TWIN_ROWS;
  const step = nextProducts(traders, rows, sum);
  const some = (count: number) =>
    `(block $done${count} (loop $next${count}
      (br_if $done${count} (i32.lt_u ${get("first")} (i32.const ${count})))
      ${step.repeat(count)} ${add("first", -count)}
      (br $next${count})))`;
  return `(func (export "blocks_${name}_twin${rows}") (param $row i32) (param $panel i32) (param $left i32)
    (param $first i32) (param $block i32) (param $out i32)
    ${STEP_LOCALS} ${each(rows, (it) => `(local $c${it} v128) (local $s${it} v128)`)}
    (block $end (loop $again
      (if (i32.gt_u ${get("first")} ${get("left")}) (then ${set("first", get("left"))}))
      ${set("left", `(i32.sub ${get("left")} ${get("first")})`)}
      ${some(4)} ${some(1)}
      ${joinedBy(rows, few!.join)}
      ${each(rows, (it) => cleared(`c${it}`))}
      ${set("first", get("block"))}
      (br_if $end (i32.eqz ${get("left")}))
      (br $again)))
    ${stored(traders, "s", rows, 2 * VECTOR)})`;
}

/** Of floats: what `f32.c` says of its sums. $left: values of k, a multiple of four. */
function floatTwins(product: Product, rows: number): string {
  const { name, first, add: sum, few, traders } = product;
  const { steps: count, join } = few!;
  const next = () => nextProducts(traders, rows, sum);
  // A chain begins with products alone: sums that were cleared for it would cost a twentieth of the time.
  const body = nextProducts(traders, rows, first!) + lines(3, next) + add("left", -4) +
    `(if ${get("left")} (then ${steps("", next)}))`;
  return wide(traders, name, rows, { count, body, join }, 4 * count, "f64x2.promote_low_f32x4");
}

/**
 * Of int4 weights, of $left groups. Where a product of bytes leaves sums in 16 bits, those of a group just fit. A group of rows
 * begins with a step of words that the sums begin with, a group of columns ends with its scales, each twice. As many groups go to
 * f64 at once as GROUPS of `wasm/src/dots.h`.
 */
function groupTwins(): string {
  // Rows are the operand of eight bits here, nibbles that of seven.
  const { add: sum, traders } = words(8);
  const body = [
    nextRows(traders, TWIN_ROWS, (r, h) => set(`c${r}_${h}`, get("a"))),
    lines(8, () => nextProducts(traders, TWIN_ROWS, (columns, row, c) => sum(row, columns, c))),
    nextColumns(traders),
    add("left", -1),
  ].join("\n");
  const join = (sum: string, few: string, half: number, r: number) =>
    `(i32x4.add ${sum} (i32x4.dot_i16x8_s ${few} ${columnsOf(traders, r, half)}))`;
  return wide(traders, "int4", TWIN_ROWS, { count: 1, body, join }, 64, "f64x2.convert_low_i32x4_s");
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
 * Whether the engine makes one vector of two cannot be seen, but timed: `turns` turns of the same shifts of seven pairs, or of as
 * many that are no pairs. All of them stay in registers either way: what is stored and loaded again may take twice the time for
 * thousands of turns, and then again may not. Shifts, as processors have few places for them, and their results are soon there.
 */
function timeTwins(): string {
  const pairs = 7;
  const values = Array.from({ length: 2 * pairs }, (_, i) => `c${i}`);
  const turn = values.map((c) => set(c, `(i32x4.shl ${get(c)} (i32.const 1))`)).join("\n").repeat(4) +
    add("turns", -1);
  // Two ways out, so that what the pairs are taken apart for is not done in every turn.
  const loop = (name: string) =>
    `(block $${name} (loop $next_${name}
      ${turn} (br_if $${name} (i32.eqz ${get("turns")}))
      ${turn} (br_if $next_${name} ${get("turns")})))`;
  const fold = (op: string) =>
    lines(
      pairs,
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

/** Two vectors that may be a pair: each of its own first half and itself. */
const paired = (name: string, value: (half: number) => string) =>
  halves.map((h) => set(`${name}${h}`, value(h))).join("") +
  halves.map((h) => get(`${name}${h}`)).map((it, h) =>
    set(`${name}${h}`, `(f64x2.replace_lane 0 ${it} (f64x2.extract_lane 0 ${it}))`)
  ).join("");

/**
 * Loops with nothing in them but products of twins, for the benchmark: what `wasm/limits.c` has of single vectors, of the same
 * names. `steps`: which sums in 16 bits.
 */
export function limitsModule(steps: readonly number[]): string {
  const loop = (name: string, sums: number, begin: string, turn: string) =>
    `(func (export "${name}_twins") (param $turns i32) (param $seed i32) (result i32) (local $a0 v128) (local $a1 v128)
      ${each(sums, (it) => `(local $b${it} v128) (local $c${it} v128) (local $s${it} v128)`)}
      ${begin}
      (block $done (loop $next
        ${turn} ${add("turns", -1)} (br_if $done (i32.eqz ${get("turns")}))
        ${turn} ${add("turns", -1)} (br_if $next ${get("turns")})))
      ${
      lines(sums, (i) => set("a0", `(v128.xor ${get("a0")} (i32x4.add ${get(`s${i}_0`)} ${get(`s${i}_1`)}))`))
    }
      (i32x4.extract_lane 0 ${get("a0")}))`;
  const splat = (add: number) => `(i8x16.splat (i32.add ${get("seed")} (i32.const ${add})))`;
  const alone = (name: string, of: string, a0: string) => {
    const { add: sum } = PRODUCTS.relaxed.find((it) => it.name === of)!;
    const turn = each(TWIN_ROWS, (it) => set(`s${it}`, sum(get("a0"), get("a0"), get(`s${it}`))));
    return loop(name, TWIN_ROWS, set("a0", a0), turn.repeat(4));
  };
  const word = (count: number) => {
    const sums = 5;
    const { add: sum, first, few } = words(count);
    // No product may occur twice, or the engine computes it once: operands trade places, then one of them changes.
    const step = (i: number) => {
      const operands = (it: string, h: number) =>
        i % 2 ? [get(`b${it}`), get(`a${h}`)] : [get(`a${h}`), get(`b${it}`)];
      const product = (it: string, h: number): string => {
        const [x, y] = operands(it, h);
        return set(`c${it}`, i % count ? sum(x, y, get(`c${it}`)) : first!(x, y));
      };
      const joined = (i + 1) % count ? "" : joinedBy(sums, few!.join);
      const next = i % 2
        ? halves.map((h) => set(`a${h}`, `(i8x16.add ${get(`a${h}`)} ${get(`b0_${h}`)})`)).join("")
        : "";
      return each(sums, product) + joined + next;
    };
    const begin = paired("a", splat) + lines(sums, (i) => paired(`b${i}_`, (h) => splat(2 * i + h)));
    return loop(`words_${count}`, sums, begin, lines(16, step));
  };
  const float = `(f32x4.splat (f32.convert_i32_s ${get("seed")}))`;
  return `(module ${alone("dot_add", "dot", splat(0))} ${alone("multiply_add", "f32", float)}
    ${steps.map(word).join("\n")})`;
}
