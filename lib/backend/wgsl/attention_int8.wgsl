// Attention in integers, as backend.ts defines it: first the operands (see STAGE), then softmax and values.
//
// In `side`, words: means f32 [H, C]; scales f32 of queries [H, T], of keys [H, T], of values [H, C]; then s8 queries
// and keys [H, T, C/4] and values [H, C, T/4 rounded up].

struct Params {
  q: u32,
  q_stride: u32,
  k: u32,
  k_stride: u32,
  v: u32,
  v_stride: u32,
  out: u32,
  out_stride: u32,
  rows: u32,
  heads: u32,
  head_dim: u32,
  scale: f32,
}

@group(0) @binding(2) var<storage, read_write> side: array<u32>;

const LANES = 64u;
const TINY = 1e-30;

struct Places {
  q_scales: u32,
  k_scales: u32,
  v_scales: u32,
  q: u32,
  k: u32,
  v: u32,
}

fn places() -> Places {
  let width = p.heads * p.head_dim;
  let scales = width;
  let words = scales + 2 * p.heads * p.rows + width;
  let rows = p.rows * width / 4;
  return Places(
    scales,
    scales + p.heads * p.rows,
    scales + 2 * p.heads * p.rows,
    words,
    words + rows,
    words + 2 * rows,
  );
}

/// One column to each lane: the mean of its keys.
@compute @workgroup_size(LANES)
fn means(@builtin(global_invocation_id) id: vec3<u32>) {
  if (id.x >= p.heads * p.head_dim) { return; }
  // Less the first, so that a large mean does not lose digits.
  let first = load(p.k + id.x);
  var sum = 0.0;
  for (var s = 1u; s < p.rows; s++) { sum += load(p.k + s * p.k_stride + id.x) - first; }
  side[id.x] = bitcast<u32>(first + sum / f32(p.rows));
}

/// A head of a row to each lane: queries to seven bits, keys to eight.
@compute @workgroup_size(LANES)
fn rows(@builtin(global_invocation_id) id: vec3<u32>) {
  if (id.x >= p.rows * p.heads) { return; }
  let head = id.x / p.rows;
  let row = id.x % p.rows;
  let at = places();
  let base = head * p.head_dim;
  let q = p.q + row * p.q_stride + base;
  let k = p.k + row * p.k_stride + base;
  var low = 0.0;
  var high = 0.0;
  var most = 0.0;
  for (var c = 0u; c < p.head_dim; c++) {
    let v = load(q + c);
    low = min(low, v);
    high = max(high, v);
    most = max(most, abs(load(k + c) - bitcast<f32>(side[base + c])));
  }
  var inverse = vec2<f32>();
  var scale = vec2<f32>();
  var zero = 0.0;
  if (high - low >= TINY) {
    inverse.x = 127 / (high - low);
    scale.x = (high - low) / 127;
    zero = round(-low * inverse.x);
  }
  if (most >= TINY) {
    inverse.y = 127 / most;
    scale.y = most / 127;
  }
  side[at.q_scales + id.x] = bitcast<u32>(scale.x);
  side[at.k_scales + id.x] = bitcast<u32>(scale.y);
  for (var word = 0u; word < p.head_dim / 4; word++) {
    var a = vec4<i32>();
    var b = vec4<i32>();
    for (var i = 0u; i < 4; i++) {
      let c = word * 4 + i;
      a[i] = i32(clamp(round(load(q + c) * inverse.x), -zero, 127 - zero));
      b[i] = i32(clamp(round((load(k + c) - bitcast<f32>(side[base + c])) * inverse.y), -127.0, 127.0));
    }
    let to = id.x * p.head_dim / 4 + word;
    side[at.q + to] = packed(a);
    side[at.k + to] = packed(b);
  }
}

/// One column to each lane: its values to eight bits.
@compute @workgroup_size(LANES)
fn values(@builtin(global_invocation_id) id: vec3<u32>) {
  if (id.x >= p.heads * p.head_dim) { return; }
  let at = places();
  let words = (p.rows + 3) / 4;
  var most = 0.0;
  for (var s = 0u; s < p.rows; s++) { most = max(most, abs(load(p.v + s * p.v_stride + id.x))); }
  var inverse = 0.0;
  var scale = 0.0;
  if (most >= TINY) {
    inverse = 127 / most;
    scale = most / 127;
  }
  side[at.v_scales + id.x] = bitcast<u32>(scale);
  for (var word = 0u; word < words; word++) {
    var q = vec4<i32>();
    for (var i = 0u; i < 4; i++) {
      let s = word * 4 + i;
      if (s < p.rows) {
        q[i] = i32(clamp(round(load(p.v + s * p.v_stride + id.x) * inverse), -127.0, 127.0));
      }
    }
    side[at.v + id.x * words + word] = packed(q);
  }
}

const WORDS = HEAD / 4; // of a query, HEAD being C rounded up to LANES
const COLUMNS = HEAD / LANES; // of one lane
const WEIGHT_ONE = 16383.0; // 14 bits, two halves of seven

var<workgroup> query: array<u32, ROWS * WORDS>;
var<workgroup> most: array<f32, ROWS * LANES>;
var<workgroup> sums: array<i32, ROWS * LANES>;
/// Weights of 64 keys for each row, their low and high seven bits, four to a word.
var<workgroup> lows: array<u32, ROWS * LANES / 4>;
var<workgroup> highs: array<u32, ROWS * LANES / 4>;
var<workgroup> weights: array<i32, ROWS * LANES>;

