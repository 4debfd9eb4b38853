// f32 matrix products. W lies in panels of 8 columns, [n/8][k][8], columns past n zero.
//
// Sums: f32 within some blocks of k, f64 beyond, so the error of a product stays near one rounding
// whatever k is.
#include "floats.h"
#include "tiles.h"

enum {
  BLOCK = 64,   // values of k in a chain of f32 sums
  BLOCKS = 4,   // chains added in f32
};

// Rows to tiles [k][lanes], of five or of twins.
INLINE void pack(float *out, const float *x, uint32_t stride, uint32_t rows, uint32_t k, uint32_t lanes) {
  for (uint32_t row = 0; row < rows; row += lanes) {
    const float *from = x + (uint64_t)row * stride;
    uint32_t left = rows - row, i = 0;
    for (; left >= lanes && i + 4 <= k; i += 4, out += 4 * lanes) {
      for (uint32_t first = 0; first + 4 <= lanes; first += 4) {
        v128_t four[4];
        for (uint32_t r = 0; r < 4; r++) four[r] = wasm_v128_load(from + (uint64_t)(first + r) * stride + i);
        transpose(four);
        for (uint32_t j = 0; j < 4; j++) wasm_v128_store(out + lanes * j + first, four[j]);
      }
      for (uint32_t j = 0; lanes == ROWS && j < 4; j++) out[ROWS * j + 4] = from[4 * (uint64_t)stride + i + j];
    }
    for (; i < k; i++, out += lanes) {
      for (uint32_t r = 0; r < lanes; r++) out[r] = r < left ? from[(uint64_t)r * stride + i] : 0;
    }
  }
}

EXPORT(pack_f32)
void pack_f32(float *out, const float *x, uint32_t stride, uint32_t rows, uint32_t k, uint32_t lanes) {
  if (lanes == TWIN_ROWS) pack(out, x, stride, rows, k, TWIN_ROWS);
  else pack(out, x, stride, rows, k, ROWS);
}

INLINE void gather_f64(v128_t sums[], const v128_t c[], uint32_t count) {
  for (uint32_t i = 0; i < count; i++) {
    sums[2 * i] = wasm_f64x2_add(sums[2 * i], wasm_f64x2_promote_low_f32x4(c[i]));
    sums[2 * i + 1] = wasm_f64x2_add(sums[2 * i + 1], high_f64(c[i]));
  }
}

// Adds `count` values of k of a tile to its sums, chain by chain.
INLINE void chains(const float *a, const float *w, uint32_t count, v128_t sums[10]) {
  for (uint32_t i = 0; i < count; i += BLOCK) {
    v128_t c[10];
    tile_f32(a + ROWS * i, w + 8 * i, count - i < BLOCK ? count - i : BLOCK, c);
    for (uint32_t j = 0; j < 10; j++) sums[j] = wasm_f32x4_add(sums[j], c[j]);
  }
}

// Sums of a tile over the whole of k; from copies, if there are any, that begin with chunks `row` and `panel`; but for the
// last values, which make no whole step of four.
INLINE void tile_exact(const float *a, const float *w, uint32_t row, uint32_t panel, uint32_t k, uint32_t copies,
                       v128_t y[10]) {
  v128_t sums[20] = {0}, c[10];
  for (uint32_t i = 0; i < k; i += BLOCK * BLOCKS) {
    uint32_t count = k - i < BLOCK * BLOCKS ? k - i : BLOCK * BLOCKS, whole = copies ? count / 4 * 4 : 0;
    v128_t part[10] = {0};
    if (whole) sums_f32(row + i / CHUNK, panel + i / CHUNK, whole, part);
    if (count > whole) chains(a + ROWS * (i + whole), w + 8 * (i + whole), count - whole, part);
    gather_f64(sums, part, 10);
  }
  for (uint32_t i = 0; i < 10; i++) c[i] = narrow_f64(sums[2 * i], sums[2 * i + 1]);
  straighten(c, y, ROWS);
}

// The same of tiles of twins, where k is a multiple of four. Four panels at once: rows that are too many for the second-level
// cache are read once for two pairs.
INLINE void gemm_twins(const float *a, const float *w, uint32_t rows, uint32_t k, uint32_t n, const Finish *f) {
  for (uint32_t first = 0; first < n; first += QUAD, w += (uint64_t)QUAD * k) {
    uint32_t end = n - first < QUAD ? n : first + QUAD;
    for (uint32_t row = 0; row < rows; row += TWIN_ROWS) {
      uint32_t count = rows - row < TWIN_ROWS ? rows - row : TWIN_ROWS;
      for (uint32_t col = first; col < end; col += PAIR) {
        float y[PAIR * TWIN_ROWS];
        uint32_t cols = end - col < PAIR ? end - col : PAIR;
        for (uint32_t half = 0; half < cols; half += 8) {
          const float *tile = a + (uint64_t)row * k, *panel = w + (uint64_t)(col - first + half) * k;
          if (count > 4) f32_twin12(tile, panel, k, y + half);
          else f32_twin4(tile, panel, k, y + half);
        }
        finish(f, row, count, col, cols, y);
      }
    }
  }
}

