// Products of 1 to 16 rows with f32 weights: every weight is read once, by one workgroup, for all rows. Lanes share out
// the steps along K of a panel of 8 columns; each of TILES tiles of lanes has its own rows.

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
  var low = array<Sum, 4>();
  var high = array<Sum, 4>();
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
  let sum = sum_columns(tile, lane, SIZE, low, high);
  if (lane < 8) { write_rows(tile, panel * 8 + lane, sum); }
}
