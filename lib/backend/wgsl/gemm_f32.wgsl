// Products of many rows with f32 weights: tiles of 64 rows and 64 columns, 4 × 4 for each of 256 lanes, through
// workgroup memory 16 k at a time.

const SIDE = 16u; // quads of rows, and of columns
const STEPS = 16u;

/// [STEPS][SIDE]: of each quad of rows, or of columns, a value each.
var<workgroup> x_tile: array<vec4<f32>, SIDE * STEPS>;
var<workgroup> w_tile: array<vec4<f32>, SIDE * STEPS>;

/// Sums of so many k stand by themselves before they are added up, which keeps a long sum near one rounding.
const BLOCK = 512u;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
  let s = segment(group.x);
  let across = group.x - s.group;
  let panels = (s.n + 7) / 8;
  let row = lane / SIDE;
  let column = lane % SIDE;
  var c0 = vec4<f32>();
  var c1 = vec4<f32>();
  var c2 = vec4<f32>();
  var c3 = vec4<f32>();
  var y0 = vec4<f32>();
  var y1 = vec4<f32>();
  var y2 = vec4<f32>();
  var y3 = vec4<f32>();
  for (var base = 0u; base < p.steps; base += STEPS) {
    workgroupBarrier();
    {
      let k = base + lane % STEPS;
      let t = (group.y * SIDE + lane / STEPS) * 4;
      var x = vec4<f32>();
      for (var i = 0u; i < 4; i++) {
        if (t + i < p.rows && k < p.steps) { x[i] = load(p.x + (t + i) * p.x_stride + k); }
      }
      x_tile[lane % STEPS * SIDE + lane / STEPS] = x;
    }
    {
      let panel = across * 8 + lane / 32;
      let k = base + lane % 32 / 2;
      var w = vec4<f32>();
      if (panel < panels && k < p.steps) { w = bitcast<vec4<f32>>(weights[panel_at(s.base, panel) + k * 2 + lane % 2]); }
      w_tile[lane % 32 / 2 * SIDE + lane / 32 * 2 + lane % 2] = w;
    }
    workgroupBarrier();
    for (var step = 0u; step < min(STEPS, p.steps); step++) {
      let x = x_tile[step * SIDE + row];
      let w = w_tile[step * SIDE + column];
      c0 += x.x * w;
      c1 += x.y * w;
      c2 += x.z * w;
      c3 += x.w * w;
    }
    if ((base + STEPS) % BLOCK == 0 || base + STEPS >= p.steps) {
      y0 += c0;
      y1 += c1;
      y2 += c2;
      y3 += c3;
      c0 = vec4<f32>();
      c1 = vec4<f32>();
      c2 = vec4<f32>();
      c3 = vec4<f32>();
    }
  }
  let sums = array<vec4<f32>, 4>(y0, y1, y2, y3);
  write_tile(s, (group.y * SIDE + row) * 4, (across * SIDE + column) * 4, sums);
}
