// What every kernel begins with: activations as words of one arena, and the arithmetic that WGSL leaves loose.

@group(0) @binding(0) var<storage, read_write> arena: array<u32>;
@group(0) @binding(1) var<uniform> p: Params;

/// Stands for an operand that is not there.
const NONE = 0xffffffffu;

fn load(at: u32) -> f32 {
  return bitcast<f32>(arena[at]);
}

fn store(at: u32, value: f32) {
  arena[at] = bitcast<u32>(value);
}

/// To a few units in the last place everywhere; the builtin may be a difference of exponentials, which near zero is not.
fn tanh_near(x: f32) -> f32 {
  let a = abs(x);
  if (a < 0.35) {
    let s = x * x;
    return x * (1 + s * (-1.0 / 3 + s * (2.0 / 15 + s * (-17.0 / 315 + s * (62.0 / 2835 - s * (1382.0 / 155925))))));
  }
  let e = exp(-2 * a);
  return sign(x) * (1 - e) / (1 + e);
}

fn gelu(x: f32) -> f32 {
  return 0.5 * x * (1 + tanh_near(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}

/// Four s8 as one word.
fn packed(v: vec4<i32>) -> u32 {
  let b = vec4<u32>(v & vec4<i32>(255)) << vec4<u32>(0, 8, 16, 24);
  return b.x | b.y | b.z | b.w;
}
