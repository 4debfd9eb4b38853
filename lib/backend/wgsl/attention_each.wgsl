// Attention of rows that are each the last of keys of their own, with an online softmax. A workgroup has some keys of one
// row of one head and goes through them BLOCK at a time: first TEAM lanes to a key, so that neighbours read neighbouring
// columns; then TURN lanes to a value, likewise. combine.wgsl makes one of the parts, as in Flash-Decoding.

struct Params {
  q: u32,
  q_stride: u32,
  k_stride: u32,
  v_stride: u32,
  /// [T, H, parts, C + 2]: a part's sum of weighted values, then the largest score, then the sum of weights, both as they
  /// are where the weight of that score is 1.
  out: u32,
  parts: u32,
  /// Heads that share a key-value head.
  sharing: u32,
  head_dim: u32,
  scale: f32,
  /// 0: none.
  softcap: f32,
  window: u32,
  /// Where in `side` every row has first key, first value, and number of keys.
  each: u32,
}

@group(0) @binding(2) var<storage, read> side: array<u32>;

const TEAM = 32u;
const TEAMS = LANES / TEAM;
const TURN = 64u;
const TURNS = LANES / TURN;
const COLUMNS = HEAD / TURN; // of one lane, HEAD being C rounded up to TURN
const LEAST = -3.0e38;

var<workgroup> query: array<f32, HEAD>;
/// [BLOCK][TEAM], with a word between the rows, so that what is read at once lies in different banks; later [TURNS][HEAD].
var<workgroup> parts: array<f32, max(BLOCK * (TEAM + 1), TURNS * HEAD)>;
var<workgroup> scores: array<vec4<f32>, BLOCK / 4>;
var<workgroup> sums: array<f32, TURNS>;

@compute @workgroup_size(LANES)
fn main(
  @builtin(workgroup_id) group: vec3<u32>,
  @builtin(num_workgroups) groups: vec3<u32>,
  @builtin(local_invocation_id) id: vec3<u32>,
) {
  let lane = id.x;
  let head = group.x;
  let row = group.y;
  let shared_head = head / p.sharing * p.head_dim;
  let keys = side[p.each + row * 3] + shared_head;
  let values = side[p.each + row * 3 + 1] + shared_head;
  let count = side[p.each + row * 3 + 2];
  // Of this row alone, so that it is what it is without the others.
  let first = select(0u, count - p.window, count > p.window);
  let span = (count - first + BLOCK * MOST_PARTS - 1) / (BLOCK * MOST_PARTS) * BLOCK;
  let begin = first + group.z * span;
  let end = min(count, begin + span);
  for (var c = lane; c < p.head_dim; c += LANES) {
    query[c] = load(p.q + row * p.q_stride + head * p.head_dim + c) * p.scale;
  }
  let team = lane / TEAM;
  let mate = lane % TEAM;
  let turn = lane / TURN;
  var mixed = array<f32, COLUMNS>();
  var top = LEAST;
  var sum = 0.0;
  for (var s0 = begin; s0 < end; s0 += BLOCK) {
    workgroupBarrier();
    for (var i = team; i < BLOCK; i += TEAMS) {
      var dot = 0.0;
      if (s0 + i < end) {
        let key = keys + (s0 + i) * p.k_stride;
        for (var c = mate; c < p.head_dim; c += TEAM) { dot += query[c] * load(key + c); }
      }
      parts[i * (TEAM + 1) + mate] = dot;
    }
    workgroupBarrier();
    if (lane < BLOCK) {
      var score = 0.0;
      for (var i = 0u; i < TEAM; i++) { score += parts[lane * (TEAM + 1) + i]; }
      if (p.softcap > 0) { score = p.softcap * tanh_near(score / p.softcap); }
      scores[lane / 4][lane % 4] = select(LEAST, score, s0 + lane < end);
    }
    workgroupBarrier();
    var four = scores[0];
    for (var i = 1u; i < BLOCK / 4; i++) { four = max(four, scores[i]); }
    let highest = max(top, max(max(four.x, four.y), max(four.z, four.w)));
    let shrink = exp(top - highest);
    top = highest;
    sum *= shrink;
    for (var j = 0u; j < COLUMNS; j++) { mixed[j] *= shrink; }
    for (var i = turn; i < min(BLOCK, end - s0); i += TURNS) {
      let weight = exp(scores[i / 4][i % 4] - top);
      sum += weight;
      let value = values + (s0 + i) * p.v_stride;
      for (var j = 0u; j < COLUMNS; j++) {
        let c = lane % TURN + j * TURN;
        if (c < p.head_dim) { mixed[j] += weight * load(value + c); }
      }
    }
  }
  workgroupBarrier();
  for (var j = 0u; j < COLUMNS; j++) { parts[turn * HEAD + lane % TURN + j * TURN] = mixed[j]; }
  if (lane % TURN == 0) { sums[turn] = sum; }
  workgroupBarrier();
  let out = p.out + ((row * groups.x + head) * p.parts + group.z) * (p.head_dim + 2);
  for (var c = lane; c < p.head_dim; c += LANES) {
    var value = 0.0;
    for (var i = 0u; i < TURNS; i++) { value += parts[i * HEAD + c]; }
    store(out + c, value);
  }
  if (lane == 0) {
    var all = 0.0;
    for (var i = 0u; i < TURNS; i++) { all += sums[i]; }
    store(out + p.head_dim, top);
    store(out + p.head_dim + 1, all);
  }
}
