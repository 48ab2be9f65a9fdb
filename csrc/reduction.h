// What a reduction multiplies the sum of losses by. Host and device. Must not know: tensors, devices.
#pragma once

#include "math/policy.h"

namespace focal {

enum class Reduction : int64_t { kNone, kMean, kSum, kPositives };  // as in the operators' schemas

// Nothing counted: a loss of 0.
FOCAL_INLINE double inverse(double denominator) { return denominator == 0 ? 0 : 1 / denominator; }

// scale: the caller's, of sums. counted: elements, positives: targets.
FOCAL_INLINE double scale_of(Reduction reduction, double scale, double counted, double positives) {
  if (reduction == Reduction::kMean) return inverse(counted);
  if (reduction == Reduction::kPositives) return scale / (positives > 1 ? positives : 1);
  return reduction == Reduction::kSum ? scale : 1;
}

}  // namespace focal
