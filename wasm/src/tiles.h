// Products of tiles from copies of their operands that need no look at an address: wasm/tiles.ts tells why, and makes them.
//
// Copies of a module's instance are its own: nothing else reads them, and the next call with as many overwrites them.
#pragma once

#include "simd.h"

#define TILES(name) __attribute__((import_module("tiles"), import_name(#name))) void name

// Steps of a chunk; steps of everything below are a multiple of 4.
enum { CHUNK = 16 };

// Chunks that so many steps lie in.
INLINE uint32_t chunks_of(uint32_t steps) { return (steps + CHUNK - 1) / CHUNK; }

#ifdef __wasm_relaxed_simd__
// `count` panels of `steps` steps, `skip` bytes apart, each in whole chunks.
TILES(stage_panels)(const void *from, uint32_t count, uint32_t steps, uint32_t skip);

// The same of tiles of rows.
TILES(stage_rows_six)(const void *from, uint32_t count, uint32_t steps, uint32_t skip);
TILES(stage_rows_five)(const void *from, uint32_t count, uint32_t steps, uint32_t skip);

// Sums of the tile whose copy begins with chunk `row` and the panel whose copy begins with chunk `panel`.
TILES(staged_dot)(uint32_t row, uint32_t panel, uint32_t steps, v128_t sums[2 * TALL]);
TILES(staged_words4)(uint32_t row, uint32_t panel, uint32_t steps, v128_t sums[2 * ROWS]);
TILES(staged_words8)(uint32_t row, uint32_t panel, uint32_t steps, v128_t sums[2 * ROWS]);
TILES(staged_f32)(uint32_t row, uint32_t panel, uint32_t steps, v128_t sums[2 * ROWS]);
enum { STAGES = 1 };
#else
// Never called.
#define STAGE(name) INLINE void name(const void *from, uint32_t count, uint32_t steps, uint32_t skip) { (void)from, (void)count, (void)steps, (void)skip; }
#define STAGED(name) INLINE void name(uint32_t row, uint32_t panel, uint32_t steps, v128_t *sums) { (void)row, (void)panel, (void)steps, (void)sums; }
STAGE(stage_panels) STAGE(stage_rows_six) STAGE(stage_rows_five)
STAGED(staged_dot) STAGED(staged_words4) STAGED(staged_words8) STAGED(staged_f32)
enum { STAGES = 0 };
#endif
