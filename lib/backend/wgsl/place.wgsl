// Row i of x to where `side` says.

struct Params {
  x: u32,
  stride: u32,
  cols: u32,
  /// In `side`, an address for each row.
  outs: u32,
}

@group(0) @binding(2) var<storage, read> side: array<u32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
  if (id.x >= p.cols) { return; }
  store(side[p.outs + id.y] + id.x, load(p.x + id.y * p.stride + id.x));
}
