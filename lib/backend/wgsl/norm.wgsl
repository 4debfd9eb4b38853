// LayerNorm, or RMSNorm with weights that count from -1; out may be x. Gives the range of what a lane wrote, with zero.

fn norm(row: u32, lane: u32) -> vec2<f32> {
  let x = p.x + row * p.x_stride;
  let out = p.out + row * p.out_stride;
  let count = f32(p.cols);
  let last = p.cols - 1;
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
  for (var base = lane; base < p.cols; base += LANES * UNROLLED) {
    for (var i = 0u; i < UNROLLED; i++) {
      let k = base + i * LANES;
      let v = load(x + min(k, last)) - mean - rest;
      squares += select(0.0, v * v, k <= last);
    }
  }
  let scale = 1 / sqrt(total(lane, squares) / count + p.eps);
  var range = vec2<f32>();
  for (var k = lane; k < p.cols; k += LANES) {
    var v = (load(x + k) - mean - rest) * scale;
    let w = load(p.weight + k);
    if (CENTRED) {
      v = v * w + load(p.bias + k);
    } else {
      v = v * (1 + w);
    }
    store(out + k, v);
    range = vec2<f32>(min(range.x, v), max(range.y, v));
  }
  return range;
}
