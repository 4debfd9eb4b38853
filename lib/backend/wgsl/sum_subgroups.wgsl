var<workgroup> sums: array<Sum, LANES * TILES * 2>;

/// Sums over the lanes of a tile: every lane brings what it has for eight columns, lane c < 8 gets the sum of column c.
/// Lanes of a subgroup are neighbours, and a tile has a whole number of subgroups of 4 lanes or more.
fn sum_columns(tile: u32, lane: u32, size: u32, low: array<Sum, 4>, high: array<Sum, 4>) -> Sum {
  let groups = LANES / size;
  let base = tile * LANES * 2;
  workgroupBarrier();
  for (var c = 0u; c < 4; c++) {
    let first = subgroupAdd(low[c]);
    let second = subgroupAdd(high[c]);
    if (lane % size == 0) {
      sums[base + c * groups + lane / size] = first;
      sums[base + (c + 4) * groups + lane / size] = second;
    }
  }
  workgroupBarrier();
  var sum = Sum();
  for (var i = 0u; i < groups; i++) { sum += sums[base + lane % 8 * groups + i]; }
  return sum;
}
