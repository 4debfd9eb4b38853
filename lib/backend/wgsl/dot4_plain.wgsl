/// Sum of the products of four s8 and four s8, where the language has no word for it.
fn dot4(a: u32, b: u32) -> i32 {
  let shift = vec4<u32>(24, 16, 8, 0);
  let x = bitcast<vec4<i32>>(vec4<u32>(a) << shift) >> vec4<u32>(24);
  let y = bitcast<vec4<i32>>(vec4<u32>(b) << shift) >> vec4<u32>(24);
  let products = x * y;
  return products.x + products.y + products.z + products.w;
}
