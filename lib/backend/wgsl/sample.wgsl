// The next id from a row of logits, as lib/decode/sampler.ts chooses it: the likeliest, or drawn at a temperature from
// the topK likeliest and of these the fewest that come to topP.
//
// In `side`, for each row and block of BLOCK ids: the largest logit, its id, and Σ exp(logit − largest).

struct Params {
  /// Ids that take no part, nor do those from `limit` on.
  never: vec4<u32>,
  limit: u32,
  logits: u32,
  stride: u32,
  /// [T, 2] in the arena: id, logarithm of its probability at temperature 1.
  out: u32,
  /// In `given`, [T, 4]: temperature, topK, topP, random.
  rows: u32,
  blocks: u32,
}

@group(0) @binding(2) var<storage, read_write> side: array<u32>;
@group(0) @binding(3) var<storage, read> given: array<u32>;

const LANES = 256u;
const BLOCK = 4096u;
const LEAST = -3.4e38;

var<workgroup> values: array<f32, LANES>;
var<workgroup> ids: array<u32, LANES>;

fn logit(row: u32, id: u32) -> f32 {
  if (id >= p.limit || any(vec4<u32>(id) == p.never)) { return LEAST; }
  return load(p.logits + row * p.stride + id);
}

/// Sum over all lanes, to all of them.
fn total(lane: u32, value: f32) -> f32 {
  workgroupBarrier();
  values[lane] = value;
  for (var span = LANES / 2; span > 0; span >>= 1) {
    workgroupBarrier();
    if (lane < span) { values[lane] += values[lane + span]; }
  }
  return workgroupUniformLoad(&values[0]);
}

/// The largest value of all lanes and its id, the lowest of several, in values[0] and ids[0].
fn most(lane: u32, value: f32, id: u32) {
  workgroupBarrier();
  values[lane] = value;
  ids[lane] = id;
  for (var span = LANES / 2; span > 0; span >>= 1) {
    workgroupBarrier();
    if (lane < span) {
      let v = values[lane + span];
      let i = ids[lane + span];
      if (v > values[lane] || (v == values[lane] && i < ids[lane])) {
        values[lane] = v;
        ids[lane] = i;
      }
    }
  }
  workgroupBarrier();
}

@compute @workgroup_size(LANES)
fn blocks(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  var value = LEAST;
  var id = p.limit;
  for (var i = lane; i < BLOCK; i += LANES) {
    let v = logit(group.y, group.x * BLOCK + i);
    if (v > value) {
      value = v;
      id = group.x * BLOCK + i;
    }
  }
  most(lane, value, id);
  let top = workgroupUniformLoad(&values[0]);
  let top_id = workgroupUniformLoad(&ids[0]);
  var sum = 0.0;
  for (var i = lane; i < BLOCK; i += LANES) {
    let v = logit(group.y, group.x * BLOCK + i);
    if (v > LEAST) { sum += exp(v - top); }
  }
  sum = total(lane, sum);
  if (lane == 0) {
    let at = (group.y * p.blocks + group.x) * 3;
    side[at] = bitcast<u32>(top);
    side[at + 1] = top_id;
    side[at + 2] = bitcast<u32>(sum);
  }
}

/// Floats in their order as unsigned integers.
fn key(v: f32) -> u32 {
  let bits = bitcast<u32>(v);
  return select(bits | 0x80000000u, ~bits, (bits >> 31) == 1);
}

/// How ids are measured, and from where to where: by number or weight, likeliest first or by id.
struct Measure {
  row: u32,
  top: f32,
  temperature: f32,
  counts: bool,
  by_id: bool,
}

/// Of the ids up to one, in their order: those with a larger key, and of those with this key the ones up to this id.
fn measure(m: Measure, lane: u32, least: u32, last: u32) -> f32 {
  var sum = 0.0;
  for (var id = lane; id < p.limit; id += LANES) {
    let v = logit(m.row, id);
    let k = key(v);
    let within = select(k > least || (k == least && id <= last), id <= last, m.by_id);
    if (v > LEAST && within) { sum += select(exp((v - m.top) / m.temperature), 1.0, m.counts); }
  }
  return total(lane, sum);
}

/// The first id, in their order, up to which the measure comes to `goal`, or with `beyond` to more; its key, and the id.
fn reach(m: Measure, lane: u32, goal: f32, beyond: bool) -> vec2<u32> {
  var least = 0u;
  if (!m.by_id) {
    for (var bit = 0x80000000u; bit > 0; bit >>= 1) {
      let found = measure(m, lane, least | bit, 0xffffffffu);
      if (found > goal || (found == goal && !beyond)) { least |= bit; }
    }
  }
  var low = 0u;
  var high = p.limit;
  while (low < high) {
    let middle = (low + high) / 2;
    let found = measure(m, lane, least, middle);
    if (found > goal || (found == goal && !beyond)) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return vec2<u32>(least, low);
}

@compute @workgroup_size(LANES)
fn choose(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = group.x;
  var value = LEAST;
  var id = p.limit;
  for (var block = lane; block < p.blocks; block += LANES) {
    let at = (row * p.blocks + block) * 3;
    let v = bitcast<f32>(side[at]);
    if (v > value) {
      value = v;
      id = side[at + 1];
    }
  }
  most(lane, value, id);
  let top = workgroupUniformLoad(&values[0]);
  let best = workgroupUniformLoad(&ids[0]);
  var sum = 0.0;
  for (var block = lane; block < p.blocks; block += LANES) {
    let at = (row * p.blocks + block) * 3;
    sum += bitcast<f32>(side[at + 2]) * exp(bitcast<f32>(side[at]) - top);
  }
  sum = total(lane, sum);
  let asked = p.rows + row * 4;
  let temperature = bitcast<f32>(given[asked]);
  let top_k = given[asked + 1];
  let top_p = bitcast<f32>(given[asked + 2]);
  let random = bitcast<f32>(given[asked + 3]);
  var chosen = best;
  if (temperature > 0) {
    var m = Measure(row, top, temperature, false, false);
    var mass = measure(m, lane, 0, 0xffffffffu);
    if (top_k > 0) {
      m.counts = true;
      let end = reach(m, lane, f32(top_k), false);
      m.counts = false;
      mass = measure(m, lane, end.x, end.y);
    }
    if (top_p < 1) {
      let end = reach(m, lane, top_p * mass, false);
      mass = measure(m, lane, end.x, end.y);
    }
    m.by_id = top_k == 0 && top_p >= 1;
    let end = reach(m, lane, random * mass, true);
    if (logit(row, end.y) > LEAST) { chosen = end.y; }
  }
  if (lane == 0) {
    arena[p.out + row * 2] = chosen;
    store(p.out + row * 2 + 1, min(0, logit(row, chosen) - top - log(sum)));
  }
}
