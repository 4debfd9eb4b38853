/// Steps along K up to which the sum of a column with int4 weights fits 32 bits: 512 · |4 · 127 · 8 · 1023| < 2³¹. With
/// int8 weights it always does.
const FITS = 512u;

/// The sums are exact, whatever the number of lanes, so that a row is what it is alone.
fn column_sum(base: u32, tile: u32, lane: u32, size: u32) -> Real {
  var c0 = Whole();
  var c1 = Whole();
  var c2 = Whole();
  var c3 = Whole();
  var c4 = Whole();
  var c5 = Whole();
  var c6 = Whole();
  var c7 = Whole();
  if (SCHEME == INT8) {
    for (var step = lane; step < p.steps; step += LANES) {
      let x = step_of(tile, step);
      let a = weights[base + step * 2];
      let b = weights[base + step * 2 + 1];
      c0 += dots(x, a.x);
      c1 += dots(x, a.y);
      c2 += dots(x, a.z);
      c3 += dots(x, a.w);
      c4 += dots(x, b.x);
      c5 += dots(x, b.y);
      c6 += dots(x, b.z);
      c7 += dots(x, b.w);
    }
  } else {
    // A group is a word of scales and eight steps, of which a lane takes four, so that it unpacks the scales once for
    // them. Its sum fits 32 bits: |4 · 127 · 8 · 1023| · K / 4 / LANES.
    for (var quad = lane; quad < p.steps / 4; quad += LANES) {
      let at = base + quad / 2 * 9;
      let words = weights[at];
      let steps = steps_of(tile, quad);
      let w = array<vec4<u32>, 4>(
        weights[at + 1 + quad % 2 * 4],
        weights[at + 2 + quad % 2 * 4],
        weights[at + 3 + quad % 2 * 4],
        weights[at + 4 + quad % 2 * 4],
      );
      var over = Whole();
      var d0 = Whole();
      var d1 = Whole();
      var d2 = Whole();
      var d3 = Whole();
      var d4 = Whole();
      var d5 = Whole();
      var d6 = Whole();
      var d7 = Whole();
      for (var i = 0u; i < FOUR; i++) {
        let x = steps[i];
        let a = w[i] & vec4<u32>(0x0f0f0f0fu);
        let b = (w[i] >> vec4<u32>(4)) & vec4<u32>(0x0f0f0f0fu);
        // Nibbles stand 8 too high.
        over += dots(x, 0x08080808u);
        d0 += dots(x, a.x);
        d1 += dots(x, a.y);
        d2 += dots(x, a.z);
        d3 += dots(x, a.w);
        d4 += dots(x, b.x);
        d5 += dots(x, b.y);
        d6 += dots(x, b.z);
        d7 += dots(x, b.w);
      }
      let s = group_scales(words, 0);
      let t = group_scales(words, 4);
      c0 += (d0 - over) * s.x;
      c1 += (d1 - over) * s.y;
      c2 += (d2 - over) * s.z;
      c3 += (d3 - over) * s.w;
      c4 += (d4 - over) * t.x;
      c5 += (d5 - over) * t.y;
      c6 += (d6 - over) * t.z;
      c7 += (d7 - over) * t.w;
    }
  }
  var low = array<Sum, 4>(c0, c1, c2, c3);
  var high = array<Sum, 4>(c4, c5, c6, c7);
  // Sums that do not fit go by twelve bits and the rest: either sum, and 4096 times the second, is exact in f32.
  let fits = SCHEME == INT8 || p.steps <= FITS;
  var sum = Real();
  for (var part = select(0u, 1u, fits); part < 2; part++) {
    if (!fits) {
      low = array<Sum, 4>(half(c0, part), half(c1, part), half(c2, part), half(c3, part));
      high = array<Sum, 4>(half(c4, part), half(c5, part), half(c6, part), half(c7, part));
    }
    sum = sum * 4096 + Real(sum_columns(tile, lane, size, low, high));
  }
  return sum;
}

fn half(c: Whole, part: u32) -> Whole {
  if (part == 0) { return rest(c); }
  return bits(c);
}
