// The operators on CUDA devices: tensors to launches on the current stream of their device. No arithmetic of the loss.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "cuda/probe.cuh"
#include "torch/problem.h"

namespace focal::glue {
namespace {

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

void check_launch(cudaError_t error) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("focal_cuda: a CUDA launch failed: ") + cudaGetErrorString(error));
}

std::tuple<Tensor, Tensor> probe(Tensor margin, double gamma) {
  const torch::stable::accelerator::DeviceGuard guard(margin.get_device_index());
  const ScalarType dtype = probed_dtype(margin);
  Tensor value = empty_contiguous_like(margin, dtype), deriv = empty_contiguous_like(margin, dtype);
  const cudaStream_t stream = current_stream(margin);
  const int64_t n = margin.numel();
  if (dtype == ScalarType::Double) {
    check_launch(cuda::launch_probe(gamma, static_cast<const double*>(margin.data_ptr()),
                                    static_cast<double*>(value.data_ptr()), static_cast<double*>(deriv.data_ptr()), n,
                                    stream));
  } else {
    check_launch(cuda::launch_probe(gamma, static_cast<const float*>(margin.data_ptr()),
                                    static_cast<float*>(value.data_ptr()), static_cast<float*>(deriv.data_ptr()), n,
                                    stream));
  }
  return {value, deriv};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(focal_cuda, CUDA, library) { library.impl("margin_probe", TORCH_BOX(&probe)); }

}  // namespace focal::glue
