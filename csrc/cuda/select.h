// The hardest of n losses on a GPU: their mean, and which they are. Host. Must not know: torch.
#pragma once

#include "cuda/task.h"
#include "hardest.h"

namespace focal::cuda {

struct SelectTask {
  const void* losses = nullptr;
  DType dtype = DType::kFloat32;  // or kFloat64
  int64_t n = 0;
  const void* counted = nullptr;        // how many of the losses count: one number,
  DType counted_dtype = DType::kInt64;  // int64 or float64
  HardestRule rule;
  void* mean = nullptr;  // of the losses' type
  Kept* kept = nullptr;
  void* workspace = nullptr;  // workspace_bytes(task), 8-byte aligned
};

size_t workspace_bytes(const SelectTask& task);
cudaError_t select_hardest(const SelectTask& task, cudaStream_t stream);

// gradient = *upstream / k where a loss is kept, else 0. It may lie over the losses; upstream is of their type.
cudaError_t hardest_gradient(const void* losses, void* gradient, DType dtype, int64_t n, const Kept* kept,
                             const void* upstream, cudaStream_t stream);

}  // namespace focal::cuda
