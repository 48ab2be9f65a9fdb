// Softmax engine for everything the others do not take: any strides, any number of classes, float64. Two sweeps over a
// position's classes: maximum and sum on line, then the gradient; the second reads from the caches what still is there.
//   mapping        `lanes` threads share a position, 1 where positions are neighbours in memory, a warp where classes are
//   traffic        logits read twice (loss alone: once), gradient written once
//   determinism    a lane takes every lanes-th class in order, the lanes' results meet in a fixed tree
//   participation  whole warps; every thread reaches the shuffles and leave_partial
// Must not know: which loss Term is, torch.
#pragma once

#include "cuda/softmax.h"

namespace focal::cuda {

constexpr unsigned kStridedThreads = 256;

template <class Real>
struct StridedSoftmax : Softmax<Real> {
  Outer positions;
  int64_t count;
  int64_t class_stride[kOperands];
  int32_t lanes, steps;
};

template <class Term, Mode mode, class Storage>
__global__ void __launch_bounds__(kStridedThreads) softmax_strided(const StridedSoftmax<typename Term::Math::Real> a) {
  using Math = typename Term::Math;
  using Real = typename Math::Real;
  const Real lowest = -std::numeric_limits<Real>::infinity();
  Real scale;
  if (!begin(a.scaling, scale)) return;
  Findings<Real> found;
  const unsigned lane = threadIdx.x % a.lanes, groups = kStridedThreads / a.lanes;
  int64_t position = static_cast<int64_t>(blockIdx.x) * a.steps * groups + threadIdx.x / a.lanes;
  for (int step = 0; step < a.steps; ++step, position += groups) {
    const bool exists = position < a.count;
    int64_t offset[kOperands];
    a.positions.locate(exists ? position : 0, offset);
    const int64_t label = exists ? load_label(a.targets, a.target_dtype, offset[kTargets]) : a.index.ignore_index;
    const int32_t code = note_code<Term>(a, label, offset[kTargets], offset[kSampleWeight], exists && lane == 0, found);
    const Storage* logits = static_cast<const Storage*>(a.logits) + offset[kLogits];
    const auto logit = [&](int32_t c) { return to_real<Real>(load(logits + c * a.class_stride[kLogits])); };

    Real largest = lowest, sum = 0;
    for (int32_t c = static_cast<int32_t>(lane); code >= 0 && c < a.classes; c += a.lanes) {
      if (c == code) continue;
      const Real x = logit(c);
      if (!(x <= largest) && largest == largest) {
        sum = largest == lowest ? Real(0) : sum * Math::exp(Math::between(largest, x));
        largest = x;
      }
      if (x != lowest) sum += Math::exp(Math::between(x, largest));
    }
    for (int distance = a.lanes / 2; distance > 0; distance /= 2) {
      const Real other = __shfl_xor_sync(kAllLanes, largest, distance);
      const Real others = __shfl_xor_sync(kAllLanes, sum, distance);
      // The greater of the two, or the NaN.
      const Real most = !(other <= largest) && largest == largest ? other : largest;
      const Real mine = largest == lowest ? Real(0) : sum * Math::exp(Math::between(largest, most));
      const Real theirs = other == lowest ? Real(0) : others * Math::exp(Math::between(other, most));
      sum = mine + theirs;
      largest = most;
    }
    const Real shift = shift_of(largest);
    const Real own = code >= 0 ? Math::between(logit(code), shift) : Real(0);
    PositionGradient<Real> gradient{0, 0};
    if (exists)
      gradient = settle_position<Term, mode>(a, scale, code, own, sum, OwnPlaces{offset[kLoss], offset[kSampleWeight]},
                                             lane == 0, found);
    if (mode == Mode::kGradient) {
      __syncwarp();  // in place, every lane has read the target's logit
      Storage* to = static_cast<Storage*>(a.gradient) + offset[kGradient];
      for (int32_t c = static_cast<int32_t>(lane); exists && c < a.classes; c += a.lanes) {
        Real slope = gradient.own;
        if (c != code) {
          slope = code < 0 ? Real(0) : Math::exp(Math::between(logit(c), shift)) * gradient.others;
        }
        store(to + c * a.class_stride[kGradient], from_real<Storage>(slope));
      }
    }
  }
  leave_partial(found, Math::kUnit, a.partials);
}

}  // namespace focal::cuda
