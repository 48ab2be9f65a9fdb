// The loss of math/ on the device, margin by margin: shows that the same struct gives the same numbers there.
#include "cuda/probe.cuh"
#include "math/focal.h"

namespace focal::cuda {
namespace {

constexpr int kThreads = 256;

// Mapping: one thread per margin. Traffic: one number read, two written. Deterministic.
template <class Loss, class Real>
__global__ void __launch_bounds__(kThreads)
    probe_kernel(Loss loss, const Real* __restrict__ margin, Real* __restrict__ value, Real* __restrict__ deriv,
                 int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  const ValueDeriv<Real> result = loss(margin[i]);
  value[i] = result.value;
  deriv[i] = result.deriv;
}

template <Exponent exponent, class Real>
cudaError_t launch(Real gamma, const Real* margin, Real* value, Real* deriv, int64_t n, cudaStream_t stream) {
  if (n > 0) {
    const unsigned blocks = static_cast<unsigned>((n + kThreads - 1) / kThreads);
    probe_kernel<<<blocks, kThreads, 0, stream>>>(Focal<LibmMath<Real>, exponent>{gamma}, margin, value, deriv, n);
  }
  return cudaGetLastError();
}

template <class Real>
cudaError_t dispatch(double gamma, const Real* margin, Real* value, Real* deriv, int64_t n, cudaStream_t stream) {
  const Real g = static_cast<Real>(gamma);
  switch (exponent_of(gamma)) {
    case Exponent::kZero: return launch<Exponent::kZero>(g, margin, value, deriv, n, stream);
    case Exponent::kOne: return launch<Exponent::kOne>(g, margin, value, deriv, n, stream);
    case Exponent::kTwo: return launch<Exponent::kTwo>(g, margin, value, deriv, n, stream);
    default: return launch<Exponent::kAny>(g, margin, value, deriv, n, stream);
  }
}

}  // namespace

cudaError_t launch_probe(double gamma, const float* margin, float* value, float* deriv, int64_t n,
                         cudaStream_t stream) {
  return dispatch(gamma, margin, value, deriv, n, stream);
}

cudaError_t launch_probe(double gamma, const double* margin, double* value, double* deriv, int64_t n,
                         cudaStream_t stream) {
  return dispatch(gamma, margin, value, deriv, n, stream);
}

}  // namespace focal::cuda
