// Rows of a table, of the part of it that one buffer holds, in the layouts of layout.ts. One workgroup a row.

struct Params {
  /// In `side`, an id for each row, or with ELSEWHERE the word of the arena where it stands as an f32.
  ids: u32,
  /// Word where the panels begin.
  base: u32,
  k: u32,
  /// As in product.wgsl.
  steps: u32,
  first: u32,
  n: u32,
  out: u32,
  out_stride: u32,
  w_scales: u32,
  scale: f32,
}

@group(0) @binding(2) var<storage, read> side: array<u32>;
@group(0) @binding(3) var<storage, read> weights: array<u32>;

const LANES = 64u;
const ELSEWHERE = 0x80000000u;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) lane: vec3<u32>) {
  var id = side[p.ids + group.x];
  if (id >= ELSEWHERE) { id = u32(load(id - ELSEWHERE)); }
  if (id < p.first || id >= p.first + p.n) { return; }
  let n = id - p.first;
  let column = n % 8;
  var scale = p.scale;
  if (SCHEME != F32) { scale *= bitcast<f32>(weights[p.w_scales + n]); }
  for (var k = lane.x; k < p.k; k += LANES) {
    var value: f32;
    if (SCHEME == F32) {
      value = bitcast<f32>(weights[p.base + (n / 8 * p.k + k) * 8 + column]);
    } else if (SCHEME == INT8) {
      let word = weights[p.base + (n / 8 * p.steps + k / 4) * 8 + column];
      value = f32(bitcast<i32>(word << (24 - k % 4 * 8)) >> 24);
    } else {
      let at = p.base + (n / 8 * (p.steps / 8) + k / 32) * 36;
      let word = weights[at + 4 + k % 32 / 4 * 4 + column % 4];
      let nibble = i32((word >> (k % 4 * 8 + column / 4 * 4)) & 15) - 8;
      let pair = weights[at + column / 2];
      value = f32(nibble * (bitcast<i32>(pair << (16 - column % 2 * 16)) >> 16));
    }
    store(p.out + group.x * p.out_stride + k, value * scale);
  }
}
