// Operands of a product with a matrix, or with those of its columns that one buffer holds, and how it ends.

struct Params {
  /// f32 weights: activations in the arena.
  x: u32,
  x_stride: u32,
  rows: u32,
  /// Steps along K: of one for f32, of four for integers.
  steps: u32,
  /// Columns in this buffer, and the first of them among all.
  n: u32,
  column: u32,
  out: u32,
  out_stride: u32,
  bias: u32,
  residual: u32,
  residual_stride: u32,
  finish: u32,
  /// Words of the scales in `side` and in `weights`.
  x_scales: u32,
  w_scales: u32,
}

/// Integers: activations as quantise.wgsl leaves them.
@group(0) @binding(2) var<storage, read> side: array<vec4<u32>>;
/// Panels of 8 columns as in layout.ts, f32 [N/8][K][8] likewise; then for integers one f32 scale a column.
@group(0) @binding(3) var<storage, read> weights: array<vec4<u32>>;

const PLAIN = 0u;
const GELU = 1u;
const MULTIPLY = 2u;

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

/// Writes out[row, n], which is there, from the sum of integers or floats.
fn write(row: u32, n: u32, sum: f32) {
  let column = p.column + n;
  var y = sum;
  if (SCHEME != F32) {
    y = y * bitcast<f32>(word_of_side(p.x_scales + row)) * bitcast<f32>(word_of_weights(p.w_scales + n));
  }
  if (p.bias != NONE) { y += load(p.bias + column); }
  if (p.finish == GELU) { y = gelu(y); }
  let to = p.out + row * p.out_stride + column;
  if (p.finish == MULTIPLY) { y *= load(to); }
  if (p.residual != NONE) { y += load(p.residual + row * p.residual_stride + column); }
  store(to, y);
}

/// Writes what is there of four rows and four columns. The bounds keep drivers from writing this out sixteen times.
fn write_tile(row: u32, n: u32, sums: array<vec4<f32>, 4>) {
  if (row >= p.rows || n >= p.n) { return; }
  var rows = sums;
  for (var r = 0u; r < min(4, p.rows - row); r++) {
    for (var c = 0u; c < min(4, p.n - n); c++) { write(row + r, n + c, rows[r][c]); }
  }
}
