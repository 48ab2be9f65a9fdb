// A loss as the GPU's engines see it: a struct of math/ over a policy. The focal loss of logits, where arithmetic may bound
// a kernel, is chosen when kernels are compiled; all other losses share one kernel, which asks for the loss by its number.
// Must not know: tensors, layouts.
#pragma once

#include "cuda/arguments.h"
#include "math/relatives.h"

namespace focal::cuda {

enum class Mode { kLoss, kGradient };  // the gradient's mode sums the loss beside it: it has the values anyway

// Two exponents: 2, and any other, whose one exp more is hidden behind memory (bench/sass.py).
template <class Math_, Exponent exponent>
struct FocalTerm {
  using Math = Math_;
  using Real = typename Math::Real;
  using Hard = Focal<Math, exponent>;
  using Soft = SoftFocal<Math, exponent>;

  static constexpr bool kPlain = true;  // no other loss, gammas of classes or sample weights

  static FOCAL_INLINE Hard hard(Real gamma) { return Hard{gamma}; }
  static FOCAL_INLINE Soft soft(Real gamma) { return Soft{gamma}; }
  static FOCAL_DEVICE ValueDeriv<Real> of_margin(const LossNumbers<Real>&, Real gamma, Real margin) {
    return hard(gamma)(margin);
  }
};

// Whether a term that is plain will do.
inline bool is_plain(const Task& task) {
  return task.rule.loss == Loss::kFocal && task.smoothing == 0 && !task.gammas && !task.tensor[kSampleWeight] &&
         !task.tensor[kScores];
}

// Any loss of a margin, where one evaluation serves many logits.
template <class Math_>
struct MarginTerm {
  using Math = Math_;
  using Real = typename Math::Real;
  static constexpr bool kPlain = false;

  static FOCAL_DEVICE ValueDeriv<Real> of_margin(const LossNumbers<Real>& rule, Real gamma, Real margin) {
    constexpr Exponent kExponent = Exponent::kTwoOrAny;
    if (rule.loss == Loss::kFocal) return Focal<Math, kExponent>{gamma}(margin);
    if (rule.loss == Loss::kModulator) return Modulator<Math, kExponent>{gamma}(margin);
    if (rule.loss == Loss::kNormalized) return NormalizedFocal<Math, kExponent>{gamma, load(rule.level)}(margin);
    return ShapedFocal<Math, kExponent>{gamma, rule.parameter[0], rule.parameter[1], rule.parameter[2],
                                        rule.parameter[3]}(margin);
  }
  template <Exponent exponent>
  static FOCAL_DEVICE ValueDeriv<Real> of_class(Real gamma, Real p, Real q, Real ce) {
    return ClassFocal<Math, exponent>{gamma}(p, q, ce);
  }
};

// Any loss of a logit, or probability, and its target.
template <class Math_>
struct TargetTerm {
  using Math = Math_;
  using Real = typename Math::Real;

  static FOCAL_DEVICE ValueDeriv<Real> of_target(const LossNumbers<Real>& rule, Real gamma, Real given, Real target) {
    constexpr Exponent kExponent = Exponent::kTwoOrAny;
    const Real x = Math::to_units(given);
    switch (rule.loss) {
      case Loss::kQuality: return QualityFocal<Math, kExponent>{gamma}(x, target);
      case Loss::kVarifocal: return Varifocal<Math, kExponent>{gamma, rule.parameter[0]}(x, target);
      case Loss::kGaussian: return GaussianFocal<Math, kExponent>{gamma, rule.parameter[0]}(x, target);
      case Loss::kAsymmetric: return AsymmetricFocal<Math>{gamma, rule.parameter[0], rule.parameter[1]}(x, target);
      case Loss::kProbability: return ProbabilityFocal<Math, kExponent>{gamma}(given, target);
      default: break;
    }
    if (rule.loss == Loss::kFocal && target != Real(0) && target != Real(1))
      return SoftFocal<Math, kExponent>{gamma}(x, target);
    const Real sign = target == Real(1) ? Real(1) : Real(-1);
    const ValueDeriv<Real> result = MarginTerm<Math>::of_margin(rule, gamma, sign * x);
    return {result.value, sign * result.deriv};
  }
};

}  // namespace focal::cuda
