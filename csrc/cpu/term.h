// A loss as the engines see it: something to evaluate on every element of a tile, and the loops that do.
// The one place on the CPU where a loss of math/ meets memory. A new loss is a Term beside FocalTerm.
// Compiled once per instruction set (FOCAL_CPU_ISA). Must not know: tensors, layouts.
#pragma once

#include "cpu/runs.h"
#include "math/relatives.h"

namespace focal::cpu::FOCAL_CPU_ISA {

// What a pass over a tile shall give. Each is a loop of its own: what is not wanted is not computed.
enum class Want { kSum, kSumAndSlopes, kSlopes, kValues };

inline Want wanted(const Task& task) {
  if (task.tensor[kLoss]) return Want::kValues;
  if (!task.tensor[kGradient]) return Want::kSum;
  return task.partial_sums ? Want::kSumAndSlopes : Want::kSlopes;
}

// out[i] = element(i).value or .deriv, as wanted; returns the sum of the values.
// The sum runs in vector lanes: its order depends on n and the instruction set alone.
template <Want want, class Element, class Real>
double map(const Element element, Real* FOCAL_RESTRICT out, int n) {
  Real total = 0;
#pragma omp simd reduction(+ : total)
  for (int i = 0; i < n; ++i) {
    const ValueDeriv<Real> result = element(i);
    if (want == Want::kSum || want == Want::kSumAndSlopes) total += result.value;
    if (want == Want::kValues) out[i] = result.value;
    if (want == Want::kSlopes || want == Want::kSumAndSlopes) out[i] = result.deriv;
  }
  return static_cast<double>(total);
}

template <class Element, class Real>
double map(Want want, const Element element, Real* out, int n) {
  switch (want) {
    case Want::kSum: return map<Want::kSum>(element, out, n);
    case Want::kSumAndSlopes: return map<Want::kSumAndSlopes>(element, out, n);
    case Want::kSlopes: return map<Want::kSlopes>(element, out, n);
    case Want::kValues: return map<Want::kValues>(element, out, n);
  }
  return 0;
}

// A loss at index i of a tile: the same everywhere, or with a gamma for each element.
template <class Loss>
FOCAL_INLINE const Loss& at(const Loss& loss, int) {
  return loss;
}
template <class Loss>
struct WithGammas {
  using Real = typename Loss::Real;
  Loss loss;
  const Real* FOCAL_RESTRICT gamma;
};
template <class Loss>
FOCAL_INLINE Loss at(const WithGammas<Loss>& each, int i) {
  Loss loss = each.loss;
  loss.gamma = each.gamma[i];
  return loss;
}

// Elements: what stands at index i of a tile, weights included. The value is weight x loss, the deriv is
// slope x d loss / d margin (slope: weight x upstream x sign of the margin's derivative).

// Margins with a weight each.
template <class Loss>
struct Weighted {
  using Real = typename Loss::Real;
  Loss loss;
  const Real *FOCAL_RESTRICT margin, *FOCAL_RESTRICT weight, *FOCAL_RESTRICT slope;

  FOCAL_INLINE ValueDeriv<Real> operator()(int i) const {
    const ValueDeriv<Real> result = at(loss, i)(margin[i]);
    return {weight[i] * result.value, slope[i] * result.deriv};
  }
};

// Logits of sigmoid negatives, all of one weight.
template <class Loss>
struct Negatives {
  using Real = typename Loss::Real;
  Loss loss;
  const Real* FOCAL_RESTRICT logit;
  Real weight, slope;

  FOCAL_INLINE ValueDeriv<Real> operator()(int i) const {
    const ValueDeriv<Real> result = loss(-logit[i]);
    return {weight * result.value, slope * result.deriv};
  }
};

// Logits with their targets: an array of them and of weights, or one for all.
template <class Loss, class Reals>
struct Targeted {
  using Real = typename Loss::Real;
  Loss loss;
  const Real* FOCAL_RESTRICT logit;
  Reals target, weight, slope;

  FOCAL_INLINE ValueDeriv<Real> operator()(int i) const {
    const ValueDeriv<Real> result = at(loss, i)(logit[i], target[i]);
    return {weight[i] * result.value, slope[i] * result.deriv};
  }
};

// Calls visit(loss) with the struct of math/ that a task asks for. gammas: of the elements, where classes have their own,
// or null.
template <class Math_>
struct FocalTerm {
  using Math = Math_;
  using Real = typename Math::Real;

