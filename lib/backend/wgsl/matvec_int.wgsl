// Products of 1 to 16 rows with integer weights, like matvec_f32.wgsl. Their sums are exact, whatever the number of lanes,
// so that a row is what it is alone.

/// Steps along K up to which the sum of a column with int4 weights fits 32 bits: 512 · |4 · 127 · 8 · 1023| < 2³¹. With
/// int8 weights it always does.
const FITS = 512u;

@compute @workgroup_size(LANES, TILES)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_id) id: vec3<u32>,
  SUBGROUP_SIZE
) {
  let panel = group.x;
  let lane = id.x;
  let tile = id.y;
  var c0 = Whole();
  var c1 = Whole();
  var c2 = Whole();
  var c3 = Whole();
  var c4 = Whole();
  var c5 = Whole();
  var c6 = Whole();
  var c7 = Whole();
  if (SCHEME == INT8) {
    let base = panel * p.steps * 2;
    for (var step = lane; step < p.steps; step += LANES) {
      let a = weights[base + step * 2];
      let b = weights[base + step * 2 + 1];
      c0 += dots(tile, step, a.x);
      c1 += dots(tile, step, a.y);
      c2 += dots(tile, step, a.z);
      c3 += dots(tile, step, a.w);
      c4 += dots(tile, step, b.x);
      c5 += dots(tile, step, b.y);
      c6 += dots(tile, step, b.z);
      c7 += dots(tile, step, b.w);
    }
  } else {
    // A group is a word of scales and eight steps. A lane's sum fits 32 bits: |4 · 127 · 8 · 1023| · K / 4 / LANES.
    let base = panel * (p.steps / 8) * 9;
    for (var step = lane; step < p.steps; step += LANES) {
      let words = weights[base + step / 8 * 9];
      let w = weights[base + step / 8 * 9 + 1 + step % 8];
      let s = group_scales(words, 0);
      let t = group_scales(words, 4);
      let a = w & vec4<u32>(0x0f0f0f0fu);
      let b = (w >> vec4<u32>(4)) & vec4<u32>(0x0f0f0f0fu);
      // Nibbles stand 8 too high.
      let over = dots(tile, step, 0x08080808u);
      c0 += (dots(tile, step, a.x) - over) * s.x;
      c1 += (dots(tile, step, a.y) - over) * s.y;
      c2 += (dots(tile, step, a.z) - over) * s.z;
      c3 += (dots(tile, step, a.w) - over) * s.w;
      c4 += (dots(tile, step, b.x) - over) * t.x;
      c5 += (dots(tile, step, b.y) - over) * t.y;
      c6 += (dots(tile, step, b.z) - over) * t.z;
      c7 += (dots(tile, step, b.w) - over) * t.w;
    }
  }
  if (SCHEME == INT8 || p.steps <= FITS) {
    let low = array<Sum, 4>(c0, c1, c2, c3);
    let high = array<Sum, 4>(c4, c5, c6, c7);
    let sum = sum_columns(tile, lane, SIZE, low, high);
    if (lane < 8) { write_rows(tile, panel * 8 + lane, Real(sum)); }
  } else {
    // Twelve bits and the rest by themselves: either sum, and 4096 times the second, is exact in f32.
    let rest_low = array<Sum, 4>(rest(c0), rest(c1), rest(c2), rest(c3));
    let rest_high = array<Sum, 4>(rest(c4), rest(c5), rest(c6), rest(c7));
    let most = sum_columns(tile, lane, SIZE, rest_low, rest_high);
    let bits_low = array<Sum, 4>(bits(c0), bits(c1), bits(c2), bits(c3));
    let bits_high = array<Sum, 4>(bits(c4), bits(c5), bits(c6), bits(c7));
    let least = sum_columns(tile, lane, SIZE, bits_low, bits_high);
    if (lane < 8) { write_rows(tile, panel * 8 + lane, Real(most) * 4096 + Real(least)); }
  }
}
