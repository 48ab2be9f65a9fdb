// Losses of the same family, one struct each, and the rule by which a task names one.
//   of a margin      ShapedFocal (smoothed probability, Poly-1, reduced), Modulator, NormalizedFocal; as Focal, for both activations
//   of x and target  QualityFocal, Varifocal, GaussianFocal, AsymmetricFocal; ProbabilityFocal, where x is a probability
//   of a class       ClassFocal: one term of softmax with soft targets
// Value in units of Math, derivative by x. Every struct vanishes with its derivative where Focal does.
// Host and device. Must not know: tensors, threads.
#pragma once

#include "math/focal.h"

namespace focal {

enum class Loss : int {
  kFocal,
  kShaped,
  kModulator,
  kNormalized,
  kQuality,
  kVarifocal,
  kGaussian,
  kAsymmetric,
  kProbability
};

// Whether positives and negatives are one function of the margin, so that hard targets need no other.
FOCAL_INLINE bool is_of_margin(Loss loss) { return loss <= Loss::kNormalized; }

// A loss and its numbers; what the parameters mean stands at the structs.
struct LossRule {
  Loss loss = Loss::kFocal;
  double gamma = 0;
  double parameter[4] = {};
};

// How much of an element's weight is that of a positive, by its target: 1 from `least` on, else linear in it.
template <class Real>
struct Share {
  Real linear, least;

  FOCAL_INLINE explicit Share(Loss loss)
      : linear(loss == Loss::kVarifocal || loss == Loss::kGaussian ? 0 : 1),
        least(loss == Loss::kVarifocal ? std::numeric_limits<Real>::min() : 1) {}
  FOCAL_INLINE Real operator()(Real target) const { return target >= least ? Real(1) : linear * target; }
};

// a / b where b >= 0; `otherwise` where both vanish, which is where 1 / b would no longer be finite.
template <class Math, class Real>
FOCAL_INLINE Real ratio(Real a, Real b, Real otherwise) {
  return b >= std::numeric_limits<Real>::min() ? a * reciprocal<Math>(b) : otherwise;
}

// Minus the logarithms of a and b = 1 - a, both in [0, 1]: of the larger, which is near 1, as log1p(smaller / larger).
template <class Math>
struct ComplementLogs {
  using Real = typename Math::Real;
  Real of_a, of_b;

  FOCAL_INLINE ComplementLogs(Real a, Real b) {
    const bool a_larger = a >= b;
    const Real larger = a_larger ? a : b, smaller = a_larger ? b : a;
    const Real near_one = Math::log1p(smaller * reciprocal<Math>(larger)), other = -Math::log(smaller);
    of_a = a_larger ? near_one : other;
    of_b = a_larger ? other : near_one;
  }
};

// value = m (ce + epsilon q), m = (slope q + offset)^gamma where p >= threshold and 1 elsewhere.
//   smoothed probability   slope 1 - s, offset s / 2 or s (1 - 1 / C)     Poly-1   epsilon     reduced   slope 1 / threshold
template <class Math_, Exponent exponent>
struct ShapedFocal {
  using Math = Math_;
  using Real = typename Math::Real;
  Real gamma, slope, offset, threshold, epsilon;

  FOCAL_INLINE ValueDeriv<Real> operator()(Real margin) const {
    const Logistic<Math> s(margin);
    const Real ce = finite(s.minus_log_p);
    const bool inside = s.p >= threshold;
    const Real base = slope * s.q + offset;
    const Real m = inside ? power<Math, exponent>(base, gamma) : Real(1);
    const Real bend = inside ? gamma * slope * s.p * ratio<Math>(s.q, base, Real(0)) : Real(0);
    return {m * (s.minus_log_p + epsilon * Math::kPerNat * s.q),
            -m * (bend * (ce * Math::kUnit + epsilon * s.q) + s.q + epsilon * s.p * s.q)};
  }
};

// value = q^gamma: what a normalized focal loss is divided by.
template <class Math_, Exponent exponent>
struct Modulator {
  using Math = Math_;
  using Real = typename Math::Real;
  Real gamma;

  FOCAL_INLINE ValueDeriv<Real> operator()(Real margin) const {
    const Logistic<Math> s(margin);
    const Real m = margin >= kNoMargin<Real> ? Real(0) : modulator<Math, exponent>(s.q, finite(s.minus_log_q), gamma);
    return {m * Math::kPerNat, -gamma * s.p * m};
  }
};

// value = q^gamma (ce - level), the level being no function of the margin: with that of the loss itself, the sum of the
// focal losses over the sum of the modulators, the derivative is the normalized loss's times the latter sum.
template <class Math_, Exponent exponent>
struct NormalizedFocal {
  using Math = Math_;
  using Real = typename Math::Real;
  Real gamma, level;

