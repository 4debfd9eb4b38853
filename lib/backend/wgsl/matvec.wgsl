// Products of 1 to 16 rows: every weight is read once, by one workgroup, for all rows. Lanes share out the steps along
// K of a panel of 8 columns; each of TILES tiles of lanes has its own rows.

const BLOCK = 16u;

@compute @workgroup_size(LANES, TILES)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_id) id: vec3<u32>,
  SUBGROUP_SIZE
) {
  let panel = group.x;
  let lane = id.x;
  let tile = id.y;
  var low = array<Real, 4>();
  var high = array<Real, 4>();
  if (SCHEME == F32) {
    let base = panel * p.steps * 2;
    // Sums of BLOCK steps stand by themselves before they are added up, which keeps a long sum near one rounding.
    for (var block = lane; block < p.steps; block += LANES * BLOCK) {
      var a = array<Real, 4>();
      var b = array<Real, 4>();
      for (var k = block; k < min(p.steps, block + LANES * BLOCK); k += LANES) {
        let x = reals(tile, k);
        let u = bitcast<vec4<f32>>(weights[base + k * 2]);
        let v = bitcast<vec4<f32>>(weights[base + k * 2 + 1]);
        a[0] += x * u.x;
        a[1] += x * u.y;
        a[2] += x * u.z;
        a[3] += x * u.w;
        b[0] += x * v.x;
        b[1] += x * v.y;
        b[2] += x * v.z;
        b[3] += x * v.w;
      }
      low[0] += a[0];
      low[1] += a[1];
      low[2] += a[2];
      low[3] += a[3];
      high[0] += b[0];
      high[1] += b[1];
      high[2] += b[2];
      high[3] += b[3];
    }
  } else {
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
    low = array<Real, 4>(Real(c0), Real(c1), Real(c2), Real(c3));
    high = array<Real, 4>(Real(c4), Real(c5), Real(c6), Real(c7));
  }
  let sum = sum_columns(tile, lane, SIZE, low, high);
  if (lane < 8) { write_rows(tile, panel * 8 + lane, sum); }
}
