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

/** Steps of a struct, and after how many of one a tile may end. */
const [STEPS, ENDS] = [16, [2, 4, 8, 12]];
const VECTOR = 16;

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
const ROWS: Record<string, Rows> = {
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

/** Rows of a tile of twins: as many as registers hold the sums of. */
const TWIN_ROWS = 12;
const SCALED_TWINS = [4, 8, TWIN_ROWS].map((rows) => ["scaled", rows] as const);
const SUMS_OF_TWINS = ["sums", TWIN_ROWS] as const;

/** How they are multiplied. */
interface Product {
  readonly name: string;
  readonly rows: keyof typeof ROWS;
  /** A sum, to which columns times rows are added. */
  add(columns: string, rows: string, sum: string): string;
  /** Sums that are taken of so many steps only, and then joined with others. */
  readonly few?: { readonly steps: number; join(sum: string, few: string): string };
  /** Columns times rows, where these begin anew. */
  first?(columns: string, rows: string): string;
  /** What its sums end as, of copies. */
  readonly ends: readonly ("sums" | "scaled")[];
  /** The same of twins, and of so many rows; nothing if there are none. */
  readonly twins?: readonly (readonly [ends: Ends, rows: number])[];
}

/**
 * What sums end as: themselves; floats with the scales of rows and columns; or, of a tile whose values are in halves of seven
 * bits, 128 times the sums of the upper ones and those of the lower.
 */
type Ends = "sums" | "scaled" | "halves";

const floats = (add: Product["add"]): Product => ({
  name: "f32",
  rows: "floats",
  ends: ["sums"],
  add,
  few: { steps: 64, join: (sum, few) => `(f32x4.add ${sum} ${few})` },
});

const words = (steps: number): Product => {
  const first = (columns: string, rows: string) => `(i16x8.relaxed_dot_i8x16_i7x16_s ${columns} ${rows})`;
  const join = (sum: string, few: string) => `(i32x4.add ${sum} (i32x4.extadd_pairwise_i16x8_s ${few}))`;
  return {
    name: `words${steps}`,
    rows: "five",
    ends: ["scaled"],
    twins: SCALED_TWINS,
    first,
    add: (columns, rows, sum) => `(i16x8.add ${sum} ${first(columns, rows)})`,
    few: { steps, join },
  };
};

const addWords: Product["add"] = (columns, rows, sum) =>
  `(i32x4.add ${sum} (i32x4.dot_i16x8_s ${columns} ${rows}))`;

/** Of each build; where there is no product of bytes, these are words, and a step is half as many. */
const PRODUCTS = {
  simd: [
    floats((columns, rows, sum) => `(f32x4.add (f32x4.mul ${columns} ${rows}) ${sum})`),
    {
      name: "words",
      rows: "five",
      ends: ["sums", "scaled"],
      twins: [...SCALED_TWINS, SUMS_OF_TWINS],
      add: addWords,
    },
  ],
  relaxed: [
    floats((columns, rows, sum) => `(f32x4.relaxed_madd ${columns} ${rows} ${sum})`),
    { ...words(1), ends: [] },
    words(4),
    words(8),
    { name: "words", rows: "five", ends: [], twins: [SUMS_OF_TWINS], add: addWords },
    {
      name: "dot",
      rows: "six",
      ends: ["sums", "scaled"],
      twins: [...SCALED_TWINS, ["halves", TWIN_ROWS]],
      add: (columns, rows, sum) => `(i32x4.relaxed_dot_i8x16_i7x16_add_s ${columns} ${rows} ${sum})`,
    },
  ],
} satisfies Record<string, Product[]>;

export type Build = keyof typeof PRODUCTS;

const lines = (count: number, line: (i: number) => string) =>
  Array.from({ length: count }, (_, i) => line(i)).join("\n");
const get = (local: string) => `(local.get $${local})`;
const set = (local: string, value: string) => `(local.set $${local} ${value})`;
const add = (local: string, value: number | string) =>
  set(local, `(i32.add ${get(local)} ${typeof value === "string" ? value : `(i32.const ${value})`})`);
/** Field of the struct that the local of its type's name holds. */
const field = (type: string, i: number) => `(struct.get $${type} ${i} ${get(type)})`;
const keep = (type: string, i: number, value: string) => `(struct.set $${type} ${i} ${get(type)} ${value})`;
const at = (type: string, list: string, index: string) => `(array.get $list_${type} ${list} ${get(index)})`;

const load = (name: string, at: number, how = "v128.load") => `(${how} offset=${at} ${get(name)})`;
/** A sum, less the zero point of its rows times the sum of its columns, times the scales of both. */
const descaled = (sum: string, zeros: string, wSums: string, scales: string, wScale: string) =>
  `(f32x4.mul (f32x4.mul (f32x4.convert_i32x4_s (i32x4.sub ${sum} (i32x4.mul ${zeros} ${wSums}))) ${scales}) ${wScale})`;

/** Lanes of two vectors, 32 bits each. */
const lanes = (a: string, b: string, ...of: number[]) =>
  `(i8x16.shuffle ${of.flatMap((lane) => [0, 1, 2, 3].map((i) => 4 * lane + i)).join(" ")} ${a} ${b})`;
const rotated = (value: string, by: number) => lanes(value, value, ...[0, 1, 2, 3].map((i) => (i + by) % 4));

/** Structs of sixteen steps, and as many of them as were ever needed. */
function types(type: string, { rest: [rest], turns }: Layout): string {
  const first = "(field (mut v128))".repeat(turns.length);
  return `(type $${type} (struct ${lines(STEPS, () => `${first} (field (mut ${rest}))`)}))
    (type $list_${type} (array (mut (ref $${type}))))
    (global $all_${type} (mut (ref $list_${type})) (array.new_fixed $list_${type} 0))
    (global $key_${type} (mut i32) (i32.const 0))`;
}

/** $left steps, as many as `ENDS` allows: `begin` for every struct of them, `step`, `between` two structs, `end` within one. */
function steps(
  begin: string,
  step: (i: number) => string,
  { between = "", end = () => "" }: { between?: string; end?: (i: number) => string } = {},
): string {
  const ended = (i: number) =>
    !ENDS.includes(i) ? "" : `(if (i32.eq ${get("left")} (i32.const ${i})) (then ${end(i)} (br $done)))`;
  return `(block $done (loop $next
    ${begin}
    ${lines(STEPS, (i) => step(i) + ended(i + 1))}
    ${add("left", -STEPS)}
    (br_if $done (i32.eqz ${get("left")}))
    ${between}
    (br $next)))`;
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

/** What `scaled` reads. */
const SCALES = ["zeros", "scales", "w_scale", "w_sums"].map((name) => `(param $${name} i32)`).join(" ") +
  ["zeros", "scales"].flatMap((name) => ["0", "1", "2", "3", "_last0", "_last1"].map((of) => name + of))
    .concat(["w_scale0", "w_scale1", "w_sums0", "w_sums1"]).map((name) => `(local $${name} v128)`).join(" ");

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
  const begins = (i: number) => few && i % few.steps === 0 && first;
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
  const long = few && few.steps > STEPS;
  const ended = (i: number) => few ? field("sums", i) : get(`c${i}`);
  const scales = ends === "scaled" ? SCALES : "";
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

/** Two vectors that may be a pair: each of its own first half and itself. */
const paired = (name: string, value: (half: number) => string) =>
  [0, 1].map((h) => set(`${name}${h}`, value(h))).join("") +
  [0, 1].map((h) => get(`${name}${h}`)).map((it, h) =>
    set(`${name}${h}`, `(f64x2.replace_lane 0 ${it} (f64x2.extract_lane 0 ${it}))`)
  ).join("");

/**
 * The first `rows` rows of a tile at $row, of TWIN_ROWS, by the panel at $panel. Such a tile is for an engine that makes one
 * vector of two (V8 with --experimental-wasm-revectorize), and takes little more than half the time there.
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
  const [halves, each, scales] = [[0, 1], Array.from({ length: rows }, (_, r) => r), ends === "scaled"];
  const of = each.flatMap((r) => halves.map((h) => `${r}_${h}`));
  const [parts, sums] = [of.map((it) => `c${it}`), of.map((it) => few ? `s${it}` : `c${it}`)];
  const joined = few ? lines(of.length, (i) => set(sums[i], few.join(get(sums[i]), get(parts[i])))) : "";
  /** Of two rows, which it spreads or trades. */
  const both = (name: string, r: number, spread: string) => set(name, r % 2 ? rotated(get(name), 1) : spread);
  const step = (i: number) => {
    const product = (columns: string, c: string) =>
      set(c, first && i % few!.steps === 0 ? first(columns, get("a")) : sum(columns, get("a"), get(c)));
    return [
      paired("b", (h) => load("panel", VECTOR * h)),
      ...each.flatMap((r) => [
        r % 4 ? "" : set("v", load("row", 4 * r)),
        both("a", r, lanes(get("v"), get("v"), r % 4, r % 4 + 1, r % 4, r % 4 + 1)),
        ...halves.map((h) => product(get(`b${h}`), `c${r}_${h}`)),
      ]),
      add("row", 4 * TWIN_ROWS),
      add("panel", 2 * VECTOR),
      few && (i + 1) % few.steps === 0 ? joined : "",
    ].join("\n");
  };
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
      lanes(get(sums[2 * r + h]), get(sums[2 * (r ^ 1) + h]), 0, 5, 2, 7)
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
  const [halves, sums] = [[0, 1], [0, 1, 2, 3, 4]];
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
  const { add: dot } = PRODUCTS.relaxed.find((it) => it.name === "dot")!;
  const dots = each((it) => set(`s${it}`, dot(get("a0"), get("a0"), get(`s${it}`))), rows);
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
  return `(module ${loop("dot_add", rows, set("a0", splat(0)), dots.repeat(4))} ${
    steps.map(word).join("\n")
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
    ${products.flatMap((it) => (it.twins ?? []).map((of) => twin(it, ...of))).join("\n")}
    ${timeTwins()}
    (func (export "copies_bytes") (result i32) ${bytes.reduce((sum, one) => `(i32.add ${sum} ${one})`)}))`;
}
