// A loss as the engines see it: something to evaluate on every element of a tile, and the loops that do.
// The one place on the CPU where a loss of math/ meets memory. A new loss is a Term beside FocalTerm.
// Compiled once per instruction set (FOCAL_CPU_ISA). Must not know: tensors, layouts.
#pragma once

#include "cpu/runs.h"
#include "math/focal.h"

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

// Elements: what stands at index i of a tile, weights included. The value is weight x loss, the deriv is
// slope x d loss / d margin (slope: weight x upstream x sign of the margin's derivative).

// Margins with a weight each.
template <class Loss>
struct Weighted {
  using Real = typename Loss::Real;
  Loss loss;
  const Real *FOCAL_RESTRICT margin, *FOCAL_RESTRICT weight, *FOCAL_RESTRICT slope;

  FOCAL_INLINE ValueDeriv<Real> operator()(int i) const {
    const ValueDeriv<Real> result = loss(margin[i]);
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

// Logits with a soft target and a weight each.
template <class Loss>
struct Soft {
  using Real = typename Loss::Real;
  Loss loss;
  const Real *FOCAL_RESTRICT logit, *FOCAL_RESTRICT target, *FOCAL_RESTRICT weight, *FOCAL_RESTRICT slope;

  FOCAL_INLINE ValueDeriv<Real> operator()(int i) const {
    const ValueDeriv<Real> result = loss(logit[i], target[i]);
    return {weight[i] * result.value, slope[i] * result.deriv};
  }
};

// Calls visit(loss) with the struct of math/ that a task asks for: hard targets, and soft ones.
template <class Math_>
struct FocalTerm {
  using Math = Math_;
  using Real = typename Math::Real;

  template <class Visit>
  static auto hard(const Task& task, const Visit& visit) {
    return with_exponent<Focal>(task, visit);
  }
  template <class Visit>
  static auto soft(const Task& task, const Visit& visit) {
    return with_exponent<SoftFocal>(task, visit);
  }

 private:
  template <template <class, Exponent> class Loss, class Visit>
  static auto with_exponent(const Task& task, const Visit& visit) {
    const Real gamma = static_cast<Real>(task.gamma);
    switch (exponent_of(task.gamma)) {
      case Exponent::kZero: return visit(Loss<Math, Exponent::kZero>{gamma});
      case Exponent::kOne: return visit(Loss<Math, Exponent::kOne>{gamma});
      case Exponent::kTwo: return visit(Loss<Math, Exponent::kTwo>{gamma});
      default: return visit(Loss<Math, Exponent::kAny>{gamma});
    }
  }
};

// Margins come out as values, and every derivative is 1: exact, for tests of the engines.
template <class Math_>
struct ProbeTerm {
  using Math = Math_;
  using Real = typename Math::Real;

  template <class Visit>
  static auto hard(const Task&, const Visit& visit) {
    return visit(Probe<Math>{});
  }
  template <class Visit>
  static auto soft(const Task&, const Visit& visit) {
    return visit(Probe<Math>{});
  }
};

}  // namespace focal::cpu::FOCAL_CPU_ISA
