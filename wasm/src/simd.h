// What every kernel shares: vector types, multiply-add, and the steps between accumulators and a finished row.
//
// One source, two builds: __wasm_relaxed_simd__ is defined only in the relaxed one. Pointers are byte addresses in
// the imported memory, strides count elements, and no function allocates: scratch comes from the caller.
#pragma once

#include <stdint.h>
#include <wasm_simd128.h>

#define EXPORT(name) __attribute__((export_name(#name), noinline))
#define INLINE static inline __attribute__((always_inline))

// Keeps clang from unrolling or reordering a loop that V8 compiles better rolled.
#define KEEP(x) __asm__ volatile("" : "+r"(x))

// Lanes of two vectors, 32 bits each.
#define LANES(a, b, i, j, k, l) wasm_i32x4_shuffle(a, b, i, j, k, l)
#define ROTATE(a, n) LANES(a, a, (n) & 3, ((n) + 1) & 3, ((n) + 2) & 3, ((n) + 3) & 3)

// a * b + c; fused or not as the engine likes, so f32 results differ in the last bit between engines.
INLINE v128_t madd(v128_t a, v128_t b, v128_t c) {
#ifdef __wasm_relaxed_simd__
  return wasm_f32x4_relaxed_madd(a, b, c);
#else
  return wasm_f32x4_add(wasm_f32x4_mul(a, b), c);
#endif
}

// Sum of the four lanes.
INLINE float total(v128_t a) {
  a = wasm_f32x4_add(a, LANES(a, a, 2, 3, 0, 1));
  a = wasm_f32x4_add(a, LANES(a, a, 1, 0, 3, 2));
  return wasm_f32x4_extract_lane(a, 0);
}

INLINE v128_t high_f64(v128_t a) { return wasm_f64x2_promote_low_f32x4(LANES(a, a, 2, 3, 2, 3)); }

INLINE v128_t narrow_f64(v128_t low, v128_t high) {
  return LANES(wasm_f32x4_demote_f64x2_zero(low), wasm_f32x4_demote_f64x2_zero(high), 0, 1, 4, 5);
}

// Four vectors of one row each to four of one column each.
INLINE void transpose(v128_t x[4]) {
  v128_t ab = LANES(x[0], x[1], 0, 4, 1, 5), AB = LANES(x[0], x[1], 2, 6, 3, 7);
  v128_t cd = LANES(x[2], x[3], 0, 4, 1, 5), CD = LANES(x[2], x[3], 2, 6, 3, 7);
  x[0] = LANES(ab, cd, 0, 1, 4, 5), x[1] = LANES(ab, cd, 2, 3, 6, 7);
  x[2] = LANES(AB, CD, 0, 1, 4, 5), x[3] = LANES(AB, CD, 2, 3, 6, 7);
}

// Activations are multiplied in tiles of five rows: the ten sums, two halves of a panel, one vector of the rows and
// one to spare are what the registers hold. Four rows lie across a vector, which is rotated lane by lane, so that
// lane i of c[j] belongs to row (i + j) mod 4, column i; the fifth is spread over a vector of its own.
//
// Where one instruction multiplies and adds, none is to spare, and a tile has six rows: its twelve sums take longer
// than the five cycles after which that instruction may go on with the same one, ten do not. The fifth row and the
// sixth alternate in a vector, rotated once.
//
// Where the engine makes one vector of two besides (wasm/twins.ts), there is room for the sums of twelve.
enum { ROWS = 5, TALL = 6, TWIN_ROWS = 12 };

// From the sums of a tile, c[0..3] and c[4..7] diagonals, c[8..9] straight, or with c[10..11] diagonals of two rows,
// to y[2 * row + half].
INLINE void straighten(const v128_t c[2 * TALL], v128_t y[2 * TALL], uint32_t rows) {
  for (uint32_t half = 0; half < 2; half++) {
    const v128_t *d = c + 4 * half;
    for (uint32_t r = 0; r < 4; r++) {
      v128_t a = LANES(d[r], d[(r + 3) & 3], 0, 5, 2, 7), b = LANES(d[(r + 2) & 3], d[(r + 1) & 3], 0, 5, 2, 7);
      y[2 * r + half] = LANES(a, b, 0, 1, 6, 7);
    }
    y[8 + half] = rows == TALL ? LANES(c[8 + half], c[10 + half], 0, 5, 2, 7) : c[8 + half];
    if (rows == TALL) y[10 + half] = LANES(c[10 + half], c[8 + half], 0, 5, 2, 7);
  }
}

// Constants of the functions below, in memory: an engine builds one in code from three instructions at every use.
extern const float EXP[10][4], GELU_POWERS[2][4], POWER_OF_TWO[7][4];
extern const float LARGE[4];
extern const uint8_t LOW_NIBBLE[16], HIGH_NIBBLE[16], SEVEN_BITS[16];