  // Of margins.
  template <class Visit>
  static auto hard(const Task& task, const Visit& visit) {
    const Real gamma = static_cast<Real>(task.rule.gamma);
    if (task.rule.loss != Loss::kFocal) return of_margin(task.rule, visit);
    switch (exponent_of(task.rule.gamma)) {
      case Exponent::kZero: return visit(Focal<Math, Exponent::kZero>{gamma});
      case Exponent::kOne: return visit(Focal<Math, Exponent::kOne>{gamma});
      case Exponent::kTwo: return visit(Focal<Math, Exponent::kTwo>{gamma});
      default: return visit(Focal<Math, Exponent::kAny>{gamma});
    }
  }

  template <class Visit>
  static auto hard(const Task& task, const Real* gammas, const Visit& visit) {
    if (!gammas) return hard(task, visit);
    return visit(WithGammas<Focal<Math, Exponent::kAny>>{{Real(0)}, gammas});
  }

  // Of logits and targets.
  template <class Visit>
  static auto soft(const Task& task, const Visit& visit) {
    const Real gamma = static_cast<Real>(task.rule.gamma);
    const auto parameter = [&](int i) { return static_cast<Real>(task.rule.parameter[i]); };
    switch (task.rule.loss) {
      case Loss::kQuality: return by_exponent<QualityFocal>(task, visit);
      case Loss::kVarifocal: return by_exponent<Varifocal>(task, visit, parameter(0));
      case Loss::kGaussian: return by_exponent<GaussianFocal>(task, visit, parameter(0));
      case Loss::kAsymmetric: return visit(AsymmetricFocal<Math>{gamma, parameter(0), parameter(1)});
      case Loss::kProbability: return by_exponent<ProbabilityFocal>(task, visit);
      default: break;
    }
    return by_exponent<SoftFocal>(task, visit);
  }
  template <class Visit>
  static auto soft(const Task& task, const Real* gammas, const Visit& visit) {
    if (!gammas) return soft(task, visit);
    return visit(WithGammas<SoftFocal<Math, Exponent::kAny>>{{Real(0)}, gammas});
  }

  // Of the classes' probabilities. gamma: of one class where each has its own.
  template <class Visit>
  static auto of_class(const Task& task, const Real* gammas, const Visit& visit) {
    if (gammas) return visit(WithGammas<ClassFocal<Math, Exponent::kAny>>{{Real(0)}, gammas});
    return by_exponent<ClassFocal>(task, visit);
  }

 private:
  // What is not the plain loss of a margin is worth two cases: 2, and any.
  template <template <class, Exponent> class Loss, class Visit, class... Parameters>
  static auto by_exponent(const Task& task, const Visit& visit, Parameters... parameters) {
    const Real gamma = static_cast<Real>(task.rule.gamma);
    if (exponent_of(task.rule.gamma) == Exponent::kTwo) return visit(Loss<Math, Exponent::kTwo>{gamma, parameters...});
    return visit(Loss<Math, Exponent::kAny>{gamma, parameters...});
  }

  template <class Visit>
  static auto of_margin(const LossRule& rule, const Visit& visit) {
    const Real gamma = static_cast<Real>(rule.gamma);
    if (rule.loss == Loss::kModulator) return visit(Modulator<Math, Exponent::kAny>{gamma});
    const auto parameter = [&](int i) { return static_cast<Real>(rule.parameter[i]); };
    return visit(ShapedFocal<Math, Exponent::kAny>{gamma, parameter(0), parameter(1), parameter(2), parameter(3)});
  }
};

// Margins come out as values, and every derivative is 1: exact, for tests of the engines.
template <class Math_>
struct ProbeTerm {
  using Math = Math_;
  using Real = typename Math::Real;

  // The visit is the last argument of each.
  template <class... Arguments>
  static auto hard(const Task&, const Arguments&... arguments) {
    return (arguments, ...)(Probe<Math>{});
  }
  template <class... Arguments>
  static auto soft(const Task&, const Arguments&... arguments) {
    return (arguments, ...)(Probe<Math>{});
  }
  template <class... Arguments>
  static auto of_class(const Task&, const Arguments&... arguments) {
    return (arguments, ...)(Probe<Math>{});
  }
};

}  // namespace focal::cpu::FOCAL_CPU_ISA
