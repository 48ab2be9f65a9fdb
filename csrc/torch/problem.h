// From tensors to plain pointers and strides: what the CPU and the CUDA glue share. Checks what memory safety needs;
// friendly messages come from Python. Must not know: how an engine works.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <limits>
#include <optional>
#include <stdexcept>
#include <string>

#include "layout.h"
#include "targets.h"

namespace focal::glue {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

enum class Family { kSigmoid, kSoftmax };
enum class Reduction : int64_t { kNone, kMean, kSum, kPositives };

constexpr int64_t kNoBackground = std::numeric_limits<int64_t>::min();

inline void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(std::string("focal_cuda operator: ") + what);
}

inline DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return DType::kFloat32;
    case ScalarType::Double: return DType::kFloat64;
    case ScalarType::Half: return DType::kFloat16;
    case ScalarType::BFloat16: return DType::kBFloat16;
    case ScalarType::Bool:
    case ScalarType::Byte: return DType::kUInt8;
    case ScalarType::Char: return DType::kInt8;
    case ScalarType::Short: return DType::kInt16;
    case ScalarType::Int: return DType::kInt32;
    case ScalarType::Long: return DType::kInt64;
    default: throw std::invalid_argument("focal_cuda operator: a tensor has a dtype it does not take");
  }
}

inline bool is_floating(DType dtype) { return dtype <= DType::kBFloat16; }

// The numbers of a call, in the order of the schemas.
struct Numbers {
  double positive_weight, negative_weight, gamma;
  int64_t class_dim, ignore_index, background_index;
  Reduction reduction;
};

// The shape of a call: which dimensions are positions, which is the class, and how the targets are read.
struct Problem {
  Family family;
  bool dense;         // targets have the logits' shape (sigmoid)
  int64_t class_dim;  // -1: every dimension is a position (dense without a weight per class)
  int64_t classes;    // 1 without a class dimension
  DType logits, targets;
  IndexRule index;
  DenseRule dense_rule;

  ScalarType computing() const { return logits == DType::kFloat64 ? ScalarType::Double : ScalarType::Float; }
};

inline Problem describe(Family family, const Tensor& logits, const Tensor& targets, const std::optional<Tensor>& alpha,
                        const Numbers& numbers) {
  Problem problem{};
  problem.family = family;
  problem.logits = dtype_of(logits);
  problem.targets = dtype_of(targets);
  require(is_floating(problem.logits), "logits must be floating point");
  const int64_t rank = logits.dim();
  problem.dense = family == Family::kSigmoid && targets.dim() == rank;
  require(problem.dense || targets.dim() == rank - 1, "targets have a shape that fits no form");
  problem.class_dim = problem.dense && !alpha ? -1 : numbers.class_dim;
  require(problem.class_dim >= -1 && problem.class_dim < rank, "class_dim is out of range");
  require(problem.dense || problem.class_dim >= 0, "class_dim is out of range");
  const auto sizes = logits.sizes(), target_sizes = targets.sizes();
  for (int64_t d = 0, t = 0; d < rank; ++d) {
    if (!problem.dense && d == problem.class_dim) continue;
    require(sizes[d] == target_sizes[t++], "targets have a shape that fits no form");
  }
  problem.classes = problem.class_dim < 0 ? 1 : sizes[problem.class_dim];
  require(problem.classes <= std::numeric_limits<int32_t>::max(), "there are more than 2^31 classes");
  require(problem.dense || !is_floating(problem.targets), "class index targets must be integers");
  if (alpha) {
    require(alpha->dim() == 1 && alpha->numel() == problem.classes && alpha->is_contiguous() &&
                alpha->scalar_type() == problem.computing(),
            "alpha must be a contiguous tensor of one number per class in the computing type");
  }
  const bool sigmoid = family == Family::kSigmoid;
  const int64_t background =
      sigmoid && numbers.background_index == kNoBackground ? problem.classes : numbers.background_index;
  problem.index = {problem.classes, numbers.ignore_index, background, sigmoid};
  problem.dense_rule = {static_cast<double>(numbers.ignore_index)};
  return problem;
}

// Strides of the operands over the positions. An operand is shaped like the logits, like the logits without the class
// dimension, or absent (null).
struct OperandTensors {
  const Tensor* tensor[kOperands] = {};
};

inline Positions positions_of(const Problem& problem, const Tensor& shape, const OperandTensors& operands,
                              int64_t class_strides[kOperands]) {
  Positions positions;
  const auto sizes = shape.sizes();
  const int64_t rank = shape.dim();
  const int64_t* strides[kOperands] = {};
  bool with_class[kOperands] = {};
  for (int o = 0; o < kOperands; ++o) {
    class_strides[o] = 0;
    if (!operands.tensor[o]) continue;
    strides[o] = operands.tensor[o]->strides().data();
    with_class[o] = operands.tensor[o]->dim() == rank;
  }
  for (int64_t d = 0; d < rank; ++d) {
    Dim dim{sizes[d], {}};
    for (int o = 0; o < kOperands; ++o) {
      if (!strides[o] || (d == problem.class_dim && !with_class[o])) continue;
      const bool after_class = problem.class_dim >= 0 && d > problem.class_dim;
      dim.stride[o] = strides[o][!with_class[o] && after_class ? d - 1 : d];
    }
    if (d == problem.class_dim) {
      for (int o = 0; o < kOperands; ++o) class_strides[o] = dim.stride[o];
    } else {
      positions.append(dim);
    }
  }
  return positions;
}

inline Tensor empty_strided(const int64_t* sizes, const int64_t* strides, int64_t rank, ScalarType dtype,
                            const Tensor& like) {
  // The shim, not the boxed operator: 0.4 us instead of 1.6 for a scalar.
  AtenTensorHandle handle;
  int32_t device_type, device_index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  const int32_t code = dtype == ScalarType::Double     ? aoti_torch_dtype_float64()
                       : dtype == ScalarType::Half     ? aoti_torch_dtype_float16()
                       : dtype == ScalarType::BFloat16 ? aoti_torch_dtype_bfloat16()
                                                       : aoti_torch_dtype_float32();
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(rank, sizes, strides, code, device_type, device_index, &handle));
  return Tensor(handle);
}

inline Tensor empty_scalar(ScalarType dtype, const Tensor& like) {
  return empty_strided(nullptr, nullptr, 0, dtype, like);
}

inline Tensor empty_contiguous_like(const Tensor& shape, ScalarType dtype) {
  int64_t strides[kMaxRank];
  const int64_t rank = shape.dim();
  require(rank <= kMaxRank, "a tensor has too many dimensions");
  const auto sizes = shape.sizes();
  int64_t stride = 1;
  for (int64_t d = rank - 1; d >= 0; --d) {
    strides[d] = stride;
    stride *= sizes[d] > 1 ? sizes[d] : 1;
  }
  return empty_strided(sizes.data(), strides, rank, dtype, shape);
}

// The dtype a tensor of margins is probed in.
inline ScalarType probed_dtype(const Tensor& margin) {
  const ScalarType dtype = margin.scalar_type();
  require((dtype == ScalarType::Float || dtype == ScalarType::Double) && margin.is_contiguous(),
          "margins must be contiguous float32 or float64");
  return dtype;
}

// The gradient's memory: as torch.empty_like.
inline Tensor empty_gradient(const Tensor& logits) {
  return logits.is_contiguous() ? empty_contiguous_like(logits, logits.scalar_type())
                                : torch::stable::empty_like(logits);
}

}  // namespace focal::glue
