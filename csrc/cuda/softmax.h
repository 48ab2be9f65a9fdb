// What the softmax engines share: a task's numbers, and what becomes of a position once its classes have been summed.
// The maximum and the sum are taken over the classes other than the target's, so that neither loses it.
//   margin   z = x_t - (largest + log sum)         gradient   d loss / d x_t = slope, d / d x_j = -slope e_j / sum
// Must not know: which loss Term is, where logits lie, torch.
#pragma once

#include "cuda/arguments.h"
#include "cuda/labels.h"
#include "cuda/places.h"
#include "cuda/reduce.h"
#include "cuda/term.h"

namespace focal::cuda {

template <class Real>
struct Softmax : Arguments<Real> {
  Real weight;  // without alpha
};

// A task's numbers in the computing type. Host.
template <class Real>
void set_numbers(const Task& task, Softmax<Real>& a) {
  set_arguments(task, a);
  a.weight = static_cast<Real>(task.positive_weight);
}

// Where a position's own numbers lie: of an unreduced loss or its upstream, and of its sample's weight.
struct OwnPlaces {
  int64_t each, sample;
};

// A label's code, negative where the position takes no part; `counts`: one thread of those that share the position adds
// it to what was found. at: in the targets. A sample's weight of 0 takes it out as well, but it counts.
template <class Term, class Real>
FOCAL_DEVICE int32_t note_code(const Softmax<Real>& a, int64_t label, int64_t at, int64_t sample, bool counts,
                               Findings<Real>& found) {
  const int32_t code = code_of(a.index, label);
  if (code < 0) {
    if (counts) ++found.ignored;
    if (counts && code == kInvalid) found.invalid = at;
  } else if (!Term::kPlain && a.sample_weights && load(a.sample_weights + sample) == Real(0)) {
    return kIgnored;
  }
  return code;
}

// The largest of the other classes, for subtraction: where all of them are -inf, 0.
template <class Real>
FOCAL_DEVICE Real shift_of(Real largest) {
  return largest == -std::numeric_limits<Real>::infinity() ? Real(0) : largest;
}

template <class Real>
struct PositionGradient {
  Real own;     // d loss / d x_t
  Real others;  // d loss / d x_j = others * e_j
};

// What a position's loss is multiplied by besides the reduction's scale.
template <class Term, class Real>
FOCAL_DEVICE Real weight_of(const Softmax<Real>& a, int32_t code, const OwnPlaces& own) {
  if (code < 0) return Real(0);
  const Real weight = a.positive_weights ? load(a.positive_weights + code) : a.weight;
  return !Term::kPlain && a.sample_weights ? weight * load(a.sample_weights + own.sample) : weight;
}

// d loss / d x_t of a position with its margin in units of Math.
// counts: one thread of those that settle a position adds its loss and stores it.
template <class Term, Mode mode, class Real>
FOCAL_DEVICE Real settle_margin(const Softmax<Real>& a, Real scale, int32_t code, Real margin, const OwnPlaces& own,
                                bool counts, Findings<Real>& found) {
  using Math = typename Term::Math;
  const Real gamma = !Term::kPlain && a.gammas && code >= 0 ? load(a.gammas + code) : a.gamma();
  const ValueDeriv<Real> result = Term::of_margin(a.rule, gamma, code < 0 ? kNoMargin<Real> : margin);
  if (!a.each) {
    if (counts) found.sum += a.weight * result.value;
    return a.weight * scale * result.deriv;
  }
  // One by one; an ignored position's gradient is 0 whatever its upstream is.
  const Real weight = weight_of<Term>(a, code, own);
  const Real value = weight * result.value;
  if (counts) {
    found.sum += value;
    if (a.loss) store(a.loss + own.each, value * Math::kUnit);
  }
  if (mode == Mode::kLoss || code < 0) return Real(0);
  const Real slope = weight * scale * result.deriv;
  return slope * a.upstream(own.each);
}

// The same from what the classes were summed to. target: the target's logit less the shift, in units of Math; sum: of
// exp(x_j - shift) over the other classes.
template <class Term, Mode mode, class Real>
FOCAL_DEVICE PositionGradient<Real> settle_position(const Softmax<Real>& a, Real scale, int32_t code, Real target,
                                                    Real sum, const OwnPlaces& own, bool counts,
                                                    Findings<Real>& found) {
  using Math = typename Term::Math;
  const Real slope = settle_margin<Term, mode>(a, scale, code, target - Math::log(sum), own, counts, found);
  return {slope, sum == Real(0) ? Real(0) : -slope * reciprocal<Math>(sum)};
}

}  // namespace focal::cuda
