// A loss as the GPU's engines see it: the structs of math/ for hard and soft targets over a policy.
// A new loss is a Term beside FocalTerm. Must not know: tensors, layouts.
#pragma once

#include "math/focal.h"

namespace focal::cuda {

enum class Mode { kLoss, kGradient };  // the gradient's mode sums the loss beside it: it has the values anyway

// Two exponents: 2, and any other, whose one exp more is hidden behind memory (bench/sass.py).
template <class Math_, Exponent exponent>
struct FocalTerm {
  using Math = Math_;
  using Real = typename Math::Real;
  using Hard = Focal<Math, exponent>;
  using Soft = SoftFocal<Math, exponent>;

  static FOCAL_INLINE Hard hard(Real gamma) { return Hard{gamma}; }
  static FOCAL_INLINE Soft soft(Real gamma) { return Soft{gamma}; }
};

// Margins come out as values and every derivative is 1: exact, for tests of the engines.
template <class Math_>
struct ProbeTerm {
  using Math = Math_;
  using Real = typename Math::Real;
  using Hard = Probe<Math>;
  using Soft = Probe<Math>;

  static FOCAL_INLINE Hard hard(Real) { return {}; }
  static FOCAL_INLINE Soft soft(Real) { return {}; }
};

}  // namespace focal::cuda