  FOCAL_INLINE ValueDeriv<Real> operator()(Real margin) const {
    const Logistic<Math> s(margin);
    const Real m = margin >= kNoMargin<Real> ? Real(0) : modulator<Math, exponent>(s.q, finite(s.minus_log_q), gamma);
    const Real ce = finite(s.minus_log_p);
    return {m * (ce - level * Math::kPerNat), -m * (gamma * s.p * (ce * Math::kUnit - level) + s.q)};
  }
};

// value = |t - p|^gamma (t softplus(-x) + (1 - t) softplus(x))
template <class Math_, Exponent exponent>
struct QualityFocal {
  using Math = Math_;
  using Real = typename Math::Real;
  Real gamma;

  FOCAL_INLINE ValueDeriv<Real> operator()(Real x, Real target) const {
    const Logistic<Math> s(x);
    const Real other = Real(1) - target;
    const Real above = s.p * other - s.q * target;  // p - t
    const Real distance = absolute(above);
    const Real ce =
        (target > Real(0) ? target * s.minus_log_p : Real(0)) + (other > Real(0) ? other * s.minus_log_q : Real(0));
    const Real m = power<Math, exponent>(distance, gamma);
    // In this order: of a hit t = 1 q ce is too small for a number, where q / |t - p| is 1.
    const Real bend = gamma * ratio<Math>(s.p * s.q, distance, Real(0)) * finite(ce) * Math::kUnit;
    return {m * ce, m * (above + (above >= Real(0) ? bend : -bend))};
  }
};

// t > 0: w (t softplus(-x) + (1 - t) softplus(x)), w = t or 1 (by_target: 1 or 0);  t = 0: p^gamma softplus(x)
template <class Math_, Exponent exponent>
struct Varifocal {
  using Math = Math_;
  using Real = typename Math::Real;
  Real gamma, by_target;

  FOCAL_INLINE ValueDeriv<Real> operator()(Real x, Real target) const {
    const Logistic<Math> s(x);
    const Real other = Real(1) - target;
    const Real weight = by_target != Real(0) ? target : Real(1);
    const Real ce = target * s.minus_log_p + (other > Real(0) ? other * s.minus_log_q : Real(0));
    const Real m = modulator<Math, exponent>(s.p, finite(s.minus_log_p), gamma);
    const Real slope = m * (gamma * s.q * finite(s.minus_log_q) * Math::kUnit + s.p);
    const bool positive = target > Real(0);
    return {positive ? weight * ce : m * s.minus_log_q, positive ? weight * (s.p * other - s.q * target) : slope};
  }
};

// t = 1: q^gamma softplus(-x);  t < 1: (1 - t)^fall p^gamma softplus(x)
template <class Math_, Exponent exponent>
struct GaussianFocal {
  using Math = Math_;
  using Real = typename Math::Real;
  Real gamma, fall;

  FOCAL_INLINE ValueDeriv<Real> operator()(Real x, Real target) const {
    const bool peak = target == Real(1);
    const Real sign = peak ? Real(1) : Real(-1);
    const ValueDeriv<Real> result = Focal<Math, exponent>{gamma}(sign * x);
    const Real square = (Real(1) - target) * (Real(1) - target);
    const Real far = fall == Real(4) ? square * square : power<Math, Exponent::kAny>(Real(1) - target, fall);
    const Real weight = peak ? Real(1) : far;
    return {weight * result.value, sign * weight * result.deriv};
  }
};

// t = 1: q^gamma_positive softplus(-x);  t = 0: P^gamma -log(1 - P), P = max(p - margin, 0)
template <class Math_>
struct AsymmetricFocal {
  using Math = Math_;
  using Real = typename Math::Real;
  Real gamma, gamma_positive, margin;

