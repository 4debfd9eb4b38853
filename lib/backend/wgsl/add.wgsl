// out += x.

struct Params {
  x: u32,
  x_stride: u32,
  cols: u32,
  out: u32,
  out_stride: u32,
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if (id.x >= p.cols) { return; }
  let to = p.out + id.y * p.out_stride + id.x;
  store(to, load(to) + load(p.x + id.y * p.x_stride + id.x));
}
