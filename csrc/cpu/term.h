// A loss as the engines see it: arrays of margins (or soft logits) in, arrays of values and derivatives out.
// The one place on the CPU where a loss of math/ meets memory. A new loss is a Term beside FocalTerm.
// Compiled once per instruction set (FOCAL_CPU_ISA). Must not know: tensors, layouts.
#pragma once

#include "cpu/task.h"
#include "math/focal.h"

namespace focal::cpu::FOCAL_CPU_ISA {

// value or deriv may be null: what is not wanted is not computed.
template <class Loss, class Real = typename Loss::Real>
void map_margins(const Loss& loss, const Real* FOCAL_RESTRICT margin, Real* FOCAL_RESTRICT value,
                 Real* FOCAL_RESTRICT deriv, int n) {
  if (value && deriv) {
#pragma omp simd
    for (int i = 0; i < n; ++i) {
      const ValueDeriv<Real> result = loss(margin[i]);
      value[i] = result.value;
      deriv[i] = result.deriv;
    }
  } else if (value) {
#pragma omp simd
    for (int i = 0; i < n; ++i) value[i] = loss(margin[i]).value;
  } else if (deriv) {
#pragma omp simd
    for (int i = 0; i < n; ++i) deriv[i] = loss(margin[i]).deriv;
  }
}

// Overwrites value and deriv where 0 < target < 1.
template <class Loss, class Real = typename Loss::Real>
void map_soft(const Loss& loss, const Real* FOCAL_RESTRICT logit, const Real* FOCAL_RESTRICT target,
              Real* FOCAL_RESTRICT value, Real* FOCAL_RESTRICT deriv, int n) {
  for (int i = 0; i < n; ++i) {
    if (!(target[i] > Real(0) && target[i] < Real(1))) continue;
    const ValueDeriv<Real> result = loss(logit[i], target[i]);
    if (value) value[i] = result.value;
    if (deriv) deriv[i] = result.deriv;
  }
}

template <class Math>
struct FocalTerm {
  using Real = typename Math::Real;

  static void hard(const Task& task, const Real* margin, Real* value, Real* deriv, int n) {
    const Real gamma = static_cast<Real>(task.gamma);
    switch (exponent_of(task.gamma)) {
      case Exponent::kZero: return map_margins(Focal<Math, Exponent::kZero>{gamma}, margin, value, deriv, n);
      case Exponent::kOne: return map_margins(Focal<Math, Exponent::kOne>{gamma}, margin, value, deriv, n);
      case Exponent::kTwo: return map_margins(Focal<Math, Exponent::kTwo>{gamma}, margin, value, deriv, n);
      case Exponent::kAny: return map_margins(Focal<Math, Exponent::kAny>{gamma}, margin, value, deriv, n);
    }
  }

  static void soft(const Task& task, const Real* logit, const Real* target, Real* value, Real* deriv, int n) {
    const Real gamma = static_cast<Real>(task.gamma);
    switch (exponent_of(task.gamma)) {
      case Exponent::kZero: return map_soft(SoftFocal<Math, Exponent::kZero>{gamma}, logit, target, value, deriv, n);
      case Exponent::kOne: return map_soft(SoftFocal<Math, Exponent::kOne>{gamma}, logit, target, value, deriv, n);
      case Exponent::kTwo: return map_soft(SoftFocal<Math, Exponent::kTwo>{gamma}, logit, target, value, deriv, n);
      case Exponent::kAny: return map_soft(SoftFocal<Math, Exponent::kAny>{gamma}, logit, target, value, deriv, n);
    }
  }
};

// Margins come out as values, and every derivative is 1: exact, for tests of the engines.
template <class Math>
struct ProbeTerm {
  using Real = typename Math::Real;

  static void hard(const Task&, const Real* margin, Real* value, Real* deriv, int n) {
    map_margins(Probe<Math>{}, margin, value, deriv, n);
  }
  static void soft(const Task&, const Real*, const Real*, Real*, Real*, int) {}
};

}  // namespace focal::cpu::FOCAL_CPU_ISA
