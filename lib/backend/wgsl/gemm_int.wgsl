// Products of many rows with integer weights: tiles of 64 rows and 64 columns, 4 × 4 for each of 256 lanes, through
// workgroup memory 32 k at a time, which is one group of int4.

const SIDE = 16u; // quads of rows, and of columns
const STEPS = 8u; // words of four k

/// [STEPS][SIDE]: of each quad of rows, or of columns, a word each.
var<workgroup> x_tile: array<vec4<u32>, SIDE * STEPS>;
var<workgroup> w_tile: array<vec4<u32>, SIDE * STEPS>;
/// int4: group scales of each quad of columns.
var<workgroup> scales: array<vec4<i32>, SIDE>;

/// Groups whose scaled sums, and twelve bits that were left before, certainly fit 32 bits:
/// 64 · 32 · 127 · 8 · 1023 + 4095 < 2³¹.
const FLUSH = 64u;

fn products(x: u32, w: vec4<u32>) -> vec4<i32> {
  return vec4<i32>(dot4(x, w.x), dot4(x, w.y), dot4(x, w.z), dot4(x, w.w));
}

/// 4096 · h + c, rounded once: either term is exact in f32, as 65,536 · 127 · 8 · 1023 < 2²⁴ · 4096 (longer rows are
/// refused in webgpu_memory.ts).
fn whole(h: vec4<i32>, c: vec4<i32>) -> vec4<f32> {
  return vec4<f32>(h + (c >> vec4<u32>(12))) * 4096 + vec4<f32>(c & vec4<i32>(4095));
}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let quads = (p.rows + 3) / 4;
  let s = segment(group.x);
  let across = group.x - s.group;
  let panels = (s.n + 7) / 8;
  let row = lane / SIDE;
  let column = lane % SIDE;
  var c0 = vec4<i32>();
  var c1 = vec4<i32>();
  var c2 = vec4<i32>();
  var c3 = vec4<i32>();
  // The sums are 4096 · h + c.
  var h0 = vec4<i32>();
  var h1 = vec4<i32>();
  var h2 = vec4<i32>();
  var h3 = vec4<i32>();
  for (var base = 0u; base < p.steps; base += STEPS) {
    workgroupBarrier();
    if (lane < 128) {
      let quad = group.y * SIDE + lane / STEPS;
      let step = base + lane % STEPS;
      var x = vec4<u32>();
      if (quad < quads && step < p.steps) { x = side[quad * p.steps + step]; }
      x_tile[lane % STEPS * SIDE + lane / STEPS] = x;
    } else if (SCHEME == INT8) {
      let i = lane - 128;
      let panel = across * 8 + i / 16;
      let step = base + i % 16 / 2;
      var w = vec4<u32>();
      if (panel < panels && step < p.steps) { w = weights[panel_at(s.base, panel) + step * 2 + i % 2]; }
      w_tile[i % 16 / 2 * SIDE + i / 16 * 2 + i % 2] = w;
    } else if (lane < 192) {
      let i = lane - 128;
      let panel = across * 8 + i / 8;
      let step = i % 8;
      let at = panel_at(s.base, panel) + base / 8 * 9;
      var w = vec4<u32>();
      var words = vec4<u32>();
      if (panel < panels) {
        w = weights[at + 1 + step];
        words = weights[at];
      }
      let a = w & vec4<u32>(0x0f0f0f0fu);
      let b = (w >> vec4<u32>(4)) & vec4<u32>(0x0f0f0f0fu);
      w_tile[step * SIDE + i / 8 * 2] = vec4<u32>(lowered(a.x), lowered(a.y), lowered(a.z), lowered(a.w));
      w_tile[step * SIDE + i / 8 * 2 + 1] = vec4<u32>(lowered(b.x), lowered(b.y), lowered(b.z), lowered(b.w));
      if (step < 2) { scales[i / 8 * 2 + step] = group_scales(words, step * 4); }
    }
    workgroupBarrier();
    var d0 = vec4<i32>();
    var d1 = vec4<i32>();
    var d2 = vec4<i32>();
    var d3 = vec4<i32>();
    for (var step = 0u; step < min(STEPS, p.steps); step++) {
      let x = x_tile[step * SIDE + row];
      let w = w_tile[step * SIDE + column];
      d0 += products(x.x, w);
      d1 += products(x.y, w);
      d2 += products(x.z, w);
      d3 += products(x.w, w);
    }
    if (SCHEME == INT8) {
      c0 += d0;
      c1 += d1;
      c2 += d2;
      c3 += d3;
    } else {
      let scale = scales[column];
      c0 += d0 * scale;
      c1 += d1 * scale;
      c2 += d2 * scale;
      c3 += d3 * scale;
      if (base / STEPS % FLUSH == FLUSH - 1) {
        h0 += c0 >> vec4<u32>(12);
        h1 += c1 >> vec4<u32>(12);
        h2 += c2 >> vec4<u32>(12);
        h3 += c3 >> vec4<u32>(12);
        c0 &= vec4<i32>(4095);
        c1 &= vec4<i32>(4095);
        c2 &= vec4<i32>(4095);
        c3 &= vec4<i32>(4095);
      }
    }
  }
  let sums = array<vec4<f32>, 4>(whole(h0, c0), whole(h1, c1), whole(h2, c2), whole(h3, c3));
  write_tile(s, (group.y * SIDE + row) * 4, (across * SIDE + column) * 4, sums);
}
