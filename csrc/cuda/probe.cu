// The loss of math/ on the device, margin by margin: shows that the same struct gives the same numbers there.
#include "cuda/memory.h"
#include "cuda/probe.cuh"
#include "math/focal.h"

namespace focal::cuda {
namespace {

constexpr unsigned kThreads = 256;

// Mapping: one thread per margin. Traffic: one number read, two written. Deterministic.
template <class Loss>
__global__ void __launch_bounds__(kThreads)
    probe_kernel(Loss loss, const typename Loss::Real* margin, typename Loss::Real* value, typename Loss::Real* deriv,
                 int64_t n) {
  using Math = typename Loss::Math;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  const auto result = loss(Math::to_units(load(margin + i)));
  store(value + i, result.value * Math::kUnit);
  store(deriv + i, result.deriv);
}

template <class Math, class Real>
cudaError_t start(double gamma, const Real* margin, Real* value, Real* deriv, int64_t n, cudaStream_t stream) {
  const Grid grid{(n + kThreads - 1) / kThreads, kThreads};
  const Real g = static_cast<Real>(gamma);
  if (gamma == 2) {
    return FOCAL_LAUNCH(grid, stream, (probe_kernel<Focal<Math, Exponent::kTwo>>), (Focal<Math, Exponent::kTwo>{g}),
                        margin, value, deriv, n);
  }
  return FOCAL_LAUNCH(grid, stream, (probe_kernel<Focal<Math, Exponent::kAny>>), (Focal<Math, Exponent::kAny>{g}),
                      margin, value, deriv, n);
}

}  // namespace

cudaError_t launch_probe(double gamma, const float* margin, float* value, float* deriv, int64_t n,
                         cudaStream_t stream) {
  return start<BinaryMath<true>>(gamma, margin, value, deriv, n, stream);
}

cudaError_t launch_probe(double gamma, const double* margin, double* value, double* deriv, int64_t n,
                         cudaStream_t stream) {
  return start<LibmMath<double>>(gamma, margin, value, deriv, n, stream);
}

}  // namespace focal::cuda
