/// Sum of the products of four s8 and four s8.
fn dot4(a: u32, b: u32) -> i32 {
  return dot4I8Packed(a, b);
}
