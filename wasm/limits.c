// What this processor can do at most, in the same engine: loops with nothing in them but one kind of work. The
// benchmark measures them at its start and gives every figure as a share of the one that bounds it.
#include "src/simd.h"

#define SPLAT(i) wasm_i8x16_splat((int8_t)(seed + (i)))
#define EACH12(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define ZERO(i) v128_t c##i = wasm_i32x4_const_splat(0);
#define FOLD(i) sum = wasm_v128_xor(sum, c##i);

// Relaxed dot product with addition: 48 of them, 32 operations each, a turn.
EXPORT(dot_add)
int32_t dot_add(uint32_t turns, int32_t seed) {
  v128_t a = SPLAT(0), b = SPLAT(1), sum = a;
  EACH12(ZERO)
#define DOT(i) c##i = wasm_i32x4_relaxed_dot_i8x16_i7x16_add(a, b, c##i);
  do {
    EACH12(DOT) EACH12(DOT) EACH12(DOT) EACH12(DOT)
    KEEP(turns);
  } while (--turns);
  EACH12(FOLD)
  return wasm_i32x4_extract_lane(sum, 0);
}

// f32 multiply-add: 48 of them, 8 operations each, a turn.
EXPORT(multiply_add)
int32_t multiply_add(uint32_t turns, int32_t seed) {
  v128_t a = wasm_f32x4_splat((float)seed), b = wasm_f32x4_splat(0.5f), sum = a;
  EACH12(ZERO)
#define MADD(i) c##i = wasm_f32x4_relaxed_madd(a, b, c##i);
  do {
    EACH12(MADD) EACH12(MADD) EACH12(MADD) EACH12(MADD)
    KEEP(turns);
  } while (--turns);
  EACH12(FOLD)
  return wasm_i32x4_extract_lane(sum, 0);
}

// Products summed in 16 bits for `steps` steps, then widened: 80 products, 32 operations each, a turn. No product
// may occur twice in a turn, or the engine computes it once: operands trade places, then one of them changes.
#define EACH5(X) X(0) X(1) X(2) X(3) X(4)
#define FIRST(i) v128_t s##i = wasm_i16x8_relaxed_dot_i8x16_i7x16(a, b##i);
#define MORE(i) s##i = wasm_i16x8_add(s##i, wasm_i16x8_relaxed_dot_i8x16_i7x16(a, b##i));
#define BACK(i) s##i = wasm_i16x8_add(s##i, wasm_i16x8_relaxed_dot_i8x16_i7x16(b##i, a));
#define ALONE(i) v128_t s##i = wasm_i16x8_relaxed_dot_i8x16_i7x16(b##i, a);
#define WIDEN(i) c##i = wasm_i32x4_add(c##i, wasm_i32x4_extadd_pairwise_i16x8(s##i));
#define NEXT a = wasm_i8x16_add(a, b0);
#define ONE { EACH5(FIRST) EACH5(WIDEN) } { EACH5(ALONE) EACH5(WIDEN) } NEXT
#define TWO { EACH5(FIRST) EACH5(BACK) EACH5(WIDEN) } NEXT
#define PAIR NEXT EACH5(MORE) EACH5(BACK)
#define FOUR { EACH5(FIRST) EACH5(BACK) PAIR EACH5(WIDEN) } NEXT
#define EIGHT { EACH5(FIRST) EACH5(BACK) PAIR PAIR PAIR EACH5(WIDEN) } NEXT
#define SIXTEEN { EACH5(FIRST) EACH5(BACK) PAIR PAIR PAIR PAIR PAIR PAIR PAIR EACH5(WIDEN) } NEXT
#define WORDS(steps, BODY)                                                            \
  EXPORT(words_##steps)                                                               \
  int32_t words_##steps(uint32_t turns, int32_t seed) {                               \
    v128_t a = SPLAT(0), b0 = SPLAT(1), b1 = SPLAT(2), b2 = SPLAT(3), b3 = SPLAT(4);  \
    v128_t b4 = SPLAT(5), sum = a;                                                    \
    EACH5(ZERO)                                                                       \
    do {                                                                              \
      BODY                                                                            \
      KEEP(turns);                                                                    \
    } while (--turns);                                                                \
    EACH5(FOLD)                                                                       \
    return wasm_i32x4_extract_lane(sum, 0);                                           \
  }
WORDS(1, ONE ONE ONE ONE ONE ONE ONE ONE)
WORDS(2, TWO TWO TWO TWO TWO TWO TWO TWO)
WORDS(4, FOUR FOUR FOUR FOUR)
WORDS(8, EIGHT EIGHT)
WORDS(16, SIXTEEN)

// Reads [from, from + bytes), a multiple of 128 bytes.
EXPORT(read)
int32_t read(const uint8_t *from, uint32_t bytes) {
  const uint8_t *end = from + bytes;
  v128_t zero = wasm_i32x4_const_splat(0), c0 = zero, c1 = zero, c2 = zero, c3 = zero;
  do {
    c0 = wasm_i32x4_add(c0, wasm_i32x4_add(wasm_v128_load(from), wasm_v128_load(from + 64)));
    c1 = wasm_i32x4_add(c1, wasm_i32x4_add(wasm_v128_load(from + 16), wasm_v128_load(from + 80)));
    c2 = wasm_i32x4_add(c2, wasm_i32x4_add(wasm_v128_load(from + 32), wasm_v128_load(from + 96)));
    c3 = wasm_i32x4_add(c3, wasm_i32x4_add(wasm_v128_load(from + 48), wasm_v128_load(from + 112)));
    from += 128;
    KEEP(from);
  } while (from < end);
  return wasm_i32x4_extract_lane(wasm_i32x4_add(wasm_i32x4_add(c0, c1), wasm_i32x4_add(c2, c3)), 0);
}

// The same in eight streams, an eighth apart; bytes a multiple of 512.
EXPORT(read_streams)
int32_t read_streams(const uint8_t *from, uint32_t bytes) {
  uint32_t apart = bytes / 8;
  const uint8_t *end = from + apart;
  v128_t zero = wasm_i32x4_const_splat(0), c[8] = {zero, zero, zero, zero, zero, zero, zero, zero};
  do {
    for (uint32_t i = 0; i < 8; i++) {
      const uint8_t *p = from + i * apart;
      c[i] = wasm_i32x4_add(c[i], wasm_i32x4_add(wasm_v128_load(p), wasm_v128_load(p + 16)));
      c[i] = wasm_i32x4_add(c[i], wasm_i32x4_add(wasm_v128_load(p + 32), wasm_v128_load(p + 48)));
    }
    from += 64;
    KEEP(from);
  } while (from < end);
  for (uint32_t i = 1; i < 8; i++) c[0] = wasm_i32x4_add(c[0], c[i]);
  return wasm_i32x4_extract_lane(c[0], 0);
}
