// What the planners of the engines share: rounding, alignment, and a task's numbers in the computing type. Host only.
// Must not know: what a kernel computes.
#pragma once

#include "cuda/places.h"
#include "cuda/task.h"

namespace focal::cuda {

// Enough blocks for many waves on any GPU, few enough for their partial sums to be added quickly.
constexpr int64_t kManyBlocks = 8192;
// Enough blocks to keep every multiprocessor busy: fewer would not be worth saving on.
constexpr int64_t kFewBlocks = 1024;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

inline int64_t storage_bytes(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
    case DType::kInt64: return 8;
    case DType::kFloat32:
    case DType::kInt32: return 4;
    case DType::kFloat16:
    case DType::kBFloat16:
    case DType::kInt16: return 2;
    default: return 1;
  }
}

inline bool lies_on_16_bytes(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

// The tensor that an unreduced loss is written to or its upstream gradient read from.
inline Operand each_of(const Task& task) { return task.tensor[kLoss] ? kLoss : kUpstream; }

// Whether all strides of an operand, the innermost dimension's aside, are multiples of `vector` elements.
inline bool strides_divide(const Task& task, const Positions& positions, Operand operand, int64_t vector) {
  const Tensor& tensor = task.tensor[operand];
  if (!tensor) return true;
  if (!lies_on_16_bytes(tensor.data) || tensor.class_stride % vector != 0) return false;
  for (int d = 0; d + 1 < positions.rank; ++d) {
    if (positions.dims[d].stride[operand] % vector != 0) return false;
  }
  return true;
}

// Positions in the order of the logits' memory.
inline Positions ordered(const Task& task) {
  Positions positions = task.positions;
  positions.order_by(kLogits);
  positions.collapse();
  positions.require_innermost();
  return positions;
}

}  // namespace focal::cuda
