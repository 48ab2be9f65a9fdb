// How a target is read: the class index rules shared by all engines and devices, and the codes engines work with.
// Host and device. Must not know: the loss, memory, threads.
#pragma once

#include "math/policy.h"

namespace focal {

// A label after reading: a class in [0, classes), or one of these.
constexpr int32_t kBackground = -1;  // negative for every class (sigmoid)
constexpr int32_t kIgnored = -2;     // contributes nothing, gets exactly zero gradient

struct IndexRule {
  int64_t classes;
  int64_t ignore_index;
  int64_t background_index;  // sigmoid: any integer; softmax: kNoBackground where it plays no part in the loss
  bool background_allowed;   // false (softmax): background_index only says which class is not counted as a positive

  FOCAL_INLINE int32_t code(int64_t label) const {
    const int32_t index = background_allowed && label == background_index ? kBackground : static_cast<int32_t>(label);
    return label == ignore_index ? kIgnored : index;
  }
  FOCAL_INLINE bool valid(int64_t label) const {
    return label == ignore_index || (background_allowed && label == background_index) ||
           (label >= 0 && label < classes);
  }
  FOCAL_INLINE bool counted(int64_t label) const { return label != ignore_index; }
  FOCAL_INLINE bool positive(int64_t label) const { return label != ignore_index && label != background_index; }
};

// Dense targets: a value in [0, largest], or 0 or 1 alone (binary), or the ignore_index.
struct DenseRule {
  double ignore_value;
  double largest;         // of a binary one besides 1
  double least_positive;  // what counts as a positive, from here on
  bool binary;

  template <class Real>
  FOCAL_INLINE bool counted(Real target) const {
    return target != static_cast<Real>(ignore_value);
  }
  template <class Real>
  FOCAL_INLINE bool valid(Real target) const {
    // Without a branch: loops over targets are vectorised.
    const bool in_range = (target >= Real(0)) & (target <= static_cast<Real>(largest));
    return !counted(target) | in_range | (target == Real(1));
  }
  template <class Real>
  FOCAL_INLINE bool positive(Real target) const {
    return counted(target) & (target >= static_cast<Real>(least_positive));
  }
};

}  // namespace focal
