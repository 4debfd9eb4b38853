// Products of tiles from copies of their operands that need no look at an address: wasm/tiles.ts tells why, and makes them.
//
// Copies of a module's instance are its own: nothing else reads them, and the next call with as many overwrites them.
#pragma once

#include "simd.h"

#define TILES(name) __attribute__((import_module("tiles"), import_name(#name))) void name

// Rows above which copies pay.
enum { COPIED = 30 };

// Steps of a chunk, as the structs of the copies are called here.
enum { CHUNK = 16 };

// Whether a tile of so many steps may be copied: it may end after 2, 4, 8, 12 or 16 of a chunk.
INLINE int copyable(uint32_t steps) { return steps && (steps % 4 == 0 || steps % CHUNK == 2); }

// Chunks that so many steps lie in.
INLINE uint32_t chunks_of(uint32_t steps) { return (steps + CHUNK - 1) / CHUNK; }

// `count` panels of `steps` steps, `skip` bytes apart, each in whole chunks, from chunk `at` on. Nothing is done where the
// last copies had this key, which is not 0.
TILES(stage_panels)(uint32_t at, const void *from, uint32_t count, uint32_t steps, uint32_t skip, uint32_t key);

// The same of tiles of five rows: of floats, and of bytes or words.
TILES(stage_rows_floats)(uint32_t at, const void *from, uint32_t count, uint32_t steps, uint32_t skip, uint32_t key);
TILES(stage_rows_five)(uint32_t at, const void *from, uint32_t count, uint32_t steps, uint32_t skip, uint32_t key);

// Sums of the tile whose copy begins with chunk `row` and the panel whose copy begins with chunk `panel`.
#define TILE_SUMS(name, count) TILES(sums_##name)(uint32_t row, uint32_t panel, uint32_t steps, v128_t sums[count])

// The same as floats, rows of PAIR: sums less zero points of rows times sums of columns, times the scales of both. `short`: of
// the first four rows of a tile.
#define TILE_SCALED(name)                                                                                  \
  TILES(scaled_##name)(uint32_t row, uint32_t panel, uint32_t steps, float *out, const int32_t *zeros,     \
                       const float *scales, const float *w_scale, const int32_t *w_sums)

TILE_SUMS(f32, 2 * ROWS);

// Of tiles of twins and panels as they lie: floats of the first so many rows, or sums of all, straight.
#define SCALED_TWIN(name, rows)                                                                       \
  TILES(scaled_##name##_twin##rows)(const int8_t *tile, const int8_t *panel, uint32_t steps, float *out, \
                                    const int32_t *zeros, const float *scales, const float *w_scale,  \
                                    const int32_t *w_sums)
#define SCALED_TWINS(name) \
  SCALED_TWIN(name, 4);    \
  SCALED_TWIN(name, 8);    \
  SCALED_TWIN(name, 12)
// Of floats, exact but for one rounding of each sum of 64 products, and of four such sums; rows of PAIR, the first so many.
TILES(f32_twin4)(const float *tile, const float *panel, uint32_t k, float *out);
TILES(f32_twin12)(const float *tile, const float *panel, uint32_t k, float *out);
// Sums of `first` steps, then of `block` steps each, together, straight.
TILES(blocks_f32_twin12)(const float *tile, const float *panel, uint32_t steps, uint32_t first, uint32_t block,
                         v128_t y[2 * TWIN_ROWS]);
TILES(sums_words_twin12)(const int8_t *tile, const int8_t *panel, uint32_t steps, v128_t sums[2 * TWIN_ROWS]);

// What only one of the builds has.
#ifdef __wasm_relaxed_simd__
TILES(stage_rows_six)(uint32_t at, const void *from, uint32_t count, uint32_t steps, uint32_t skip, uint32_t key);
TILE_SUMS(dot, 2 * TALL);
TILE_SCALED(dot);
SCALED_TWINS(dot);
SCALED_TWINS(words1);
SCALED_TWINS(words4);
SCALED_TWINS(words8);
// 128 times the sums of a tile, and those of the tile `low`.
TILES(halves_dot_twin12)(const int8_t *tile, const int8_t *panel, uint32_t steps, v128_t sums[2 * TWIN_ROWS], const int8_t *low);
// Of `groups` groups of int4 weights, times their scales: a group of a tile is its presets and 32 values, a group of a panel
// 32 nibbles and the scales of its columns, twice. Rows of PAIR.
TILES(int4_twin12)(const int8_t *tile, const int8_t *panel, uint32_t groups, float *out);
TILE_SCALED(words4);
TILE_SCALED(words4_short);
TILE_SCALED(words8);
TILE_SCALED(words8_short);
#else
SCALED_TWINS(words);
TILE_SUMS(words, 2 * ROWS);
TILE_SCALED(words);
TILE_SCALED(words_short);
#endif
