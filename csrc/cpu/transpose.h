// Transposes 8 x 8 blocks of floats in registers: short rows (channels_last) into tiles of positions, and back.
// 0.6 instructions per element instead of 2 for one by one.
// Compiled once per instruction set (FOCAL_CPU_ISA). Must not know: the loss.
#pragma once

#include "cpu/task.h"

namespace focal::cpu::FOCAL_CPU_ISA {

constexpr int kBlock = 8;

typedef float Vector8 __attribute__((vector_size(32)));

#if defined(__clang__)
#define FOCAL_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int Indices8 __attribute__((vector_size(32)));
#define FOCAL_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Indices8){__VA_ARGS__})
#endif

// out[j][i] = in[i][j] * factor[j], where factor is not null, for 8 x 8 floats; rows lie at the given strides.
FOCAL_INLINE void transpose_block(const float* in, int64_t in_stride, float* out, int64_t out_stride,
                                  const float* factor) {
  Vector8 r[8], t[8];
  for (int i = 0; i < 8; ++i) memcpy(&r[i], in + i * in_stride, sizeof(Vector8));
  if (factor) {
    Vector8 by;
    memcpy(&by, factor, sizeof(by));
    for (int i = 0; i < 8; ++i) r[i] *= by;
  }
  for (int i = 0; i < 8; i += 2) {
    t[i] = FOCAL_SHUFFLE(r[i], r[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    t[i + 1] = FOCAL_SHUFFLE(r[i], r[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = FOCAL_SHUFFLE(t[i], t[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
    r[i + 1] = FOCAL_SHUFFLE(t[i], t[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    r[i + 2] = FOCAL_SHUFFLE(t[i + 1], t[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
    r[i + 3] = FOCAL_SHUFFLE(t[i + 1], t[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = FOCAL_SHUFFLE(r[i], r[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    t[i + 4] = FOCAL_SHUFFLE(r[i], r[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
  for (int i = 0; i < 8; ++i) memcpy(out + i * out_stride, &t[i], sizeof(Vector8));
}

// tile[c * width + p] = rows[p * row_stride + c] for n rows of `classes` >= 8 contiguous floats. The last block of a row
// overlaps the one before it.
inline void rows_to_tile(const float* rows, int64_t row_stride, float* tile, int width, int classes, int n) {
  int p = 0;
  for (; p + kBlock <= n; p += kBlock) {
    for (int c = 0; c < classes; c += kBlock) {
      const int from = c + kBlock <= classes ? c : classes - kBlock;
      transpose_block(rows + p * row_stride + from, row_stride, tile + from * width + p, width, nullptr);
    }
  }
  for (; p < n; ++p) {
    for (int c = 0; c < classes; ++c) tile[c * width + p] = rows[p * row_stride + c];
  }
}

// rows[p * row_stride + c] = tile[c * width + p] * factor[p].
inline void tile_to_rows(const float* tile, int width, const float* factor, float* rows, int64_t row_stride,
                         int classes, int n) {
  int p = 0;
  for (; p + kBlock <= n; p += kBlock) {
    for (int c = 0; c < classes; c += kBlock) {
      const int from = c + kBlock <= classes ? c : classes - kBlock;
      transpose_block(tile + from * width + p, width, rows + p * row_stride + from, row_stride, factor + p);
    }
  }
  for (; p < n; ++p) {
    for (int c = 0; c < classes; ++c) rows[p * row_stride + c] = tile[c * width + p] * factor[p];
  }
}

}  // namespace focal::cpu::FOCAL_CPU_ISA
