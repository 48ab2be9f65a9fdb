// The engines behind function pointers, one set per instruction set, and the choice between them.
// Must not know: what is inside an engine, torch.
#pragma once

#include "cpu/selection.h"
#include "cpu/task.h"

namespace focal::cpu {

struct Kernels {
  const char* isa;
  // Chunks [first, last) of a task; float32 computing for fp32, fp16, bf16 logits, float64 for fp64.
  void (*run_float32)(const Task&, int64_t first, int64_t last);
  void (*run_float64)(const Task&, int64_t first, int64_t last);
  void (*scan)(const ScanTask&, int64_t first, int64_t last);
  // For tests of the elementary functions and of the loss: arrays of n values.
  void (*elementary_float32)(const char* function, const float* in, float* out, int64_t n);
  void (*margin_float32)(double gamma, const float* margin, float* value, float* deriv, int64_t n);
  void (*margin_float64)(double gamma, const double* margin, double* value, double* deriv, int64_t n);
  SelectKernels<float> select_float32;
  SelectKernels<double> select_float64;

  void run(const Task& task, int64_t first, int64_t last) const {
    (task.tensor[kLogits].dtype == DType::kFloat64 ? run_float64 : run_float32)(task, first, last);
  }
};

// The widest instruction set this processor has, or the lower one that FOCAL_CUDA_CPU_ISA (base, v3, v4) names.
// Throws std::runtime_error for a name that is unknown or wider than the processor.
const Kernels& kernels();

}  // namespace focal::cpu
