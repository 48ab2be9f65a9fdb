// Softmax engines for targets that are no single class: dense ones, and labels with smoothing, y = (1 - s) [c = t] + s / C.
//   held     up to kHeldClasses classes a thread, in registers: read once
//   swept    any number of classes and float64, in three sweeps, the later two from the caches
// Both take the largest logit, its class and the sum of all others (so that no 1 - p cancels); every class's loss and
// what they add up to; the gradient.
//   mapping        `lanes` threads share a position, 1 where positions are neighbours in memory, more where classes are
//   traffic        logits and dense targets read once from memory, swept while a block's positions fit the caches;
//                  gradient written once
//   determinism    a lane takes every lanes-th class in order, the lanes' results meet in a fixed tree
//   participation  whole warps; every thread reaches the shuffles and leave_partial
// A lane reads and writes its own classes alone, so the gradient may lie over the logits.
// Must not know: which loss Term is, torch.
#pragma once

#include "cuda/strided.h"

namespace focal::cuda {

constexpr int kHeldClasses = 32;

template <class Real>
struct SoftSoftmax : StridedSoftmax<Real> {
  int32_t step[kOperands];  // from a lane's class to its next, in bytes, where classes are held
  bool dense;
  Real kept, added;  // y = kept * target + added
  DenseRule dense_rule;
};

// A task's numbers in the computing type. Host.
template <class Real>
void set_numbers(const Task& task, SoftSoftmax<Real>& a) {
  set_numbers(task, static_cast<Softmax<Real>&>(a));
  a.dense = task.dense;
  a.kept = static_cast<Real>(1 - task.smoothing);
  a.added = static_cast<Real>(task.smoothing / static_cast<double>(task.classes));
  a.dense_rule = task.dense_rule;
}

// Where a position takes no part, negative; else its label, or 0 with dense targets.
template <class Term, class Real>
FOCAL_DEVICE int32_t soft_code(const SoftSoftmax<Real>& a, bool exists, const int64_t (&offset)[kOperands], bool counts,
                               Findings<Real>& found) {
  if (!exists) return kIgnored;
  if (!a.dense) {
    const int64_t label = load_label(a.targets, a.target_dtype, offset[kTargets]);
    return note_code<Term>(a, label, offset[kTargets], offset[kSampleWeight], counts, found);
  }
  const bool counted = a.dense_rule.counted(load_target<Real>(a.targets, a.target_dtype, offset[kTargets]));
  if (!counted && counts) ++found.ignored;
  const bool weighs = !a.sample_weights || load(a.sample_weights + offset[kSampleWeight]) != Real(0);
  return counted && weighs ? 0 : kIgnored;
}

template <class Real>
FOCAL_DEVICE Real soft_target(const SoftSoftmax<Real>& a, const int64_t (&offset)[kOperands], int32_t code, int32_t c) {
  if (!a.dense) return code == c ? Real(1) : Real(0);
  return load_target<Real>(a.targets, a.target_dtype, offset[kTargets] + c * a.class_stride[kTargets]);
}

// What a class's target weighs with its alpha.
template <class Real>
FOCAL_DEVICE Real weight_of_class(const SoftSoftmax<Real>& a, int32_t c, Real target) {
  return (a.kept * target + a.added) * (a.positive_weights ? load(a.positive_weights + c) : a.weight);
}

// What is known of a position's classes together.
template <class Math>
struct OfClasses {
  using Real = typename Math::Real;
  Real others, inverse, log_sum;  // see ClassShare

  FOCAL_DEVICE explicit OfClasses(Real others)
      : others(others), inverse(reciprocal<Math>(Real(1) + others)), log_sum(log_of_sum<Math>(others)) {}

