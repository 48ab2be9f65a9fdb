// Softmax engine for targets that are no single class: dense ones, and labels with smoothing, y = (1 - s) [c = t] + s / C.
// Three sweeps over a position's classes, the later two from the caches: the largest logit, its class and the sum of
// all others on line (so that no 1 - p cancels); every class's loss and what they add up to; the gradient.
//   mapping        as strided.h: `lanes` threads share a position, 1 where positions are neighbours in memory, a warp where
//                  classes are
//   traffic        logits and dense targets read once from memory while a block's positions fit the caches, gradient
//                  written once
//   determinism    a lane takes every lanes-th class in order, the lanes' results meet in a fixed tree
//   participation  whole warps; every thread reaches the shuffles and leave_partial
// A lane reads and writes its own classes alone, so the gradient may lie over the logits.
// Must not know: which loss Term is, torch.
#pragma once

#include "cuda/strided.h"

namespace focal::cuda {

template <class Real>
struct SoftSoftmax : StridedSoftmax<Real> {
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
    int32_t code = kIgnored;
    if (exists && a.dense) {
      const Real first = load_target<Real>(a.targets, a.target_dtype, offset[kTargets]);
      code = a.dense_rule.counted(first) ? 0 : kIgnored;
      if (code < 0 && lane == 0) ++found.ignored;
      if (a.sample_weights && load(a.sample_weights + offset[kSampleWeight]) == Real(0)) code = kIgnored;
    } else if (exists) {
      const int64_t label = load_label(a.targets, a.target_dtype, offset[kTargets]);
      code = note_code<Term>(a, label, offset[kTargets], offset[kSampleWeight], lane == 0, found);
    }
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
    const Real inverse = reciprocal<Math>(Real(1) + top.others), log_sum = log_of_sum<Math>(top.others);
    // Calls visit(p, value, deriv), both with the class's weight.
    const auto of_class = [&](int32_t c, const auto& visit) {
      Real target = code == c ? Real(1) : Real(0);
      if (a.dense)
        target = load_target<Real>(a.targets, a.target_dtype, offset[kTargets] + c * a.class_stride[kTargets]);
      const Real weight = (a.kept * target + a.added) * (a.positive_weights ? load(a.positive_weights + c) : a.weight);
      const Real gamma = a.gammas ? load(a.gammas + c) : same_gamma;
      const Real relative = Math::between(logit(c), shift);
      const ClassShare<Real> share(c == top.at, Math::exp(relative), relative, top.others, inverse, log_sum);
      const ValueDeriv<Real> result = Term::of_class(gamma, share.p, share.q, share.ce);
      // A class that is masked by -inf has an infinite loss and may well have a target of 0.
      visit(share.p, weight == Real(0) ? Real(0) : weight * result.value, weight * result.deriv);
    };
    Real value = 0, own = 0, turn = 0;
    for (int32_t c = lane; c < classes; c += a.lanes) {
      of_class(c, [&](Real, Real of_value, Real of_deriv) {
        value += of_value;
        own += c == top.at ? of_deriv : Real(0);
        turn += c == top.at ? Real(0) : of_deriv;
      });
    }
    for (int distance = a.lanes / 2; distance > 0; distance /= 2) {
      value += __shfl_xor_sync(kAllLanes, value, distance);
      own += __shfl_xor_sync(kAllLanes, own, distance);
      turn += __shfl_xor_sync(kAllLanes, turn, distance);
    }
    if (!exists) continue;
    const Real sample = a.sample_weights && code >= 0 ? load(a.sample_weights + offset[kSampleWeight]) : Real(1);
    if (lane == 0) {
      found.sum += sample * value;
      if (a.loss) store(a.loss + offset[kLoss], sample * value * Math::kUnit);
    }
    if (mode == Mode::kGradient) {
      const Real factor = sample * scale * a.upstream(offset[kLoss]), all = own + turn;
      const Real at_top = slope_at_top(own, turn, top.others, inverse);
      Storage* to = static_cast<Storage*>(a.gradient) + offset[kGradient];
      for (int32_t c = lane; c < a.classes; c += a.lanes) {
        Real slope = 0;
        if (code >= 0) {
          of_class(c, [&](Real p, Real, Real of_deriv) { slope = c == top.at ? at_top : of_deriv - p * all; });
          slope *= factor;
        }
        store(to + c * a.class_stride[kGradient], from_real<Storage>(slope));
      }
    }
  }
  leave_partial(found, Math::kUnit, a.partials);
}

}  // namespace focal::cuda
