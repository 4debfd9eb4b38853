// The next id from a row of logits, as lib/decode/sampler.ts chooses it: the likeliest, or drawn at a temperature from
// the topK likeliest and of these the fewest that come to topP.
//
// Workgroups of a row look at a block of ids each; the last stage has one for a row. Where a row is cut to the likeliest,
// the ids that may be among them are listed first, which are few: at least topK ids are as large as the topK largest of
// the blocks' maxima, and ids that all weigh less than (1 - topP) / limit are beyond topP together.
//
// In `side`, of each row `size` words: for each block of BLOCK ids the largest logit, its id, Σ exp(logit − largest), the
// same at the row's temperature, how many are listed, and the least key of those; then MAXIMA of each block; then, where
// a row is cut, the list.

struct Params {
  /// Ids that take no part, nor do those from `limit` on.
  never: vec4<u32>,
  limit: u32,
  logits: u32,
  stride: u32,
  /// [T, 2] in the arena: id, logarithm of its probability at temperature 1.
  out: u32,
  out_stride: u32,
  /// In `given`, [T, 4]: temperature, topK, topP, random.
  rows: u32,
  blocks: u32,
  size: u32,
}

@group(0) @binding(2) var<storage, read_write> side: array<u32>;
@group(0) @binding(3) var<storage, read> given: array<u32>;

const LANES = 256u;
const BLOCK = 4096u;
const MAXIMA = 16u;
const LEAST = -3.4e38;

/// Words of a block in `side`.
const WORDS = 6u;
const TOP = 0u;
const BEST = 1u;
const SUM = 2u;
const MASS = 3u;
const LISTED = 4u;
const KEY = 5u;

var<workgroup> values: array<f32, LANES>;
var<workgroup> ids: array<u32, LANES>;

fn logit(row: u32, id: u32) -> f32 {
  if (id >= p.limit || any(vec4<u32>(id) == p.never)) { return LEAST; }
  return load(p.logits + row * p.stride + id);
}

fn word(row: u32, block: u32, what: u32) -> u32 {
  return row * p.size + block * WORDS + what;
}

fn real(row: u32, block: u32, what: u32) -> f32 {
  return bitcast<f32>(side[word(row, block, what)]);
}

fn maxima(row: u32) -> u32 {
  return row * p.size + p.blocks * WORDS;
}

fn list(row: u32) -> u32 {
  return maxima(row) + p.blocks * MAXIMA;
}

/// What is asked of a row.
struct Asked {
  temperature: f32,
  top_k: u32,
  top_p: f32,
  random: f32,
  cut: bool,
}

