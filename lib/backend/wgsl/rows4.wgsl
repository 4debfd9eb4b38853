/// Four rows: what a product sums, for one column.
alias Whole = vec4<i32>;
alias Real = vec4<f32>;
/// A step of them, and four.
alias Step = vec4<u32>;
alias Steps = array<vec4<u32>, 4>;

fn step_of(tile: u32, step: u32) -> Step {
  return side[tile * p.steps + step];
}

fn steps_of(tile: u32, quad: u32) -> Steps {
  let at = tile * p.steps + quad * 4;
  return Steps(side[at], side[at + 1], side[at + 2], side[at + 3]);
}

fn dots(x: Step, w: u32) -> Whole {
  return vec4<i32>(dot4(x.x, w), dot4(x.y, w), dot4(x.z, w), dot4(x.w, w));
}

fn bits(c: Whole) -> Whole {
  return c & vec4<i32>(4095);
}

fn rest(c: Whole) -> Whole {
  return c >> vec4<u32>(12);
}

fn reals(tile: u32, k: u32) -> Real {
  var x = vec4<f32>();
  for (var r = 0u; r < 4; r++) {
    if (tile * 4 + r < p.rows) { x[r] = load(p.x + (tile * 4 + r) * p.x_stride + k); }
  }
  return x;
}

fn write_rows(s: Segment, tile: u32, n: u32, sum: Real) {
  if (n >= s.n || tile * 4 >= p.rows) { return; }
  for (var r = 0u; r < min(4, p.rows - tile * 4); r++) { write(s, tile * 4 + r, n, sum[r]); }
}

fn write_gated_rows(tile: u32, n: u32, gate: Real, up: Real) {
  if (n >= p.segments[0].n || tile * 4 >= p.rows) { return; }
  for (var r = 0u; r < min(4, p.rows - tile * 4); r++) { write_gated(tile * 4 + r, n, gate[r], up[r]); }
}
