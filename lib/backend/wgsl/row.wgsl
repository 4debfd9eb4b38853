// What norms, attention's parts and quantisation of a row share. One workgroup a row, UNROLLED loads of a lane on their way at once.

struct Params {
  x: u32,
  x_stride: u32,
  cols: u32,
  /// What the norm or the parts make, and the quantisation reads.
  out: u32,
  out_stride: u32,
  weight: u32,
  bias: u32,
  eps: f32,
  /// K/4 with its padding.
  steps: u32,
  scales: u32,
  /// Of each head, and its columns.
  parts: u32,
  head_dim: u32,
}

var<workgroup> lows: array<f32, LANES>;
var<workgroup> highs: array<f32, LANES>;

/// Sum over all lanes, to all of them.
fn total(lane: u32, value: f32) -> f32 {
  workgroupBarrier();
  lows[lane] = value;
  for (var span = LANES / 2; span > 0; span >>= 1) {
    workgroupBarrier();
    if (lane < span) { lows[lane] += lows[lane + span]; }
  }
  workgroupBarrier();
  return lows[0];
}

/// The least of the first and the most of the second over all lanes, to all of them.
fn widest(lane: u32, range: vec2<f32>) -> vec2<f32> {
  workgroupBarrier();
  lows[lane] = range.x;
  highs[lane] = range.y;
  for (var span = LANES / 2; span > 0; span >>= 1) {
    workgroupBarrier();
    if (lane < span) {
      lows[lane] = min(lows[lane], lows[lane + span]);
      highs[lane] = max(highs[lane], highs[lane + span]);
    }
  }
  workgroupBarrier();
  return vec2<f32>(lows[0], highs[0]);
}
