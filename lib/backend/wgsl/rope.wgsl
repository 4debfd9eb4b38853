// Rotates pairs (i, i + C/2) of each head by angles from a table: cosines [positions, C/2], then sines. GPUs are not
// held to any precision for the sine of 8191.

struct Params {
  x: u32,
  stride: u32,
  /// Of a row of x; those beyond are of another tensor.
  pairs: u32,
  other: u32,
  other_stride: u32,
  all_pairs: u32,
  half: u32,
  /// Of the first row, the others following; or where in `side` each has its own.
  position: u32,
  positions: u32,
  sines: u32,
}

@group(0) @binding(2) var<storage, read> side: array<u32>;
@group(0) @binding(3) var<storage, read> table: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if (id.x >= p.all_pairs) { return; }
  var pair = id.x;
  var row = p.x + id.y * p.stride;
  if (pair >= p.pairs) {
    pair -= p.pairs;
    row = p.other + id.y * p.other_stride;
  }
  let i = pair % p.half;
  let at = row + pair / p.half * p.half * 2 + i;
  var position = p.position + id.y;
  if (p.positions != NONE) { position = side[p.positions + id.y]; }
  let angle = position * p.half + i;
  let c = table[angle];
  let s = table[p.sines + angle];
  let a = load(at);
  let b = load(at + p.half);
  store(at, a * c - b * s);
  store(at + p.half, b * c + a * s);
}
