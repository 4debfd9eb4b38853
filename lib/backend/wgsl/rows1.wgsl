/// One row: what a product sums, for one column.
alias Whole = i32;
alias Real = f32;
/// A step of it, and four.
alias Step = u32;
alias Steps = vec4<u32>;

fn step_of(tile: u32, step: u32) -> Step {
  return word_of_side(step);
}

fn steps_of(tile: u32, quad: u32) -> Steps {
  return side[quad];
}

fn dots(x: Step, w: u32) -> Whole {
  return dot4(x, w);
}

fn bits(c: Whole) -> Whole {
  return c & 4095;
}

fn rest(c: Whole) -> Whole {
  return c >> 12u;
}

fn reals(tile: u32, k: u32) -> Real {
  return load(p.x + k);
}

fn write_rows(s: Segment, tile: u32, n: u32, sum: Real) {
  if (n < s.n) { write(s, 0, n, sum); }
}

fn write_gated_rows(tile: u32, n: u32, gate: Real, up: Real) {
  if (n < p.segments[0].n) { write_gated(0, n, gate, up); }
}
