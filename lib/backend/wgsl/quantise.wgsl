// Rows of activations as s8, rounded as layout.ts says: less their zero point for int8 weights, symmetric for int4.
// Four k to a word; the words of TILE rows lie beside one another: [T/TILE][K/4][TILE]. After them f32 [T], the scales.

@group(0) @binding(2) var<storage, read_write> side: array<u32>;

const TINY = 1e-30;

/// The range of what a lane will round, with zero.
fn range_of(row: u32, lane: u32) -> vec2<f32> {
  let x = p.out + row * p.out_stride;
  var range = vec2<f32>();
  for (var base = lane; base < p.cols; base += LANES * UNROLLED) {
    for (var i = 0u; i < UNROLLED; i++) {
      let v = load(x + min(base + i * LANES, p.cols - 1));
      range = vec2<f32>(min(range.x, v), max(range.y, v));
    }
  }
  return range;
}

fn quantise(row: u32, lane: u32, own: vec2<f32>) {
  let x = p.out + row * p.out_stride;
  let whole = widest(lane, own);
  let low = whole.x;
  let high = whole.y;
  let range = select(max(high, -low), high - low, SEVEN_BITS);
  var inverse = 0.0;
  var scale = 0.0;
  var zero = 0.0;
  if (range >= TINY) {
    inverse = 127 / range;
    scale = range / 127;
    if (SEVEN_BITS) { zero = round(-low * inverse); }
  }
  // Seven bits: from 0 to 127, less the zero point. Otherwise from -127 to 127.
  let least = select(-127.0, -zero, SEVEN_BITS);
  let most = 127 - zero;
  let to = row / TILE * p.steps * TILE + row % TILE;
  for (var step = lane; step < p.steps; step += LANES) {
    var q = vec4<i32>();
    for (var i = 0u; i < 4; i++) {
      let k = step * 4 + i;
      let v = load(x + min(k, p.cols - 1));
      q[i] = select(0, i32(clamp(round(v * inverse), least, most)), k < p.cols);
    }
    side[to + step * TILE] = packed(q);
  }
  if (lane == 0) { side[p.scales + row] = bitcast<u32>(scale); }
}
