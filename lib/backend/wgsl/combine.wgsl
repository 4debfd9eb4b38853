// Makes one of the parts that attention_each.wgsl leaves of a row. Gives the range of what a lane wrote, with zero.

/// Of each part of each head, what its values are multiplied by.
var<workgroup> factors: array<f32, HEADS * MOST_PARTS>;

fn combine(row: u32, lane: u32) -> vec2<f32> {
  let size = p.head_dim + 2;
  let x = p.x + row * p.x_stride;
  for (var head = lane; head < HEADS; head += LANES) {
    let tops = x + head * p.parts * size + p.head_dim;
    var top = load(tops);
    for (var i = 1u; i < p.parts; i++) { top = max(top, load(tops + i * size)); }
    var sum = 0.0;
    for (var i = 0u; i < p.parts; i++) {
      let factor = exp(load(tops + i * size) - top);
      factors[head * MOST_PARTS + i] = factor;
      sum += factor * load(tops + i * size + 1);
    }
    for (var i = 0u; i < p.parts; i++) { factors[head * MOST_PARTS + i] /= sum; }
  }
  workgroupBarrier();
  var range = vec2<f32>();
  for (var c = lane; c < p.cols; c += LANES) {
    let head = c / p.head_dim;
    let values = x + head * p.parts * size + c % p.head_dim;
    var v = 0.0;
    for (var i = 0u; i < p.parts; i++) { v += factors[head * MOST_PARTS + i] * load(values + i * size); }
    store(p.out + row * p.out_stride + c, v);
    range = vec2<f32>(min(range.x, v), max(range.y, v));
  }
  return range;
}
