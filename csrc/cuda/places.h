// Where a block's and a thread's positions lie. Must not know: the loss.
#pragma once

#include "cuda/device.h"
#include "layout.h"

namespace focal::cuda {

// The dimensions of layout.h as a kernel parameter: a number to offsets.
struct Outer {
  static constexpr int kRank = 12;
  int rank = 0;
  int64_t sizes[kRank];
  int64_t strides[kRank][kOperands];

  // False where there are too many dimensions.
  bool assign(const Dim* dims, int count) {
    rank = count;
    if (count > kRank) return false;
    for (int d = 0; d < count; ++d) {
      sizes[d] = dims[d].size;
      for (int o = 0; o < kOperands; ++o) strides[d][o] = dims[d].stride[o];
    }
    return true;
  }

  // Offsets of number `index`; returns its index in dimension `which`, 0 without one.
  FOCAL_DEVICE int64_t locate(int64_t index, int64_t (&offset)[kOperands], int which = -1) const {
    int64_t found = 0;
#pragma unroll
    for (int o = 0; o < kOperands; ++o) offset[o] = 0;
    for (int d = rank - 1; d >= 0; --d) {
      int64_t quotient = 0, at = index;
      if (d > 0) {
        // 64-bit divisions take ten times as long.
        quotient = (index | sizes[d]) >> 32 ? index / sizes[d]
                                            : static_cast<uint32_t>(index) / static_cast<uint32_t>(sizes[d]);
        at = index - quotient * sizes[d];
      }
      index = quotient;
      found = d == which ? at : found;
#pragma unroll
      for (int o = 0; o < kOperands; ++o) offset[o] += at * strides[d][o];
    }
    return found;
  }
};

// A thread's `most` positions of a tile of a run that `threads` threads share. Where vectors are aligned they are
// neighbours. Elsewhere the lanes of a warp take turns, since stores of single elements must fill whole sectors.
struct Lane {
  int64_t first;
  int spread, count;

  FOCAL_DEVICE Lane(bool aligned, int most, unsigned thread, unsigned threads, unsigned tile, int64_t run) {
    const unsigned lane = thread % 32, warp = thread / 32;
    spread = aligned ? 1 : 32;
    first = static_cast<int64_t>(tile) * threads * most + (aligned ? thread * most : warp * 32 * most + lane);
    const int64_t left = run - first;
    const int64_t exist = aligned ? left : (left + 31) / 32;
    count = left <= 0 ? 0 : exist < most ? static_cast<int>(exist) : most;
  }
};

}  // namespace focal::cuda
