// LayerNorm, or RMSNorm with weights that count from -1. One workgroup a row; out may be x.

struct Params {
  x: u32,
  x_stride: u32,
  cols: u32,
  out: u32,
  out_stride: u32,
  weight: u32,
  bias: u32,
  eps: f32,
}

const LANES = 128u;

var<workgroup> sums: array<f32, LANES>;

/// Sum over all lanes, to all of them.
fn total(lane: u32, value: f32) -> f32 {
  workgroupBarrier();
  sums[lane] = value;
  for (var span = LANES / 2; span > 0; span >>= 1) {
    workgroupBarrier();
    if (lane < span) { sums[lane] += sums[lane + span]; }
  }
  workgroupBarrier();
  return sums[0];
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
  let lane = id.x;
  let x = p.x + group.x * p.x_stride;
  let out = p.out + group.x * p.out_stride;
  let count = f32(p.cols);
  var mean = 0.0;
  var rest = 0.0;
  if (CENTRED) {
    // The mean in two parts: beside a large one, the rounding of its sum would show.
    var sum = 0.0;
    for (var k = lane; k < p.cols; k += LANES) { sum += load(x + k); }
    mean = total(lane, sum) / count;
    sum = 0.0;
    for (var k = lane; k < p.cols; k += LANES) { sum += load(x + k) - mean; }
    rest = total(lane, sum) / count;
  }
  var squares = 0.0;
  for (var k = lane; k < p.cols; k += LANES) {
    let v = load(x + k) - mean - rest;
    squares += v * v;
  }
  let scale = 1 / sqrt(total(lane, squares) / count + p.eps);
  for (var k = lane; k < p.cols; k += LANES) {
    let v = (load(x + k) - mean - rest) * scale;
    let w = load(p.weight + k);
    if (CENTRED) {
      store(out + k, v * w + load(p.bias + k));
    } else {
      store(out + k, v * (1 + w));
    }
  }
}
