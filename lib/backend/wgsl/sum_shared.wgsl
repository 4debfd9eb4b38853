var<workgroup> sums: array<Sum, LANES * TILES * 8>;

/// Sums over the lanes of a tile: every lane brings what it has for eight columns, lane c < 8 gets the sum of column c.
fn sum_columns(tile: u32, lane: u32, size: u32, low: array<Sum, 4>, high: array<Sum, 4>) -> Sum {
  let base = tile * 8 * LANES;
  workgroupBarrier();
  for (var c = 0u; c < 4; c++) {
    sums[base + c * LANES + lane] = low[c];
    sums[base + (c + 4) * LANES + lane] = high[c];
  }
  workgroupBarrier();
  let column = base + lane % 8 * LANES;
  var sum = Sum();
  for (var i = 0u; i < 8; i++) { sum += sums[column + lane / 8 * 8 + i]; }
  workgroupBarrier();
  sums[column + lane / 8] = sum;
  workgroupBarrier();
  sum = Sum();
  for (var i = 0u; i < LANES / 8; i++) { sum += sums[column + i]; }
  return sum;
}
