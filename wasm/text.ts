/** Words of WebAssembly text that the loops of `tiles.ts` and `twins.ts` are put together from. */

/** Steps of a struct, and after how many of one a tile may end. */
export const STEPS = 16;
const ENDS = [2, 4, 8, 12];
/** Bytes. */
export const VECTOR = 16;

export const lines = (count: number, line: (i: number) => string) =>
  Array.from({ length: count }, (_, i) => line(i)).join("\n");
export const get = (local: string) => `(local.get $${local})`;
export const set = (local: string, value: string) => `(local.set $${local} ${value})`;
export const add = (local: string, value: number | string) =>
  set(local, `(i32.add ${get(local)} ${typeof value === "string" ? value : `(i32.const ${value})`})`);
export const load = (name: string, at: number, how = "v128.load") => `(${how} offset=${at} ${get(name)})`;
/** A sum, less the zero point of its rows times the sum of its columns, times the scales of both. */
export const descaled = (sum: string, zeros: string, wSums: string, scales: string, wScale: string) =>
  `(f32x4.mul (f32x4.mul (f32x4.convert_i32x4_s (i32x4.sub ${sum} (i32x4.mul ${zeros} ${wSums}))) ${scales}) ${wScale})`;

/** Lanes of two vectors, 32 bits each. */
export const lanes = (a: string, b: string, ...of: number[]) =>
  `(i8x16.shuffle ${of.flatMap((lane) => [0, 1, 2, 3].map((i) => 4 * lane + i)).join(" ")} ${a} ${b})`;
export const rotated = (value: string, by: number) =>
  lanes(value, value, ...[0, 1, 2, 3].map((i) => (i + by) % 4));

/** $left steps, as many as `ENDS` allows: `begin` for every struct of them, `step`, `between` two structs, `end` within one. */
export function steps(
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

/** Where the zero points and scales of rows are, and the scales and sums of columns. */
export const SCALES = ["zeros", "scales", "w_scale", "w_sums"].map((name) => `(param $${name} i32)`).join(
  " ",
);
