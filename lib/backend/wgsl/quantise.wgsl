// Rows of activations as s8, rounded as layout.ts says: less their zero point for int8 weights, symmetric for int4.
// Four k to a word; the words of TILE rows lie beside one another: [T/TILE][K/4][TILE]. After them f32 [T], the scales.
// One workgroup a row.

struct Params {
  x: u32,
  stride: u32,
  cols: u32,
  /// K/4 with its padding.
  steps: u32,
  scales: u32,
}

@group(0) @binding(2) var<storage, read_write> side: array<u32>;

const LANES = 128u;
const TINY = 1e-30;

var<workgroup> lows: array<f32, LANES>;
var<workgroup> highs: array<f32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
  let row = group.x;
  let lane = id.x;
  let x = p.x + row * p.stride;
  var low = 0.0;
  var high = 0.0;
  for (var k = lane; k < p.cols; k += LANES) {
    let v = load(x + k);
    low = min(low, v);
    high = max(high, v);
  }
  lows[lane] = low;
  highs[lane] = high;
  for (var span = LANES / 2; span > 0; span >>= 1) {
    workgroupBarrier();
    if (lane < span) {
      lows[lane] = min(lows[lane], lows[lane + span]);
      highs[lane] = max(highs[lane], highs[lane + span]);
    }
  }
  workgroupBarrier();
  low = lows[0];
  high = highs[0];
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
      if (k < p.cols) { q[i] = i32(clamp(round(load(x + k) * inverse), least, most)); }
    }
    side[to + step * TILE] = packed(q);
  }
  if (lane == 0) { side[p.scales + row] = bitcast<u32>(scale); }
}