  // Value and slope of a class with its weight; p becomes its probability.
  template <class Term, Exponent exponent = Exponent::kTwoOrAny>
  FOCAL_DEVICE ValueDeriv<Real> term(Real weight, Real gamma, bool top, Real relative, Real& p) const {
    const ClassShare<Real> share(top, Math::exp(relative), relative, others, inverse, log_sum);
    const ValueDeriv<Real> result = Term::template of_class<exponent>(gamma, share.p, share.q, share.ce);
    p = share.p;
    // A class that is masked by -inf has an infinite loss and may well have a target of 0.
    return {weight == Real(0) ? Real(0) : weight * result.value, weight * result.deriv};
  }
};

// What the classes' terms add up to, over all lanes of a position.
template <class Real>
struct SoftSums {
  Real value = 0, own = 0, turn = 0;

  FOCAL_DEVICE void add(const ValueDeriv<Real>& term, bool top) {
    value += term.value;
    own = top ? term.deriv : own;
    turn += top ? Real(0) : term.deriv;
  }
  FOCAL_DEVICE void over_lanes(int32_t lanes) {
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
      value += __shfl_xor_sync(kAllLanes, value, distance);
      own += __shfl_xor_sync(kAllLanes, own, distance);
      turn += __shfl_xor_sync(kAllLanes, turn, distance);
    }
  }
};

// Leaves the loss of a position; returns what its slopes are multiplied by.
template <class Math, class Real>
FOCAL_DEVICE Real leave_loss(const SoftSoftmax<Real>& a, Real scale, const int64_t (&offset)[kOperands], int32_t code,
                             Real value, bool counts, Findings<Real>& found) {
  const Real sample = a.sample_weights && code >= 0 ? load(a.sample_weights + offset[kSampleWeight]) : Real(1);
  if (counts) {
    found.sum += sample * value;
    if (a.loss) store(a.loss + offset[kLoss], sample * value * Math::kUnit);
  }
  return a.gradient ? sample * scale * a.upstream(offset[kLoss]) : Real(0);
}

// The largest logit seen, the first class that has it, and the sum of exp(x - largest) over all others.
template <class Math>
struct Top {
  using Real = typename Math::Real;
  Real largest = -std::numeric_limits<Real>::infinity();
  int32_t at = 0x7fffffff;
  Real others = 0;

  FOCAL_DEVICE void add(Real x, int32_t c) { join(x, c, Real(0)); }

  // The same bits in whichever order two are joined. A NaN goes on top and stays.
  FOCAL_DEVICE void join(Real most, int32_t c, Real rest) {
    const Real lowest = -std::numeric_limits<Real>::infinity();
    const bool over = !(most <= largest) || (most == largest && c < at);
    const bool takes = over && largest == largest;
    const Real above = takes ? most : largest, below = takes ? largest : most;
    const Real under = takes ? others : rest;
    others = takes ? rest : others;
    if (below != lowest) others += (under + Real(1)) * Math::exp(Math::between(below, above));
    largest = above;
    at = takes ? c : at;
  }
};

