/// One row: what a product sums, for one column.
alias Whole = i32;
alias Real = f32;

fn dots(tile: u32, step: u32, w: u32) -> Whole {
  return dot4(word_of_side(step), w);
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

fn write_rows(tile: u32, n: u32, sum: Real) {
  if (n < p.n) { write(0, n, sum); }
}
