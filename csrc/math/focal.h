// The focal loss as a function of one margin, with its derivative: the only place where the formula stands.
//
//   sigmoid, hard target    z = x for a positive, -x for a negative
//   softmax, hard target    z = x_t - logsumexp over the other classes
//   p = sigmoid(z), q = 1 - p = sigmoid(-z), ce = -log p = softplus(-z)
//   value = q^gamma ce                deriv = d value / dz = -q^gamma (gamma p ce + q)      both 0 at z = inf
//
// Neither 1 - p nor q^(gamma - 1) is ever formed: finite for every finite z and every gamma >= 0, NaN only for a NaN,
// and at z = -inf the value is inf with derivative -1. Weights (alpha, normalizer) multiply outside.
// Host and device. Must not know: tensors, threads, how a target is read.
#pragma once

#include "math/policy.h"

namespace focal {

template <class Real>
struct ValueDeriv {
  Real value;
  Real deriv;
};

// The exponents that need no exp of their own; everything else is kAny. More cases gain < 15 % and cost build time.
enum class Exponent { kZero, kOne, kTwo, kAny };

inline Exponent exponent_of(double gamma) {
  return gamma == 0 ? Exponent::kZero : gamma == 1 ? Exponent::kOne : gamma == 2 ? Exponent::kTwo : Exponent::kAny;
}

// q^gamma for q in [0, 1]; minus_log_q is used by kAny alone. Capped so that gamma * inf is never 0 * inf.
template <class Math, Exponent exponent, class Real>
FOCAL_INLINE Real modulator(Real q, Real minus_log_q, Real gamma) {
  if (exponent == Exponent::kZero) return Real(1);
  if (exponent == Exponent::kOne) return q;
  if (exponent == Exponent::kTwo) return q * q;
  const Real largest = std::numeric_limits<Real>::max();
  return Math::exp(-gamma * (minus_log_q < largest ? minus_log_q : largest));
}

// What both terms share about a logit x: sigmoid(x), sigmoid(-x), softplus(-x), softplus(x).
template <class Math>
struct Logistic {
  using Real = typename Math::Real;
  Real p, q, minus_log_p, minus_log_q;

  FOCAL_INLINE explicit Logistic(Real x) {
    const Real e = Math::exp(-absolute(x));
    const Real larger = Real(1) / (Real(1) + e);
    const Real smaller = e * larger;
    const Real l = Math::log1p(e);
    p = x >= Real(0) ? larger : smaller;
    q = x >= Real(0) ? smaller : larger;
    minus_log_p = l + positive_part(-x);
    minus_log_q = l + positive_part(x);
  }
};

// p * ce with 0 * inf = 0, its limit at z = -inf.
template <class Real>
FOCAL_INLINE Real times_finite(Real p, Real ce) {
  const Real largest = std::numeric_limits<Real>::max();
  return p * (ce < largest ? ce : largest);
}

// Hard targets.
template <class Math_, Exponent exponent>
struct Focal {
  using Math = Math_;
  using Real = typename Math::Real;
  Real gamma;

  FOCAL_INLINE ValueDeriv<Real> operator()(Real margin) const {
    const Logistic<Math> s(margin);
    const Real weight = modulator<Math, exponent>(s.q, s.minus_log_q, gamma);
    return {weight * s.minus_log_p, -weight * (gamma * times_finite(s.p, s.minus_log_p) + s.q)};
  }
};

// Soft sigmoid targets 0 <= t <= 1 have no margin; torchvision's definition, without its cancellation:
//   m = 1 - p_t = p (1 - t) + q t      ce = t softplus(-x) + (1 - t) softplus(x)
//   value = m^gamma ce                 d value / dx = m^gamma ((p (1 - t) - q t) + gamma p q (1 - 2 t) / m * ce)
// The quotient is finite: m >= min(t, 1 - t), and at t = 0 or 1, where this is the hard loss, m = 0 is taken out.
template <class Math_, Exponent exponent>
struct SoftFocal {
  using Math = Math_;
  using Real = typename Math::Real;
  Real gamma;

  FOCAL_INLINE ValueDeriv<Real> operator()(Real logit, Real target) const {
    const Logistic<Math> s(logit);
    const Real other = Real(1) - target;
    const Real m = s.p * other + s.q * target;
    const Real ce = target * s.minus_log_p + other * s.minus_log_q;
    const Real weight = modulator<Math, exponent>(m, exponent == Exponent::kAny ? -Math::log(m) : Real(0), gamma);
    const Real slope = times_finite(m > Real(0) ? s.p * s.q * (other - target) / m : Real(0) * m, ce);
    return {weight * ce, weight * ((s.p * other - s.q * target) + gamma * slope)};
  }
};

// value = z, deriv = 1: shows an engine's loads, indices, weights and stores exactly. For tests of engines.
// As every loss must, it vanishes with its derivative at z = inf, which is how an engine takes an element out.
template <class Math_>
struct Probe {
  using Math = Math_;
  using Real = typename Math::Real;

  FOCAL_INLINE ValueDeriv<Real> operator()(Real margin) const {
    const bool out = margin == std::numeric_limits<Real>::infinity();
    return {out ? Real(0) : margin, out ? Real(0) : Real(1)};
  }
  FOCAL_INLINE ValueDeriv<Real> operator()(Real logit, Real target) const { return {logit * target, Real(1)}; }
};

}  // namespace focal