/// Scores of one key and the query rows of this workgroup.
fn scores(at: Places, head: u32, first: u32, s: u32) -> array<f32, ROWS> {
  var dots = array<i32, ROWS>();
  let words = p.head_dim / 4;
  let key = head * p.rows + s;
  for (var i = 0u; i < words; i++) {
    let k = side[at.k + key * words + i];
    for (var r = 0u; r < ROWS; r++) { dots[r] += dot4(query[r * WORDS + i], k); }
  }
  var found = array<f32, ROWS>();
  for (var r = 0u; r < ROWS; r++) {
    let row = head * p.rows + min(first + r, p.rows - 1);
    let step = bitcast<f32>(side[at.q_scales + row]) * p.scale;
    found[r] = f32(dots[r]) * step * bitcast<f32>(side[at.k_scales + key]);
  }
  return found;
}

/// ROWS query rows of one head to each workgroup. Weights are rounded as shares of the largest one, which therefore
/// is found first.
@compute @workgroup_size(LANES)
fn mix(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
  let lane = id.x;
  let head = group.y;
  let first = group.x * ROWS;
  let at = places();
  let words = p.head_dim / 4;
  for (var i = lane; i < ROWS * WORDS; i += LANES) {
    let row = head * p.rows + min(first + i / WORDS, p.rows - 1);
    var q = 0u;
    if (i % WORDS < words) { q = side[at.q + row * words + i % WORDS]; }
    query[i] = q;
  }
  workgroupBarrier();
  var tops = array<f32, ROWS>();
  for (var r = 0u; r < ROWS; r++) { tops[r] = -3.0e38; }
  for (var s = lane; s < p.rows; s += LANES) {
    let found = scores(at, head, first, s);
    for (var r = 0u; r < ROWS; r++) { tops[r] = max(tops[r], found[r]); }
  }
  for (var r = 0u; r < ROWS; r++) { most[r * LANES + lane] = tops[r]; }
  for (var span = LANES / 2; span > 0; span >>= 1) {
    workgroupBarrier();
    if (lane < span) {
      for (var r = 0u; r < ROWS; r++) {
        most[r * LANES + lane] = max(most[r * LANES + lane], most[r * LANES + lane + span]);
      }
    }
  }
  workgroupBarrier();
  for (var r = 0u; r < ROWS; r++) { tops[r] = most[r * LANES]; }
  let v_words = (p.rows + 3) / 4;
  var low = array<i32, ROWS * COLUMNS>();
  var high = array<i32, ROWS * COLUMNS>();
  var sum = array<i32, ROWS>();
  for (var s0 = 0u; s0 < p.rows; s0 += LANES) {
    var found = array<f32, ROWS>();
    if (s0 + lane < p.rows) { found = scores(at, head, first, s0 + lane); }
    workgroupBarrier();
    for (var r = 0u; r < ROWS; r++) {
      var weight = 0;
      if (s0 + lane < p.rows) { weight = i32(round(exp(found[r] - tops[r]) * WEIGHT_ONE)); }
      weights[r * LANES + lane] = weight;
      sum[r] += weight;
    }
    workgroupBarrier();
    for (var i = lane; i < ROWS * LANES / 4; i += LANES) {
      let w = vec4<i32>(weights[i * 4], weights[i * 4 + 1], weights[i * 4 + 2], weights[i * 4 + 3]);
      lows[i] = packed(w & vec4<i32>(127));
      highs[i] = packed(w >> vec4<u32>(7));
    }
    workgroupBarrier();
    let count = min(LANES, p.rows - s0);
    for (var j = 0u; j < COLUMNS; j++) {
      let c = lane + j * LANES;
      if (c < p.head_dim) {
        for (var i = 0u; i < (count + 3) / 4; i++) {
          let v = side[at.v + (head * p.head_dim + c) * v_words + s0 / 4 + i];
          for (var r = 0u; r < ROWS; r++) {
            low[r * COLUMNS + j] += dot4(lows[r * LANES / 4 + i], v);
            high[r * COLUMNS + j] += dot4(highs[r * LANES / 4 + i], v);
          }
        }
      }
    }
  }
  for (var r = 0u; r < ROWS; r++) { sums[r * LANES + lane] = sum[r]; }
  for (var span = LANES / 2; span > 0; span >>= 1) {
    workgroupBarrier();
    if (lane < span) {
      for (var r = 0u; r < ROWS; r++) { sums[r * LANES + lane] += sums[r * LANES + lane + span]; }
    }
  }
  workgroupBarrier();
  for (var r = 0u; r < min(ROWS, p.rows - first); r++) {
    for (var j = 0u; j < COLUMNS; j++) {
      let c = lane + j * LANES;
      if (c < p.head_dim) {
        let mixed = f32(low[r * COLUMNS + j]) + 128 * f32(high[r * COLUMNS + j]);
        let scale = bitcast<f32>(side[at.v_scales + head * p.head_dim + c]);
        store(
          p.out + (first + r) * p.out_stride + head * p.head_dim + c,
          mixed / f32(sums[r * LANES]) * scale,
        );
      }
    }
  }
}
