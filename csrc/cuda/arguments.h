// What the kernels of every engine need of a task, in the computing type. Must not know: layouts, which loss it is.
#pragma once

#include "cuda/task.h"

namespace focal::cuda {

template <class Real>
struct Arguments {
  const void* logits;
  void* gradient;
  const void* targets;
  Real* loss;                 // unreduced, or null
  const Real* upstream_each;  // of an unreduced loss, or null
  const Real* alpha;          // [classes], or null
  bool each;                  // whether elements differ in more than their targets: any of the three above
  Real gamma;
  DType target_dtype;
  int32_t classes;
  IndexRule index;
  Scaling scaling;
  Partial* partials;
};

// Host.
template <class Real>
void set_arguments(const Task& task, Arguments<Real>& a) {
  a.logits = task.tensor[kLogits].data;
  a.gradient = task.tensor[kGradient].data;
  a.targets = task.tensor[kTargets].data;
  a.loss = static_cast<Real*>(task.tensor[kLoss].data);
  a.upstream_each = static_cast<const Real*>(task.tensor[kUpstream].data);
  a.alpha = static_cast<const Real*>(task.alpha);
  a.each = a.loss || a.upstream_each || a.alpha;
  a.gamma = static_cast<Real>(task.gamma);
  a.target_dtype = task.tensor[kTargets].dtype;
  a.classes = static_cast<int32_t>(task.classes);
  a.index = task.index;
  a.scaling = task.scaling;
  a.partials = task.partials;
}

}  // namespace focal::cuda
