// What "the k hardest of n losses" means: how losses are ordered, how many are taken, what a gradient needs to know.
// Host and device. Must not know: how they are found, memory, threads, torch.
#pragma once

#include <cstdint>

#include "math/policy.h"

namespace focal {

// Losses are >= 0 or NaN, so their bits order as they do. -0 counts as 0, every NaN as one value above infinity.
template <class Real>
struct Order;
template <>
struct Order<float> {
  using Key = int32_t;  // never negative; signed, since that is what every instruction set compares
  using Unsigned = uint32_t;
  static constexpr int kBits = 31;
  static constexpr Key kNaN = 0x7f800001;
  static constexpr Key kMagnitude = 0x7fffffff;
};
template <>
struct Order<double> {
  using Key = int64_t;
  using Unsigned = uint64_t;
  static constexpr int kBits = 63;
  static constexpr Key kNaN = 0x7ff0000000000001;
  static constexpr Key kMagnitude = 0x7fffffffffffffff;
};
template <class Real>
using Key = typename Order<Real>::Key;

template <class Real>
FOCAL_INLINE Key<Real> key_of(Real loss) {
  const Key<Real> key = bit_cast<Key<Real>>(loss) & Order<Real>::kMagnitude;
  return key < Order<Real>::kNaN ? key : Order<Real>::kNaN;
}

// How many are taken: by the ratio, or those above the threshold, whichever are more.
struct HardestRule {
  double keep_ratio = 0;  // in (0, 1], or 0 for none; one of both is given
  double threshold = -1;  // >= 0, or negative for none

  // counted: how many of the losses count. The others are exactly 0 and come last.
  FOCAL_INLINE int64_t by_ratio(double counted, int64_t losses) const {
    if (keep_ratio <= 0 || !(counted > 0)) return 0;
    const int64_t k = static_cast<int64_t>(counted * keep_ratio);
    return k < 1 ? 1 : k < losses ? k : losses;
  }
};

// A loss is kept where its key is above this one, or equals it at an index up to `last`. Three int64 of a tensor.
struct Kept {
  int64_t key;   // of the k-th largest
  int64_t last;  // index of the last that is kept of those that equal it
  double share;  // 1 / k, or 0 where none is kept
};
constexpr int64_t kKeptNumbers = 3;

// Of n losses at first, first + stride, ...: how many come before the last that is kept of those equal to the k-th largest.
// Among these a loss that equals it is kept, too.
FOCAL_INLINE int64_t keeps_equal(int64_t last, int64_t first, int64_t stride, int64_t n) {
  const int64_t left = last - first, reach = left < 0 ? 0 : stride > 0 ? left / stride + 1 : n;
  return reach < n ? reach : n;
}

template <class Real>
FOCAL_INLINE bool keeps(const Kept& kept, Real loss, int64_t index) {
  const int64_t key = key_of(loss);
  return key > kept.key || (key == kept.key && index <= kept.last);
}

}  // namespace focal