  FOCAL_INLINE ValueDeriv<Real> operator()(Real x, Real target) const {
    const bool positive = target > Real(0);
    const Logistic<Math> s(positive ? -x : x);  // p: of the outcome that did not happen
    const Real shift = positive ? Real(0) : margin;
    const bool shifted = shift > Real(0);
    const Real wrong = s.p - shift;
    const Real right = s.q + shift;
    const bool out = wrong <= Real(0);
    const ComplementLogs<Math> logs(out ? Real(0) : wrong, out ? Real(1) : right);
    const Real ce = shifted ? logs.of_b : s.minus_log_q;
    const Real power_of = positive ? gamma_positive : gamma;
    const Real m = Math::exp(-power_of * finite(shifted ? logs.of_a : s.minus_log_p));
    const Real turn = shifted ? s.q * ratio<Math>(s.p, wrong, Real(0)) : s.q;
    const Real bend = power_of * turn * finite(ce) * Math::kUnit;
    const Real slope = m * (bend + s.p * (shifted ? s.q * reciprocal<Math>(right) : Real(1)));
    return {out ? Real(0) : m * ce, out ? Real(0) : (positive ? -slope : slope)};
  }
};

// The ends of probabilities, as F.binary_cross_entropy has them: -log p at most 100, 1 / p at most 1e12.
template <class Math>
FOCAL_INLINE typename Math::Real at_most_100(typename Math::Real minus_log) {
  using Real = typename Math::Real;
  const Real most = Real(100) * Math::kPerNat;
  return minus_log > most ? most : minus_log;
}
template <class Math>
FOCAL_INLINE typename Math::Real inverse_of(typename Math::Real p) {
  using Real = typename Math::Real;
  return reciprocal<Math>(p > Real(1e-12) ? p : Real(1e-12));
}

// Of a probability x: value = m^gamma (-t log x - (1 - t) log(1 - x)), m = x (1 - t) + (1 - x) t; derivative by x.
template <class Math_, Exponent exponent>
struct ProbabilityFocal {
  using Math = Math_;
  using Real = typename Math::Real;
  Real gamma;

  FOCAL_INLINE ValueDeriv<Real> operator()(Real x, Real target) const {
    const Real q = Real(1) - x, other = Real(1) - target;
    const Real m = x * other + q * target;
    const ComplementLogs<Math> logs(x, q);
    const Real ce = target * at_most_100<Math>(logs.of_a) + other * at_most_100<Math>(logs.of_b);
    const Real weight = power<Math, exponent>(m, gamma);
    // Where a hard target is met, ce / m tends to 1.
    const Real bend = gamma * (other - target) * ratio<Math>(ce * Math::kUnit, m, Real(1));
    const Real slope = (other > Real(0) ? other * inverse_of<Math>(q) : Real(0)) -
                       (target > Real(0) ? target * inverse_of<Math>(x) : Real(0));
    return {weight * ce, weight * (bend + slope)};
  }
};

// log(1 + x) for any x >= 0.
template <class Math>
FOCAL_INLINE typename Math::Real log_of_sum(typename Math::Real x) {
  using Real = typename Math::Real;
  const Real small = Math::log1p(x <= Real(1) ? x : Real(0));
  return x <= Real(1) ? small : Math::log(Real(1) + x);
}

// A class's part in a softmax. e = exp(x - largest), relative = x - largest in units; others: sum of e over all classes but
// the one on top, of which 1 - p would cancel; inverse = 1 / (1 + others), log_sum = log(1 + others).
template <class Real>
struct ClassShare {
  Real p, q, ce;

  FOCAL_INLINE ClassShare(bool top, Real e, Real relative, Real others, Real inverse, Real log_sum)
      : p(e * inverse), q((top ? others : Real(1) + others - e) * inverse), ce(log_sum - relative) {}
};

// d loss / d x_c = s_c - p_c sum_k s_k with s_c = w_c deriv_c (ClassFocal). Of the class on top, own, 1 - p_c would cancel
// where it is nearly sure: s_c (1 - p_c) - p_c turn, turn being the sum of the others.
template <class Real>
FOCAL_INLINE Real slope_at_top(Real own, Real turn, Real others, Real inverse) {
  return (own * others - turn) * inverse;
}

// A class's term of softmax with soft targets, from p, q = 1 - p and ce = -log p: value = q^gamma ce, and
//   deriv = (d value / d margin) / q = -q^gamma (gamma p ce / q + 1)
// so that with weights w_c: d loss / d x_j = w_j deriv_j - p_j sum_c w_c deriv_c.
template <class Math_, Exponent exponent>
struct ClassFocal {
  using Math = Math_;
  using Real = typename Math::Real;
  Real gamma;

  FOCAL_INLINE ValueDeriv<Real> operator()(Real p, Real q, Real ce) const {
    const Real weight = power<Math, exponent>(q, gamma);
    const Real bend = gamma * ratio<Math>(p * finite(ce) * Math::kUnit, q, Real(1));  // p first: it may be 0 of inf
    return {weight * ce, -weight * (bend + Real(1))};
  }
};

}  // namespace focal