fn asked(row: u32) -> Asked {
  let at = p.rows + row * 4;
  let a = Asked(bitcast<f32>(given[at]), given[at + 1], bitcast<f32>(given[at + 2]), bitcast<f32>(given[at + 3]), false);
  return Asked(a.temperature, a.top_k, a.top_p, a.random, a.temperature > 0 && (a.top_k > 0 || a.top_p < 1));
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

/// Brings the larger of values that lie `widest` apart, then half of that, down to `least`, with its id, the lowest of
/// several, into the first `least` places.
fn narrow(lane: u32, widest: u32, least: u32) {
  for (var span = widest; span >= least; span >>= 1) {
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
  let row = group.y;
  var value = LEAST;
  var id = p.limit;
  for (var i = lane; i < BLOCK; i += LANES) {
    let v = logit(row, group.x * BLOCK + i);
    if (v > value) {
      value = v;
      id = group.x * BLOCK + i;
    }
  }
  values[lane] = value;
  ids[lane] = id;
  narrow(lane, LANES / 2, MAXIMA);
  if (lane < MAXIMA) { side[maxima(row) + group.x * MAXIMA + lane] = key(values[lane]); }
  narrow(lane, MAXIMA / 2, 1);
  let top = workgroupUniformLoad(&values[0]);
  let best = workgroupUniformLoad(&ids[0]);
  let temperature = asked(row).temperature;
  var sum = 0.0;
  var mass = 0.0;
  for (var i = lane; i < BLOCK; i += LANES) {
    let v = logit(row, group.x * BLOCK + i);
    if (v > LEAST) {
      sum += exp(v - top);
      if (temperature > 0) { mass += exp((v - top) / temperature); }
    }
  }
  sum = total(lane, sum);
  mass = total(lane, mass);
  if (lane == 0) {
    side[word(row, group.x, TOP)] = bitcast<u32>(top);
    side[word(row, group.x, BEST)] = best;
    side[word(row, group.x, SUM)] = bitcast<u32>(sum);
    side[word(row, group.x, MASS)] = bitcast<u32>(mass);
  }
}

/// Floats in their order as unsigned integers.
fn key(v: f32) -> u32 {
  let bits = bitcast<u32>(v);
  return select(bits | 0x80000000u, ~bits, (bits >> 31) == 1);
}

/// The largest logit of a row, to all lanes; its id in ids[0].
fn row_top(row: u32, lane: u32) -> f32 {
  var value = LEAST;
  var id = p.limit;
  for (var block = lane; block < p.blocks; block += LANES) {
    let v = real(row, block, TOP);
    if (v > value) {
      value = v;
      id = side[word(row, block, BEST)];
    }
  }
  workgroupBarrier();
  values[lane] = value;
  ids[lane] = id;
  narrow(lane, LANES / 2, 1);
  return workgroupUniformLoad(&values[0]);
}

/// Weights of all ids of a row, the largest being 1.
fn row_mass(row: u32, lane: u32, top: f32, temperature: f32) -> f32 {
  var mass = 0.0;
  for (var block = lane; block < p.blocks; block += LANES) {
    mass += real(row, block, MASS) * exp((real(row, block, TOP) - top) / temperature);
  }
  return total(lane, mass);
}

/// Ids of one lane in a block, in their order, that may be among the likeliest.
fn listed(row: u32, block: u32, lane: u32, least: u32) -> u32 {
  var count = 0u;
  for (var i = 0u; i < min(BLOCK / LANES, p.limit); i++) {
    let v = logit(row, block * BLOCK + lane * (BLOCK / LANES) + i);
    if (v > LEAST && key(v) >= least) { count++; }
  }
  return count;
}

/// Counts what is listed.
@compute @workgroup_size(LANES)
fn count(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = group.y;
  let a = asked(row);
  if (!a.cut) { return; }
  var least = 0u;
  if (a.top_k > 0) {
    for (var bit = 0x80000000u; bit > 0; bit >>= 1) {
      var found = 0.0;
      for (var i = lane; i < p.blocks * MAXIMA; i += LANES) {
        if (side[maxima(row) + i] >= (least | bit)) { found += 1; }
      }
      if (total(lane, found) >= f32(a.top_k)) { least |= bit; }
    }
  } else {
    let top = row_top(row, lane);
    let mass = row_mass(row, lane, top, a.temperature);
    // Half of it, for all that is rounded.
    least = key(top + a.temperature * log((1 - a.top_p) * mass / f32(p.limit) / 2));
  }
  let found = total(lane, f32(listed(row, group.x, lane, least)));
  if (lane == 0) {
    side[word(row, group.x, LISTED)] = u32(found);
    side[word(row, group.x, KEY)] = least;
  }
}

/// Lists them, in the order of their ids.
@compute @workgroup_size(LANES)
fn gather(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = group.y;
  if (!asked(row).cut) { return; }
  var before = 0.0;
  for (var block = lane; block < group.x; block += LANES) { before += f32(side[word(row, block, LISTED)]); }
  let first = u32(total(lane, before));
  let least = side[word(row, group.x, KEY)];
  let own = listed(row, group.x, lane, least);
  workgroupBarrier();
  ids[lane] = own;
  for (var span = 1u; span < LANES; span <<= 1) {
    workgroupBarrier();
    let sum = ids[lane] + select(0u, ids[lane - min(span, lane)], lane >= span);
    workgroupBarrier();
    ids[lane] = sum;
  }
  var to = list(row) + first + ids[lane] - own;
  for (var i = 0u; i < min(BLOCK / LANES, p.limit); i++) {
    let id = group.x * BLOCK + lane * (BLOCK / LANES) + i;
    let v = logit(row, id);
    if (v > LEAST && key(v) >= least) {
      side[to] = id;
      to++;
    }
  }
}

/// How ids are measured, and from where to where: by number or weight; those of a list, likeliest first, or those of a
/// block by id.
struct Measure {
  row: u32,
  top: f32,
  temperature: f32,
  counts: bool,
  by_id: bool,
  /// Places in the list, or ids.
  first: u32,
  last: u32,
}

/// Of the ids up to one, in their order: those with a larger key, and of those with this key the ones up to this id.
fn measure(m: Measure, lane: u32, least: u32, last: u32) -> f32 {
  var sum = 0.0;
  for (var i = m.first + lane; i < m.last; i += LANES) {
    var id = i;
    if (!m.by_id) { id = side[list(m.row) + i]; }
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
  var low = select(0u, m.first, m.by_id);
  var high = select(p.limit, m.last, m.by_id);
  // First the key, bit by bit, then the id. One loop, since compilers write a measure out wherever it is.
  var bit = select(0x80000000u, 0u, m.by_id);
  while (bit > 0 || low < high) {
    let middle = (low + high) / 2;
    let found = measure(m, lane, least | bit, select(middle, 0xffffffffu, bit > 0));
    let enough = found > goal || (found == goal && !beyond);
    if (bit > 0) {
      if (enough) { least |= bit; }
      bit >>= 1;
    } else if (enough) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return vec2<u32>(least, low);
}

/// The block in which the weights by id come to more than `goal`, and what is before it.
var<workgroup> found_block: u32;
var<workgroup> found_before: f32;

fn find_block(row: u32, lane: u32, top: f32, temperature: f32, goal: f32) {
  if (lane == 0) {
    var before = 0.0;
    var block = 0u;
    for (; block + 1 < p.blocks; block++) {
      let next = before + real(row, block, MASS) * exp((real(row, block, TOP) - top) / temperature);
      if (next > goal) { break; }
      before = next;
    }
    found_block = block;
    found_before = before;
  }
}

const TOP_K = 0u;
const TOP_P = 1u;
const DRAW = 2u;

@compute @workgroup_size(LANES)
fn choose(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let row = group.x;
  let top = row_top(row, lane);
  let best = workgroupUniformLoad(&ids[0]);
  var sum = 0.0;
  for (var block = lane; block < p.blocks; block += LANES) {
    sum += real(row, block, SUM) * exp(real(row, block, TOP) - top);
  }
  sum = total(lane, sum);
  let a = asked(row);
  var chosen = best;
  if (a.temperature > 0) {
    var m = Measure(row, top, a.temperature, false, false, 0, 0);
    var mass = row_mass(row, lane, top, a.temperature);
    var before = 0.0;
    if (a.cut) {
      var count = 0.0;
      for (var block = lane; block < p.blocks; block += LANES) { count += f32(side[word(row, block, LISTED)]); }
      m.last = u32(total(lane, count));
    } else {
      find_block(row, lane, top, a.temperature, a.random * mass);
      m.by_id = true;
      m.first = workgroupUniformLoad(&found_block) * BLOCK;
      m.last = min(p.limit, m.first + BLOCK);
      before = workgroupUniformLoad(&found_before);
    }
    var end = vec2<u32>();
    for (var step = TOP_K; step <= DRAW; step++) {
      if ((step == TOP_K && a.top_k == 0) || (step == TOP_P && a.top_p >= 1)) { continue; }
      m.counts = step == TOP_K;
      let goal = select(select(a.top_p * mass, a.random * mass - before, step == DRAW), f32(a.top_k), m.counts);
      end = reach(m, lane, goal, step == DRAW);
      m.counts = false;
      if (step != DRAW) { mass = measure(m, lane, end.x, end.y); }
    }
    if (logit(row, end.y) > LEAST) { chosen = end.y; }
  }
  if (lane == 0) {
    store(p.out + row * p.out_stride, f32(chosen));
    store(p.out + row * p.out_stride + 1, min(0, logit(row, chosen) - top - log(sum)));
  }
}
