/// Four rows: what a product sums, for one column.
alias Whole = vec4<i32>;
alias Real = vec4<f32>;

fn dots(tile: u32, step: u32, w: u32) -> Whole {
  let x = side[tile * p.steps + step];
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

fn write_rows(tile: u32, n: u32, sum: Real) {
  if (n >= p.n || tile * 4 >= p.rows) { return; }
  for (var r = 0u; r < min(4, p.rows - tile * 4); r++) { write(tile * 4 + r, n, sum[r]); }
}
