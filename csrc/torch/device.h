// What operators on CUDA devices share: the device and its stream, memory that kernels may touch and leave each other,
// errors of a launch. Must not know: what is computed.
#pragma once

#if !defined(FOCAL_SIMT)
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#endif

#include <cstring>
#include <deque>

#include "cuda/task.h"
#include "torch/problem.h"

// Whose operators these are: the emulation's tensors are on the CPU.
#if defined(FOCAL_SIMT)
#define FOCAL_DISPATCH_KEY CPU
#else
#define FOCAL_DISPATCH_KEY CUDA
#endif

namespace focal::glue {

#if defined(FOCAL_SIMT)

// The emulation: no device, no stream, and the memory that kernels may touch is told.
struct OnDeviceOf {
  explicit OnDeviceOf(const Tensor&) {}
  cudaStream_t stream() const { return {}; }
};

class Reach {
 public:
  void read(const Tensor& tensor) { allow(tensor, false); }
  // Outputs begin as NaN, so that what is not written shows.
  void write(const Tensor& tensor, bool fresh) {
    allow(tensor, true);
    if (fresh) std::memset(tensor.data_ptr(), 0xff, tensor.numel() * tensor.element_size());
  }

 private:
  void allow(const Tensor& tensor, bool writable) {
    int64_t first = 0, last = 0;
    if (tensor.numel() == 0) return;
    for (int64_t d = 0; d < tensor.dim(); ++d) {
      const int64_t reach = (tensor.size(d) - 1) * tensor.stride(d);
      (reach < 0 ? first : last) += reach;
    }
    const int64_t size = static_cast<int64_t>(tensor.element_size());
    memory_.emplace_back(static_cast<const char*>(tensor.data_ptr()) + first * size, (last - first + 1) * size,
                         writable);
  }
  std::deque<simt::Memory> memory_;
};

#else

class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor& tensor) : index_(tensor.get_device_index()), guard_(index_) {}
  cudaStream_t stream() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return static_cast<cudaStream_t>(stream);
  }

 private:
  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
};

struct Reach {
  void read(const Tensor&) {}
  void write(const Tensor&, bool) {}
};

#endif

inline void check_launch(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::string text = std::string("focal_cuda: a CUDA launch failed: ") + cudaGetErrorString(error);
#if !defined(FOCAL_SIMT)
  if (error == cudaErrorNoKernelImageForDevice) {
    text +=
        "; this build has no kernels for the GPU's architecture: rebuild with TORCH_CUDA_ARCH_LIST set to it "
        "(`python -m focal_cuda.doctor` says which it has, and which the GPU needs).";
  }
#endif
  throw std::runtime_error(text);
}

inline void require_same_device(const Tensor& tensor, const Tensor& other) {
#if !defined(FOCAL_SIMT)
  require(other.is_cuda() && other.get_device_index() == tensor.get_device_index(),
          "all tensors must be on one device");
#else
  (void)tensor, (void)other;
#endif
}

// Memory for what kernels leave each other, from the caching allocator: as many float64 as fit the records.
class Workspace {
 public:
  Workspace(size_t bytes, const Tensor& like) {
    const int64_t size = static_cast<int64_t>(bytes / sizeof(double) + 1), stride = 1;
    memory_ = empty_strided(&size, &stride, 1, ScalarType::Double, like);
    next_ = static_cast<char*>(memory_.data_ptr());
  }
  template <class T>
  T* take(int64_t count) {
    T* taken = reinterpret_cast<T*>(next_);
    next_ += count * sizeof(T);
    return taken;
  }
  const Tensor& memory() const { return memory_; }

 private:
  Tensor memory_;
  char* next_;
};

}  // namespace focal::glue