// e^x to about 2e-7 relative for x in [-87.3, 88]; beyond it stays at the ends. 2ⁿ times a polynomial on
// [-½ ln 2, ½ ln 2], minimax for the relative error; n is found by adding a number so large that the sum is whole,
// and stands in the last bits of that sum.
INLINE v128_t exp_f32(v128_t x) {
  x = wasm_f32x4_pmin(wasm_f32x4_pmax(x, wasm_v128_load(EXP[0])), wasm_v128_load(EXP[1]));
  v128_t big = wasm_v128_load(EXP[3]), power = madd(x, wasm_v128_load(EXP[2]), big), n = wasm_f32x4_sub(power, big);
  // ln 2 in two parts; the first has few bits, so that n times it is exact.
  x = madd(n, wasm_v128_load(EXP[5]), madd(n, wasm_v128_load(EXP[4]), x));
  v128_t p = madd(x, wasm_v128_load(EXP[9]), wasm_v128_load(EXP[8]));
  p = madd(madd(p, x, wasm_v128_load(EXP[7])), x, wasm_v128_load(EXP[6]));
  p = wasm_f32x4_add(madd(wasm_f32x4_mul(x, x), p, x), wasm_f32x4_const_splat(1.0f));
  return wasm_i32x4_add(p, wasm_i32x4_shl(power, 23));
}

// e^x of a score less the greatest, 0 below e^-60: so little is lost in every f32 sum, while products with it may be
// denormal, for which processors take a hundred times as long.
INLINE v128_t weight_f32(v128_t x) {
  return wasm_v128_and(exp_f32(x), wasm_f32x4_gt(x, wasm_f32x4_const_splat(-60.0f)));
}

// tanh to about 2e-7 relative: a polynomial (Cephes tanhf) near zero, where the exponential would cancel.
INLINE v128_t tanh_f32(v128_t x) {
  v128_t size = wasm_f32x4_abs(x);
  v128_t z = wasm_f32x4_mul(x, x);
  v128_t p = wasm_f32x4_splat(-5.70498872745e-3f);
  p = madd(p, z, wasm_f32x4_splat(2.06390887954e-2f));
  p = madd(p, z, wasm_f32x4_splat(-5.37397155531e-2f));
  p = madd(p, z, wasm_f32x4_splat(1.33314422036e-1f));
  p = madd(p, z, wasm_f32x4_splat(-3.33332819422e-1f));
  v128_t near = madd(wasm_f32x4_mul(p, z), x, x);
  v128_t e = exp_f32(wasm_f32x4_add(size, size));
  v128_t far = wasm_f32x4_sub(wasm_f32x4_splat(1.0f),
                              wasm_f32x4_div(wasm_f32x4_splat(2.0f), wasm_f32x4_add(e, wasm_f32x4_splat(1.0f))));
  far = wasm_v128_or(far, wasm_v128_and(x, wasm_f32x4_splat(-0.0f)));
  return wasm_v128_bitselect(near, far, wasm_f32x4_lt(size, wasm_f32x4_splat(0.625f)));
}

// 0.5x(1 + tanh(u)) with u = √(2/π)(x + 0.044715x³), written x / (1 + e^(-2u)): nothing cancels for negative x.
INLINE v128_t gelu_f32(v128_t x) {
  v128_t u = madd(wasm_f32x4_mul(x, x), wasm_v128_load(GELU_POWERS[1]), wasm_v128_load(GELU_POWERS[0]));
  u = wasm_f32x4_mul(u, x);
  return wasm_f32x4_div(x, wasm_f32x4_add(exp_f32(u), wasm_f32x4_const_splat(1.0f)));
}

// What happens to a product before it is stored. A null bias or residual is none.
enum { GELU = 1, MULTIPLY = 2 };  // MULTIPLY: the result is multiplied into what `out` holds (GeGLU's second half)

typedef struct {
  float *out;
  uint32_t out_stride;
  const float *bias;
  const float *residual;
  uint32_t residual_stride;
  uint32_t mode;
} Finish;

// Four columns of one row.
INLINE v128_t finish4(v128_t y, const float *out, const float *bias, const float *residual, uint32_t mode) {
  if (bias) y = wasm_f32x4_add(y, wasm_v128_load(bias));
  if (mode & GELU) y = gelu_f32(y);
  if (mode & MULTIPLY) y = wasm_f32x4_mul(y, wasm_v128_load(out));
  if (residual) y = wasm_f32x4_add(y, wasm_v128_load(residual));
  return y;
}

// A tile is finished for two panels at once, so that whole lines of the cache are written: its sums by both wait in a
// block on the stack, [rows of a tile][PAIR]. Not more tiles at once: so few lines are written while the next is multiplied.
enum { PAIR = 16, QUAD = 2 * PAIR };

// Finishes and stores columns [col, col + cols) of rows [row, row + rows); cols at most PAIR, y [rows][PAIR].
void finish(const Finish *f, uint32_t row, uint32_t rows, uint32_t col, uint32_t cols, const float *y);

// The sums of a tile, as `straighten` leaves them, to a half of such a block.
INLINE void keep_tile(float *y, const v128_t tile[2 * TALL], uint32_t rows) {
  for (uint32_t r = 0; r < rows; r++) {
    wasm_v128_store(y + PAIR * r, tile[2 * r]);
    wasm_v128_store(y + PAIR * r + 4, tile[2 * r + 1]);
  }
}

// The same for columns [col, col + 8) of a product of one row, those that are below n.
INLINE void finish8(const Finish *f, uint32_t col, uint32_t n, v128_t low, v128_t high) {
  if (n - col < 8) {
    float y[8];
    wasm_v128_store(y, low);
    wasm_v128_store(y + 4, high);
    return finish(f, 0, 1, col, n - col, y);
  }
  float *out = f->out + col;
  const float *bias = f->bias ? f->bias + col : 0, *residual = f->residual ? f->residual + col : 0;
  wasm_v128_store(out, finish4(low, out, bias, residual, f->mode));
  wasm_v128_store(out + 4, finish4(high, out + 4, bias ? bias + 4 : 0, residual ? residual + 4 : 0, f->mode));
}
