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
// kTwoOrAny: gamma itself is asked, where one evaluation serves many logits.
enum class Exponent { kZero, kOne, kTwo, kAny, kTwoOrAny };

inline Exponent exponent_of(double gamma) {
  return gamma == 0 ? Exponent::kZero : gamma == 1 ? Exponent::kOne : gamma == 2 ? Exponent::kTwo : Exponent::kAny;
}

// A finite number as it is, inf as the largest one: 0 times it is 0, the limit of every product here.
template <class Real>
FOCAL_INLINE Real finite(Real x) {
  const Real largest = std::numeric_limits<Real>::max();
  return x < largest ? x : largest;
}

// q^gamma for q in [0, 1]; minus_log_q is used by kAny alone.
template <class Math, Exponent exponent, class Real>
FOCAL_INLINE Real modulator(Real q, Real minus_log_q, Real gamma) {
  if (exponent == Exponent::kZero) return Real(1);
  if (exponent == Exponent::kOne) return q;
  if (exponent == Exponent::kTwo || (exponent == Exponent::kTwoOrAny && gamma == Real(2))) return q * q;
  return Math::exp(-gamma * minus_log_q);
}

// base^gamma for a base in [0, 1] whose logarithm is not at hand.
template <class Math, Exponent exponent, class Real>
FOCAL_INLINE Real power(Real base, Real gamma) {
  if constexpr (exponent == Exponent::kAny || exponent == Exponent::kTwoOrAny) {
    if (exponent == Exponent::kTwoOrAny && gamma == Real(2)) return base * base;
    return Math::exp(-gamma * finite(-Math::log(base)));
  }
  return modulator<Math, exponent>(base, Real(0), gamma);
}

// What both terms share about a logit x, given in the units of Math: sigmoid(x), sigmoid(-x) and minus their logarithms.
template <class Math>
struct Logistic {
  using Real = typename Math::Real;
  Real p, q, minus_log_p, minus_log_q;

  FOCAL_INLINE explicit Logistic(Real x) {
    const Real e = Math::exp(-absolute(x));
    if constexpr (Math::kDivides) {
      const Real l = Math::log1p(e);
      minus_log_p = l + positive_part(-x);
      minus_log_q = l + positive_part(x);
      const Real larger = Real(1) / (Real(1) + e);
      const Real smaller = e * larger;
      p = x >= Real(0) ? larger : smaller;
      q = x >= Real(0) ? smaller : larger;
    } else {
      const Real ratio = Math::log1p_over(e);  // each sum below is one fused instruction
      minus_log_p = e * ratio + positive_part(-x);
      minus_log_q = e * ratio + positive_part(x);
      p = Math::exp(-minus_log_p);
      q = Math::exp(-minus_log_q);
    }
  }
};

// A margin at which every loss and its derivative vanish: how an engine takes an element out.
template <class Real>
constexpr Real kNoMargin = Real(1e30);

// Hard targets. Margin and value are in the units of Math.
template <class Math_, Exponent exponent>
struct Focal {
  using Math = Math_;
  using Real = typename Math::Real;
  Real gamma;

  FOCAL_INLINE ValueDeriv<Real> operator()(Real margin) const {
    const Logistic<Math> s(margin);
    return combine(s.q, finite(s.minus_log_q), s.minus_log_p, finite(s.minus_log_p));
  }

  // The same without the guards, for margins whose value comes out below kUnguarded. Any other margin, infinities and
  // NaN, gives a value that is not below it, and has to be evaluated again.
  static constexpr Real kUnguarded = Real(1e30);
  FOCAL_INLINE ValueDeriv<Real> unguarded(Real margin) const {
    const Logistic<Math> s(margin);
    return combine(s.q, s.minus_log_q, s.minus_log_p, s.minus_log_p);
  }

 private:
  // p ce is taken as ce - q ce: where that cancels, there is q = 1 beside it. finite_ce keeps 1 * inf out of it.
  FOCAL_INLINE ValueDeriv<Real> combine(Real q, Real minus_log_q, Real ce, Real finite_ce) const {
    const Real weight = modulator<Math, exponent>(q, minus_log_q, gamma);
    return {weight * ce, -weight * (gamma * Math::kUnit * (finite_ce - q * finite_ce) + q)};
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
    const Real weight = power<Math, exponent>(m, gamma);
    // weight / m; where m = 0 what it multiplies is 0 too
    const Real quotient = exponent == Exponent::kTwo ? m : m > Real(0) ? weight * reciprocal<Math>(m) : Real(0) * m;
    const Real turn = s.p * s.q * (other - target);
    return {weight * ce, weight * (s.p * other - s.q * target) + gamma * Math::kUnit * quotient * turn * finite(ce)};
  }
};

// value = z, deriv = 1: shows an engine's loads, indices, weights and stores exactly. For tests of engines.
// As every loss must, it vanishes with its derivative at kNoMargin and beyond.
template <class Math_>
struct Probe {
  using Math = Math_;
  using Real = typename Math::Real;

  FOCAL_INLINE ValueDeriv<Real> operator()(Real margin) const {
    const bool out = margin >= kNoMargin<Real>;
    return {out ? Real(0) : margin, out ? Real(0) : Real(1)};
  }
  FOCAL_INLINE ValueDeriv<Real> operator()(Real logit, Real target) const { return {logit * target, Real(1)}; }
  FOCAL_INLINE ValueDeriv<Real> operator()(Real, Real, Real ce) const { return {ce, Real(1)}; }
};

}  // namespace focal
