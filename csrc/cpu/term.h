// A loss as the engines see it: something to evaluate on every element of a tile, and the loops that do.
// The one place on the CPU where a loss of math/ meets memory. A new loss is a Term beside FocalTerm.
// Compiled once per instruction set (FOCAL_CPU_ISA). Must not know: tensors, layouts.
#pragma once

#include "cpu/runs.h"
#include "math/relatives.h"

namespace focal::cpu::FOCAL_CPU_ISA {

// What a pass over a tile shall give. Each is a loop of its own: what is not wanted is not computed.
enum class Want { kSum, kSumAndSlopes, kSlopes, kSumAndValues };

inline Want wanted(const Task& task) {
  if (task.tensor[kLoss]) return Want::kSumAndValues;
  if (!task.tensor[kGradient]) return Want::kSum;
  return task.partial_sums ? Want::kSumAndSlopes : Want::kSlopes;
}

// float64 is there for its digits.
template <class Real>
constexpr bool kVectorised = std::is_same_v<Real, float>;

// out[i] = element(i).value or .deriv, as wanted; returns the sum of the values.
// The sum runs in vector lanes: its order depends on n and the instruction set alone.
template <Want want, class Element, class Real>
double map(const Element element, Real* FOCAL_RESTRICT out, int n) {
  Real total = 0;
#pragma omp simd reduction(+ : total)
  for (int i = 0; i < n; ++i) {
    const ValueDeriv<Real> result = element(i);
    if (want != Want::kSlopes) total += result.value;
    if (want == Want::kSumAndValues) out[i] = result.value;
    if (want == Want::kSlopes || want == Want::kSumAndSlopes) out[i] = result.deriv;
  }
  return static_cast<double>(total);
}

// Where a loop of its own is worth its build time for each; elsewhere one more sum or store is not seen.
template <class Element>
constexpr bool kFourLoops = false;

template <class Element, class Real>
double map(Want want, const Element element, Real* out, int n) {
  if constexpr (!kVectorised<Real>) {
    // Functions of the C library are not vectorised, so that one loop does as well as four.
    double total = 0;
    for (int i = 0; i < n; ++i) {
      const ValueDeriv<Real> result = element(i);
      total += result.value;
      if (want != Want::kSum) out[i] = want == Want::kSumAndValues ? result.value : result.deriv;
    }
    return total;
  }
  if constexpr (!kFourLoops<Element>) {
    const bool values = want == Want::kSum || want == Want::kSumAndValues;
    return values ? map<Want::kSumAndValues>(element, out, n) : map<Want::kSumAndSlopes>(element, out, n);
  }
  switch (want) {
    case Want::kSum: return map<Want::kSum>(element, out, n);
    case Want::kSumAndSlopes: return map<Want::kSumAndSlopes>(element, out, n);
    case Want::kSlopes: return map<Want::kSlopes>(element, out, n);
    default: return map<Want::kSumAndValues>(element, out, n);
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

template <class Loss>
constexpr bool is_focal = false;
template <class Math, Exponent exponent>
constexpr bool is_focal<Focal<Math, exponent>> = true;
template <class Math, Exponent exponent>
constexpr bool is_focal<SoftFocal<Math, exponent>> = true;

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

// Value and d value / dx of a negative.
template <bool soft, class Loss, class Real>
FOCAL_INLINE ValueDeriv<Real> negative(const Loss& loss, Real x, Real target) {
  if constexpr (soft) {
    return loss(x, target);
  } else {
    const ValueDeriv<Real> result = loss(-x);
    return {result.value, -result.deriv};
  }
}

// Logits of sigmoid negatives that all take part, of one target. Weights: an array, or one number for all.
// soft: the loss is of logits and targets, and not of margins.
template <class Loss, bool soft, class Weights>
struct Negatives {
  using Real = typename Loss::Real;
  Loss loss;
  const Real* FOCAL_RESTRICT logit;
  Weights weight;
  Real target, scale;

  FOCAL_INLINE ValueDeriv<Real> operator()(int i) const {
    const ValueDeriv<Real> result = negative<soft>(loss, logit[i], target);
    return {weight[i] * result.value, weight[i] * scale * result.deriv};
  }
};

template <class Loss, class Real>
constexpr bool kFourLoops<Negatives<Loss, false, Uniform<Real>>> = true;

// The same with a sample weight and an upstream gradient each. Where a sample's weight is 0 the element takes no
// part, whatever its logit and its upstream gradient are.
template <class Loss, bool soft>
struct OwnNegatives {
  using Real = typename Loss::Real;
  Loss loss;
  const Real *FOCAL_RESTRICT logit, *FOCAL_RESTRICT weight, *FOCAL_RESTRICT sample, *FOCAL_RESTRICT upstream;
  Real target, scale;

  FOCAL_INLINE ValueDeriv<Real> operator()(int i) const {
    const bool used = sample[i] != Real(0);
    // Selected like the logit: what a loss asks of a target that is the same for all is not vectorised.
    const Real x = used ? logit[i] : Real(0), t = used ? target : Real(0);
    const ValueDeriv<Real> result = negative<soft>(at(loss, i), x, t);
    const Real own = sample[i] * weight[i];
    return {own * result.value, used ? own * scale * upstream[i] * result.deriv : Real(0)};
  }
};

// Logits with dense targets. Reals: an array, or one number for all. An element that is ignored or whose sample has a weight
// of 0 becomes an ordinary one of weight and slope 0, whatever its logit and its upstream gradient are.
template <class Loss, bool soft, class Reals>
struct Dense {
  using Real = typename Loss::Real;
  Loss loss;
  const Real *FOCAL_RESTRICT logit, *FOCAL_RESTRICT target;
  Reals positive, negative, sample, upstream;
  Real ignored, scale;
  Real lowest;  // target of a negative
  Share<Real> share_of;

  FOCAL_INLINE ValueDeriv<Real> operator()(int i) const {
    const bool used = target[i] != ignored && sample[i] != Real(0);
    const Real given = used ? target[i] : Real(0), x = used ? logit[i] : Real(0);
    const Real t = soft ? lowest + (Real(1) - 2 * lowest) * given : given;
    const Real share = soft ? share_of(t) : t;
    const Real mixed = share * positive[i] + (Real(1) - share) * negative[i];
    const Real weight = used ? sample[i] * mixed : Real(0);
    const Real slope = used ? weight * (scale * upstream[i]) : Real(0);
    if constexpr (soft) {
      const ValueDeriv<Real> result = at(loss, i)(x, t);
      return {weight * result.value, slope * result.deriv};
    } else {
      const Real sign = t > Real(0) ? Real(1) : Real(-1);
      const ValueDeriv<Real> result = at(loss, i)(sign * x);
      return {weight * result.value, sign * slope * result.deriv};
    }
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
    if constexpr (!kCases) return visit(Focal<Math, Exponent::kAny>{gamma});
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
  static constexpr bool kCases = kVectorised<Real>;  // of gamma: elsewhere they would only cost build time

  // What is not the plain loss of a margin is worth two cases: 2, and any.
  template <template <class, Exponent> class Loss, class Visit, class... Parameters>
  static auto by_exponent(const Task& task, const Visit& visit, Parameters... parameters) {
    const Real gamma = static_cast<Real>(task.rule.gamma);
    if constexpr (kCases) {
      if (exponent_of(task.rule.gamma) == Exponent::kTwo)
        return visit(Loss<Math, Exponent::kTwo>{gamma, parameters...});
    }
    return visit(Loss<Math, Exponent::kAny>{gamma, parameters...});
  }

  template <class Visit>
  static auto of_margin(const LossRule& rule, const Visit& visit) {
    const Real gamma = static_cast<Real>(rule.gamma);
    if (rule.loss == Loss::kModulator) return visit(Modulator<Math, Exponent::kAny>{gamma});
    const auto parameter = [&](int i) { return static_cast<Real>(rule.parameter[i]); };
    if (rule.loss == Loss::kNormalized) return visit(NormalizedFocal<Math, Exponent::kAny>{gamma, parameter(0)});
    return visit(ShapedFocal<Math, Exponent::kAny>{gamma, parameter(0), parameter(1), parameter(2), parameter(3)});
  }
};

// Margins come out as values, and every derivative is 1: exact, for tests of the engines.
template <class Math_>
struct ProbeTerm {
  using Math = Math_;
  using Real = typename Math::Real;

  template <class... Arguments>
  static auto hard(const Task&, const Arguments&... arguments) {
    return probe(arguments...);
  }
  template <class... Arguments>
  static auto soft(const Task&, const Arguments&... arguments) {
    return probe(arguments...);
  }
  template <class... Arguments>
  static auto of_class(const Task&, const Arguments&... arguments) {
    return probe(arguments...);
  }

 private:
  // The visit is the last argument of each.
  template <class... Arguments>
  static auto probe(const Arguments&... arguments) {
    return std::get<sizeof...(Arguments) - 1>(std::tie(arguments...))(Probe<Math>{});
  }
};

}  // namespace focal::cpu::FOCAL_CPU_ISA
