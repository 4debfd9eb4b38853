// Attention with an online softmax. A workgroup has ROWS query rows of one key-value head (a row here is a token's row
// of one of the heads that share it) and goes through the keys 64 at a time: scores with a key to each lane, then the
// softmax with LANES / ROWS lanes to each row, then the values with a column to each lane.

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
  keys: u32,
  /// Heads that share a key-value head.
  sharing: u32,
  head_dim: u32,
  scale: f32,
  /// 0: none.
  softcap: f32,
  start: u32,
  prefix: u32,
  window: u32,
}

const LANES = 64u;
const PARTS = LANES / ROWS; // lanes of one row in the softmax
const COLUMNS = HEAD / LANES; // of one lane, HEAD being C rounded up to LANES
const LEAST = -3.0e38;

var<workgroup> queries: array<f32, ROWS * HEAD>;
var<workgroup> scores: array<f32, ROWS * LANES>;
var<workgroup> parts: array<f32, LANES>;
var<workgroup> most: array<f32, ROWS>;
var<workgroup> sums: array<f32, ROWS>;
var<workgroup> shrink: array<f32, ROWS>;

/// Token and first column of a row of this workgroup.
fn place(head: u32, row: u32) -> vec2<u32> {
  return vec2<u32>(row / p.sharing, (head * p.sharing + row % p.sharing) * p.head_dim);
}

/// The keys from x to before y that a token may see.
fn span(token: u32) -> vec2<u32> {
  let index = p.start + token;
  if (index < p.prefix) { return vec2<u32>(0, min(max(p.prefix, index + 1), p.keys)); }
  return vec2<u32>(select(0u, index + 1 - p.window, index + 1 > p.window), index + 1);
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
  let lane = id.x;
  let first = group.x * ROWS;
  let head = group.y;
  let count = min(ROWS, p.rows * p.sharing - first);
  let keys = p.k + head * p.head_dim;
  let values = p.v + head * p.head_dim;
  for (var i = lane; i < ROWS * HEAD; i += LANES) {
    let c = i % HEAD;
    let at = place(head, first + i / HEAD);
    var q = 0.0;
    if (i / HEAD < count && c < p.head_dim) { q = load(p.q + at.x * p.q_stride + at.y + c) * p.scale; }
    queries[i] = q;
  }
  if (lane < ROWS) {
    most[lane] = LEAST;
    sums[lane] = 0;
  }
  // Tokens come in order: what the first and the last of them see is what any of them sees.
  let low = min(span(first / p.sharing).x, span((first + count - 1) / p.sharing).x);
  let high = max(span(first / p.sharing).y, span((first + count - 1) / p.sharing).y);
  var mixed = array<f32, ROWS * COLUMNS>();
  for (var s0 = low; s0 < high; s0 += LANES) {
    workgroupBarrier();
    let s = s0 + lane;
    var dots = array<f32, ROWS>();
    if (s < high) {
      for (var c = 0u; c < p.head_dim; c++) {
        let key = load(keys + s * p.k_stride + c);
        for (var r = 0u; r < ROWS; r++) { dots[r] += queries[r * HEAD + c] * key; }
      }
    }
    for (var r = 0u; r < ROWS; r++) {
      let seen = span((first + min(r, count - 1)) / p.sharing);
      var score = dots[r];
      if (p.softcap > 0) { score = p.softcap * tanh_near(score / p.softcap); }
      scores[r * LANES + lane] = select(LEAST, score, s >= seen.x && s < seen.y);
    }
    workgroupBarrier();
    let row = lane / PARTS;
    let part = lane % PARTS;
    var top = LEAST;
    for (var i = part; i < LANES; i += PARTS) { top = max(top, scores[row * LANES + i]); }
    parts[lane] = top;
    workgroupBarrier();
    let before = most[row];
    top = before;
    for (var i = 0u; i < PARTS; i++) { top = max(top, parts[row * PARTS + i]); }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = part; i < LANES; i += PARTS) {
      let score = scores[row * LANES + i];
      let weight = select(0.0, exp(score - top), score > LEAST);
      scores[row * LANES + i] = weight;
      sum += weight;
    }
    parts[lane] = sum;
    workgroupBarrier();
    if (part == 0) {
      let factor = exp(before - top);
      sum = sums[row] * factor;
      for (var i = 0u; i < PARTS; i++) { sum += parts[row * PARTS + i]; }
      sums[row] = sum;
      most[row] = top;
      shrink[row] = factor;
    }
    workgroupBarrier();
    for (var j = 0u; j < COLUMNS; j++) {
      let c = lane + j * LANES;
      for (var r = 0u; r < ROWS; r++) { mixed[r * COLUMNS + j] *= shrink[r]; }
      if (c < p.head_dim) {
        for (var i = 0u; i < min(LANES, high - s0); i++) {
          let value = load(values + (s0 + i) * p.v_stride + c);
          for (var r = 0u; r < ROWS; r++) { mixed[r * COLUMNS + j] += scores[r * LANES + i] * value; }
        }
      }
    }
  }
  workgroupBarrier();
  for (var r = 0u; r < count; r++) {
    let at = place(head, first + r);
    for (var j = 0u; j < COLUMNS; j++) {
      let c = lane + j * LANES;
      if (c < p.head_dim) { store(p.out + at.x * p.out_stride + at.y + c, mixed[r * COLUMNS + j] / sums[r]); }
    }
  }
}