template <class Term, Mode mode, class Storage>
__global__ void __launch_bounds__(kStridedThreads, sizeof(typename Term::Real) == 8 ? 1 : 5)
    softmax_soft(const SoftSoftmax<typename Term::Math::Real> a) {
  using Math = typename Term::Math;
  using Real = typename Math::Real;
  Real scale;
  if (!begin(a.scaling, scale)) return;
  Findings<Real> found;
  const int32_t lane = static_cast<int32_t>(threadIdx.x % a.lanes);
  const unsigned groups = kStridedThreads / a.lanes;
  const Real same_gamma = a.gamma();
  int64_t position = static_cast<int64_t>(blockIdx.x) * a.steps * groups + threadIdx.x / a.lanes;
  for (int step = 0; step < a.steps; ++step, position += groups) {
    const bool exists = position < a.count;
    int64_t offset[kOperands];
    a.positions.locate(exists ? position : 0, offset);
    const int32_t code = soft_code<Term>(a, exists, offset, lane == 0, found);
    const int32_t classes = code < 0 ? 0 : a.classes;
    const Storage* logits = static_cast<const Storage*>(a.logits) + offset[kLogits];
    const auto logit = [&](int32_t c) { return to_real<Real>(load(logits + c * a.class_stride[kLogits])); };

    Top<Math> top;
    for (int32_t c = lane; c < classes; c += a.lanes) top.add(logit(c), c);
    for (int distance = a.lanes / 2; distance > 0; distance /= 2) {
      const Real most = __shfl_xor_sync(kAllLanes, top.largest, distance);
      const int32_t c = __shfl_xor_sync(kAllLanes, top.at, distance);
      top.join(most, c, __shfl_xor_sync(kAllLanes, top.others, distance));
    }
    const Real shift = shift_of(top.largest);
    const OfClasses<Math> all(top.others);
    const auto term = [&](int32_t c, Real& p) {
      const Real weight = weight_of_class(a, c, soft_target(a, offset, code, c));
      const Real gamma = a.gammas ? load(a.gammas + c) : same_gamma;
      return all.template term<Term>(weight, gamma, c == top.at, Math::between(logit(c), shift), p);
    };
    SoftSums<Real> sums;
    Real p;
    for (int32_t c = lane; c < classes; c += a.lanes) sums.add(term(c, p), c == top.at);
    sums.over_lanes(a.lanes);
    if (!exists) continue;
    const Real factor = leave_loss<Math>(a, scale, offset, code, sums.value, lane == 0, found);
    if (mode == Mode::kGradient) {
      const Real at_top = slope_at_top(sums.own, sums.turn, all.others, all.inverse);
      Storage* to = static_cast<Storage*>(a.gradient) + offset[kGradient];
      for (int32_t c = lane; c < a.classes; c += a.lanes) {
        Real slope = 0;
        if (code >= 0) {
          const Real own = term(c, p).deriv;
          slope = (c == top.at ? at_top : own - p * (sums.own + sums.turn)) * factor;
        }
        store(to + c * a.class_stride[kGradient], from_real<Storage>(slope));
      }
    }
  }
  leave_partial(found, Math::kUnit, a.partials);
}

// Calls visit(i) for the `count` classes that a lane holds, and for up to three beyond.
template <class Visit>
FOCAL_DEVICE void for_held(int32_t count, const Visit& visit) {
  constexpr int kAtOnce = 4;
#pragma unroll
  for (int first = 0; first < kHeldClasses; first += kAtOnce) {
    if (first < count) {
#pragma unroll
      for (int i = first; i < first + kAtOnce; ++i) visit(i);
    }
  }
}

