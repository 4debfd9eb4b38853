// Operands of products of the same rows with matrices, or with those of their columns that one buffer holds, and how they
// end.

/// What one matrix gives.
struct Segment {
  /// The first workgroup, along x, of this matrix.
  group: u32,
  /// Where its panels begin in `weights`.
  base: u32,
  /// Columns in this buffer, and the first of them among all.
  n: u32,
  column: u32,
  /// Word of its scales in `weights`.
  scales: u32,
  out: u32,
  out_stride: u32,
  bias: u32,
}

struct Params {
  /// f32 weights: activations in the arena.
  x: u32,
  x_stride: u32,
  rows: u32,
  /// Steps along K: of one for f32, of four for integers.
  steps: u32,
  /// Word of the scales in `side`.
  x_scales: u32,
  residual: u32,
  residual_stride: u32,
  finish: u32,
  segments: array<Segment, 3>,
}

/// Integers: activations as quantise.wgsl leaves them.
@group(0) @binding(2) var<storage, read> side: array<vec4<u32>>;
/// Panels of 8 columns as in layout.ts, f32 [N/8][K][8] likewise; then for integers one f32 scale a column.
@group(0) @binding(3) var<storage, read> weights: array<vec4<u32>>;

const PLAIN = 0u;
const GELU = 1u;
const MULTIPLY = 2u;

/// What a workgroup is for.
fn segment(group: u32) -> Segment {
  if (group >= p.segments[2].group) { return p.segments[2]; }
  if (group >= p.segments[1].group) { return p.segments[1]; }
  return p.segments[0];
}

/// Where a panel begins in `weights`: two vectors for each step, in int4 nine for each group of eight.
fn panel_at(first: u32, panel: u32) -> u32 {
  return first + panel * select(p.steps / 8 * 9, p.steps * 2, SCHEME == F32 || SCHEME == INT8);
}

fn word_of_side(at: u32) -> u32 {
  return side[at / 4][at % 4];
}

fn word_of_weights(at: u32) -> u32 {
  return weights[at / 4][at % 4];
}

/// Nibbles of four columns, each standing 8 too high, as s8.
fn lowered(nibbles: u32) -> u32 {
  let twos = nibbles ^ 0x08080808u;
  return twos | ((twos & 0x08080808u) * 30u);
}

/// Group scales of eight columns: of the first four and of the others.
fn group_scales(words: vec4<u32>, first: u32) -> vec4<i32> {
  let pair = select(words.zw, words.xy, first == 0);
  return bitcast<vec4<i32>>(vec4<u32>(pair.x << 16, pair.x, pair.y << 16, pair.y)) >> vec4<u32>(16);
}

/// What a sum of integers or floats comes to.
fn scaled(s: Segment, row: u32, n: u32, sum: f32) -> f32 {
  if (SCHEME == F32) { return sum; }
  return sum * bitcast<f32>(word_of_side(p.x_scales + row)) * bitcast<f32>(word_of_weights(s.scales + n));
}

/// Writes out[row, n], which is there.
fn write(s: Segment, row: u32, n: u32, sum: f32) {
  let column = s.column + n;
  var y = scaled(s, row, n, sum);
  if (s.bias != NONE) { y += load(s.bias + column); }
  if (p.finish == GELU) { y = gelu(y); }
  let to = s.out + row * s.out_stride + column;
  if (p.finish == MULTIPLY) { y *= load(to); }
  if (p.residual != NONE) { y += load(p.residual + row * p.residual_stride + column); }
  store(to, y);
}

/// Writes GeGLU's out[row, n], which is there, from the sums of the first two matrices.
fn write_gated(row: u32, n: u32, gate: f32, up: f32) {
  let s = p.segments[0];
  store(s.out + row * s.out_stride + n, gelu(scaled(s, row, n, gate)) * scaled(p.segments[1], row, n, up));
}

/// Writes what is there of four rows and four columns. The bounds keep drivers from writing this out sixteen times.
fn write_tile(s: Segment, row: u32, n: u32, sums: array<vec4<f32>, 4>) {
  if (row >= p.rows || n >= s.n) { return; }
  var rows = sums;
  for (var r = 0u; r < min(4, p.rows - row); r++) {
    for (var c = 0u; c < min(4, s.n - n); c++) { write(s, row + r, n + c, rows[r][c]); }
  }
}
