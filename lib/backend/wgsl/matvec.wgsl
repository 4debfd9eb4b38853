// Products of 1 to 16 rows: every weight is read once, by one workgroup, for all rows. Lanes share out the steps along K
// of a panel of 8 columns; each of TILES tiles of lanes has its own rows. GATED takes the same panel of two matrices.
// Of `column_sum` lane c < 8 gets the sums of column c.

@compute @workgroup_size(LANES, TILES)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(local_invocation_id) id: vec3<u32>,
  SUBGROUP_SIZE
) {
  let lane = id.x;
  let tile = id.y;
  let s = segment(group.x);
  let panel = group.x - s.group;
  var sums = array<Real, 2>();
  // One after the other, in a loop that no driver writes out.
  for (var i = 0u; i < select(1u, min(2u, p.rows * 2), GATED); i++) {
    sums[1] = sums[0];
    sums[0] = column_sum(panel_at(select(s.base, p.segments[1].base, i == 1), panel), tile, lane, SIZE);
  }
  if (lane < 8) {
    if (GATED) {
      write_gated_rows(tile, panel * 8 + lane, sums[1], sums[0]);
    } else {
      write_rows(s, tile, panel * 8 + lane, sums[0]);
    }
  }
}