template <class Term, class Storage>
__global__ void __launch_bounds__(kStridedThreads, 2)
    softmax_soft_held(const SoftSoftmax<typename Term::Math::Real> a) {
  using Math = typename Term::Math;
  using Real = typename Math::Real;
  const Real lowest = -std::numeric_limits<Real>::infinity();
  Real scale;
  if (!begin(a.scaling, scale)) return;
  Findings<Real> found;
  const int32_t lane = static_cast<int32_t>(threadIdx.x % a.lanes);
  const unsigned groups = kStridedThreads / a.lanes;
  const int32_t count = (a.classes - lane + a.lanes - 1) / a.lanes;  // the lane's
  const Real same_gamma = a.gamma();
  int64_t position = static_cast<int64_t>(blockIdx.x) * a.steps * groups + threadIdx.x / a.lanes;
  for (int step = 0; step < a.steps; ++step, position += groups) {
    const bool exists = position < a.count;
    int64_t offset[kOperands];
    a.positions.locate(exists ? position : 0, offset);
    const int32_t code = soft_code<Term>(a, exists, offset, lane == 0, found);
    const auto first_of = [&](Operand operand) { return offset[operand] + lane * a.class_stride[operand]; };
    const Storage* const logits = static_cast<const Storage*>(a.logits) + first_of(kLogits);

    // Logits, then relative ones, then probabilities.
    Real x[kHeldClasses], slope[kHeldClasses] = {};
    Real largest = lowest;
    for_held(count, [&](int i) {
      x[i] = lowest;
      if (i < count && code >= 0) x[i] = to_real<Real>(load(moved(logits, i, a.step[kLogits])));
    });
    for_held(count, [&](int i) { largest = fmaxf(largest, x[i]); });
    for (int distance = a.lanes / 2; distance > 0; distance /= 2)
      largest = fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, distance));

    // The class on top is the first that has the largest logit: of those of the lanes the first.
    const Real shift = shift_of(largest);
    Real others = 0;
    int32_t own_top = -1;
    for_held(count, [&](int i) {
      const bool on_top = x[i] == largest && own_top < 0 && i < count;
      x[i] = Math::between(x[i], shift);
      own_top = on_top ? i : own_top;
      others += on_top ? Real(0) : Math::exp(x[i]);
    });
    const int32_t own = own_top < 0 ? 0x7fffffff : lane + own_top * a.lanes;
    int32_t top = own;
    for (int distance = a.lanes / 2; distance > 0; distance /= 2)
      top = min(top, __shfl_xor_sync(kAllLanes, top, distance));
    if (own != top && own_top >= 0) {
      others += Math::exp(Math::between(largest, shift));
      own_top = -1;
    }
    for (int distance = a.lanes / 2; distance > 0; distance /= 2)
      others += __shfl_xor_sync(kAllLanes, others, distance);

    // Targets until their class's slope is known.
    if (a.dense && a.target_dtype == DType::kFloat32 && code >= 0) {
      const float* const targets = static_cast<const float*>(a.targets) + first_of(kTargets);
      for_held(count, [&](int i) {
        if (i < count) slope[i] = load(moved(targets, i, a.step[kTargets]));
      });
    } else if (code >= 0) {
      for_held(count, [&](int i) {
        if (i < count) slope[i] = soft_target(a, offset, code, lane + i * a.lanes);
      });
    }
    const OfClasses<Math> all(others);
    SoftSums<Real> sums;
    if (!a.positive_weights && !a.gammas && same_gamma == Real(2)) {
      for_held(count, [&](int i) {
        const Real weight = i < count ? (a.kept * slope[i] + a.added) * a.weight : Real(0);
        const ValueDeriv<Real> term =
            all.template term<Term, Exponent::kTwo>(weight, Real(2), i == own_top, x[i], x[i]);
        sums.add(term, i == own_top);
        slope[i] = term.deriv;
      });
    } else {
      for_held(count, [&](int i) {
        Real weight = 0, gamma = same_gamma;
        if (i < count) {
          weight = weight_of_class(a, lane + i * a.lanes, slope[i]);
          if (a.gammas) gamma = load(a.gammas + lane + i * a.lanes);
        }
        const ValueDeriv<Real> term = all.template term<Term>(weight, gamma, i == own_top, x[i], x[i]);
        sums.add(term, i == own_top);
        slope[i] = term.deriv;
      });
    }
    sums.over_lanes(a.lanes);
    if (!exists) continue;
    if (code < 0) sums.value = 0;
    const Real factor = leave_loss<Math>(a, scale, offset, code, sums.value, lane == 0, found);
    if (a.gradient) {
      const Real at_top = slope_at_top(sums.own, sums.turn, all.others, all.inverse), total = sums.own + sums.turn;
      Storage* const to = static_cast<Storage*>(a.gradient) + first_of(kGradient);
      for_held(count, [&](int i) {
        const Real of_class = (i == own_top ? at_top : slope[i] - x[i] * total) * factor;
        if (i < count) store(moved(to, i, a.step[kGradient]), from_real<Storage>(code < 0 ? Real(0) : of_class));
      });
    }
  }
  leave_partial(found, Math::kUnit, a.partials);
}

}  // namespace focal::cuda