// out [rows, n] = a · Wᵀ with a as pack_f32 leaves it; the same key, the same a. kernel: 0 or TWIN.
EXPORT(gemm_f32)
void gemm_f32(const float *a, const float *w, uint32_t key, uint32_t rows, uint32_t k, uint32_t n, float *out,
              uint32_t out_stride, const float *bias, const float *residual, uint32_t residual_stride, uint32_t mode,
              uint32_t kernel) {
  const Finish f = {out, out_stride, bias, residual, residual_stride, mode};
  if (kernel) return gemm_twins(a, w, rows, k, n, &f);
  uint32_t copies = rows > COPIED && k >= 4, steps = k / 4 * 4, chunks = chunks_of(steps);
  if (copies) stage_rows_floats(0, a, (rows + ROWS - 1) / ROWS, steps, (k - steps) * 4 * ROWS, key);
  for (uint32_t col = 0; col < n; col += PAIR, w += (uint64_t)PAIR * k) {
    uint32_t cols = n - col < PAIR ? n - col : PAIR;
    if (copies) stage_panels(0, w, (cols + 7) / 8, steps, (k - steps) * 32, 0);
    for (uint32_t row = 0; row < rows; row += ROWS) {
      float y[PAIR * ROWS];
      uint32_t count = rows - row < ROWS ? rows - row : ROWS;
      for (uint32_t half = 0; half < cols; half += 8) {
        v128_t sums[10];
        const float *tile = a + (uint64_t)row * k, *panel = w + (uint64_t)half * k;
        if (copies) tile_exact(tile, panel, row / ROWS * chunks, half / 8 * chunks, k, 1, sums);
        else tile_exact(tile, panel, 0, 0, k, 0, sums);
        keep_tile(y + half, sums, ROWS);
      }
      finish(&f, row, count, col, cols, y);
    }
  }
}

// out [1, n] = x · Wᵀ for one row, unpacked.
EXPORT(gemv_f32)
void gemv_f32(const float *x, const float *w, uint32_t k, uint32_t n, float *out, const float *bias,
              const float *residual, uint32_t mode) {
  const Finish f = {out, 0, bias, residual, 0, mode};
  for (uint32_t col = 0; col < n; col += 8) {
    v128_t sums[4] = {0}, c[2];
    for (uint32_t i = 0; i < k;) {
      uint32_t end = k - i < 2 * BLOCK ? k : i + 2 * BLOCK;
      v128_t zero = wasm_f32x4_const_splat(0);
      v128_t c0 = zero, c1 = zero, c2 = zero, c3 = zero, c4 = zero, c5 = zero, c6 = zero, c7 = zero;
      for (; i + 4 <= end; i += 4, w += 32) {
        KEEP(w);
        v128_t vx = wasm_v128_load(x + i);
        v128_t x0 = LANES(vx, vx, 0, 0, 0, 0), x1 = LANES(vx, vx, 1, 1, 1, 1);
        v128_t x2 = LANES(vx, vx, 2, 2, 2, 2), x3 = LANES(vx, vx, 3, 3, 3, 3);
        c0 = madd(x0, wasm_v128_load(w), c0);
        c1 = madd(x0, wasm_v128_load(w + 4), c1);
        c2 = madd(x1, wasm_v128_load(w + 8), c2);
        c3 = madd(x1, wasm_v128_load(w + 12), c3);
        c4 = madd(x2, wasm_v128_load(w + 16), c4);
        c5 = madd(x2, wasm_v128_load(w + 20), c5);
        c6 = madd(x3, wasm_v128_load(w + 24), c6);
        c7 = madd(x3, wasm_v128_load(w + 28), c7);
      }
      for (; i < end; i++, w += 8) {
        c0 = madd(wasm_v128_load32_splat(x + i), wasm_v128_load(w), c0);
        c1 = madd(wasm_v128_load32_splat(x + i), wasm_v128_load(w + 4), c1);
      }
      c[0] = wasm_f32x4_add(wasm_f32x4_add(c0, c2), wasm_f32x4_add(c4, c6));
      c[1] = wasm_f32x4_add(wasm_f32x4_add(c1, c3), wasm_f32x4_add(c5, c7));
      gather_f64(sums, c, 2);
    }
    finish8(&f, col, n, narrow_f64(sums[0], sums[1]), narrow_f64(sums[2], sums[3]));
  }
}

// out [count, k]: rows ids[i] of the table, times scale.
EXPORT(embed_f32)
void embed_f32(float *out, uint32_t out_stride, const uint32_t *ids, uint32_t count, const float *w, uint32_t k,
               float scale) {
  for (uint32_t t = 0; t < count; t++, out += out_stride) {
    const float *from = w + (uint64_t)(ids[t] / 8) * 8 * k + ids[t] % 8;
    for (uint32_t i = 0; i < k; i++) out[i] = from[8 * i] * scale;
  }
}
