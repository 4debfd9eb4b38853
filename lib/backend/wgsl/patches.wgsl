// Cuts a picture [size, size, 3] into rows of patches (c, dy, dx), zeros after them.

struct Params {
  x: u32,
  size: u32,
  side: u32,
  cols: u32,
  out: u32,
  out_stride: u32,
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if (id.x >= p.cols) { return; }
  let grid = p.size / p.side;
  let area = p.side * p.side;
  let c = id.x / area;
  let y = id.y / grid * p.side + id.x % area / p.side;
  let x = id.y % grid * p.side + id.x % p.side;
  var value = 0.0;
  if (c < 3) { value = load(p.x + (y * p.size + x) * 3 + c); }
  store(p.out + id.y * p.out_stride + id.x, value);
}
