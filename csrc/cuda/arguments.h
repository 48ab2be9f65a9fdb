// What the kernels of every engine need of a task, in the computing type. Must not know: layouts, which loss it is.
#pragma once

#include "cuda/memory.h"
#include "cuda/task.h"

namespace focal::cuda {

// A LossRule in the computing type.
template <class Real>
struct LossNumbers {
  Loss loss;
  Real gamma;
  Real parameter[4];
  const Real* level;  // on the device: the first parameter of kNormalized
};

template <class Real>
struct Arguments {
  const void* logits;
  void* gradient;
  const void* targets;
  Real* loss;                                                // unreduced, or null
  const Real* upstream_each;                                 // of an unreduced loss, or null; or
  const Kept* kept;                                          //   if not null, the losses that these are of
  const Real* sample_weights;                                // or null
  const Real *positive_weights, *negative_weights, *gammas;  // [classes], or null
  const Real* device_gamma;                                  // in place of the rule's, or null
  bool each;  // whether elements differ in more than their targets: any of the above but the last
  LossNumbers<Real> rule;
  DType target_dtype;
  int32_t classes;
  IndexRule index;
  Scaling scaling;
  Partial* partials;

  FOCAL_DEVICE Real gamma() const { return device_gamma ? load(device_gamma) : rule.gamma; }

  // The upstream gradient of the unreduced loss at this index.
  FOCAL_DEVICE Real upstream(int64_t at) const {
    if (!upstream_each) return Real(1);
    const Real value = load(upstream_each + at);
    if (!kept) return value;
    const Kept which{load(&kept->key), load(&kept->last), load(&kept->share)};
    return keeps(which, value, at) ? static_cast<Real>(which.share) : Real(0);
  }
};

// Host.
template <class Real>
void set_arguments(const Task& task, Arguments<Real>& a) {
  a.logits = task.tensor[kLogits].data;
  a.gradient = task.tensor[kGradient].data;
  a.targets = task.tensor[kTargets].data;
  a.loss = static_cast<Real*>(task.tensor[kLoss].data);
  a.upstream_each = static_cast<const Real*>(task.tensor[kUpstream].data);
  a.kept = task.kept;
  a.sample_weights = static_cast<const Real*>(task.tensor[kSampleWeight].data);
  a.positive_weights = static_cast<const Real*>(task.positive_weights);
  a.negative_weights = static_cast<const Real*>(task.negative_weights);
  a.gammas = static_cast<const Real*>(task.gammas);
  a.device_gamma = static_cast<const Real*>(task.device_gamma);
  a.each = a.loss || a.upstream_each || a.sample_weights || a.positive_weights || a.gammas;
  a.rule.loss = task.rule.loss;
  a.rule.gamma = static_cast<Real>(task.rule.gamma);
  for (int i = 0; i < 4; ++i) a.rule.parameter[i] = static_cast<Real>(task.rule.parameter[i]);
  a.rule.level = a.device_gamma ? a.device_gamma + 1 : nullptr;
  a.target_dtype = task.tensor[kTargets].dtype;
  a.classes = static_cast<int32_t>(task.classes);
  a.index = task.index;
  a.scaling = task.scaling;
  a.partials = task.partials;
}

}  // namespace focal::cuda
