const BLOCK = 16u;

fn column_sum(base: u32, tile: u32, lane: u32, size: u32) -> Real {
  var low = array<Sum, 4>();
  var high = array<Sum, 4>();
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
  return sum_columns(tile, lane, size, low, high);
}
