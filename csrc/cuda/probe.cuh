// Entries of probe.cu for the glue. Must not know: torch.
#pragma once

#include "cuda/task.h"

namespace focal::cuda {

// value and deriv [n] of the focal loss at each margin. Asynchronous on the stream; launch errors come back.
cudaError_t launch_probe(double gamma, const float* margin, float* value, float* deriv, int64_t n, cudaStream_t stream);
cudaError_t launch_probe(double gamma, const double* margin, double* value, double* deriv, int64_t n,
                         cudaStream_t stream);

}  // namespace focal::cuda
