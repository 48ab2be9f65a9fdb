// From tensors to plain pointers and strides: what the CPU and the CUDA glue share. Checks what memory safety needs;
// friendly messages come from Python. Must not know: how an engine works.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/shim_utils.h>

#include <limits>
#include <optional>
#include <stdexcept>
#include <string>

#include "layout.h"
#include "math/relatives.h"
#include "reduction.h"
#include "targets.h"

namespace focal::glue {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

enum class Family { kSigmoid, kSoftmax };

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

// What a call says besides its tensors, in the order of the schemas.
struct Numbers {
  double positive_weight, negative_weight, gamma, smoothing;
  Loss loss;
  double parameter[4];
  int64_t class_dim, ignore_index, background_index;
  Reduction reduction;
};

// What a loss is of.
struct Inputs {
  Family family;
  Tensor logits, targets;
  std::optional<Tensor> weights;  // [2, C] as a positive and as a negative (sigmoid), [C] (softmax)
  std::optional<Tensor> gamma;    // one number, or [C]
  std::optional<Tensor> sample_weight, scores;
  Numbers numbers;

  // Whether gamma is one number for all, known on the device alone; kNormalized: with its level behind it.
  bool gamma_is_scalar() const { return gamma && (gamma->numel() == 1 || normalized()); }
  bool normalized() const { return numbers.loss == Loss::kNormalized; }
  // Calls visit(tensor) with every tensor there is.
  template <class Visit>
  void for_tensors(const Visit& visit) const {
    visit(logits);
    visit(targets);
    for (const auto* optional : {&weights, &gamma, &sample_weight, &scores}) {
      if (*optional) visit(**optional);
    }
  }
};

// One number for each logit, or for each position of the logits.
inline void require_shape(const Tensor& tensor, const Tensor& logits, int64_t class_dim, bool of_positions,
                          const char* what) {
  const auto sizes = logits.sizes(), own = tensor.sizes();
  const bool with_class = tensor.dim() == logits.dim();
  require((with_class && !of_positions) || (class_dim >= 0 && tensor.dim() == logits.dim() - 1), what);
  for (int64_t d = 0, t = 0; d < logits.dim(); ++d) {
    if (!with_class && d == class_dim) continue;
    require(sizes[d] == own[t++], what);
  }
}

// The shape of a call: which dimensions are positions, which is the class, and how the targets are read.
struct Problem {
  Family family;
  bool dense;         // targets have the logits' shape
  int64_t class_dim;  // -1: every dimension is a position (sigmoid, dense, nothing by class)
  int64_t classes;    // 1 without a class dimension
  DType logits, targets;
  IndexRule index;
  DenseRule dense_rule;

  ScalarType computing() const { return logits == DType::kFloat64 ? ScalarType::Double : ScalarType::Float; }
  bool softmax() const { return family == Family::kSoftmax; }
  // Elements of the loss for each target that is counted.
  int64_t elements_per_count() const { return softmax() || dense ? 1 : classes; }
};

inline Problem describe(const Inputs& inputs) {
  const Tensor &logits = inputs.logits, &targets = inputs.targets;
  const Numbers& numbers = inputs.numbers;
  Problem problem{};
  problem.family = inputs.family;
  problem.logits = dtype_of(logits);
  problem.targets = dtype_of(targets);
  require(is_floating(problem.logits), "logits must be floating point");
  const int64_t rank = logits.dim();
  const bool sigmoid = inputs.family == Family::kSigmoid,
             by_class = inputs.weights || (inputs.gamma && !inputs.gamma_is_scalar());
  problem.dense = targets.dim() == rank;
  require(problem.dense || targets.dim() == rank - 1, "targets have a shape that fits no form");
  problem.class_dim = sigmoid && problem.dense && !by_class ? -1 : numbers.class_dim;
  require(problem.class_dim >= (sigmoid && problem.dense ? -1 : 0) && problem.class_dim < rank,
          "class_dim is out of range");
  const auto sizes = logits.sizes(), target_sizes = targets.sizes();
  for (int64_t d = 0, t = 0; d < rank; ++d) {
    if (!problem.dense && d == problem.class_dim) continue;
    require(sizes[d] == target_sizes[t++], "targets have a shape that fits no form");
  }
  problem.classes = problem.class_dim < 0 ? 1 : sizes[problem.class_dim];
  require(problem.classes <= std::numeric_limits<int32_t>::max(), "there are more than 2^31 classes");
  require(problem.dense || !is_floating(problem.targets), "class index targets must be integers");
  const auto require_numbers = [&](const std::optional<Tensor>& tensor, int64_t count, const char* what) {
    require(!tensor ||
                (tensor->numel() == count && tensor->is_contiguous() && tensor->scalar_type() == problem.computing()),
            what);
  };
  require_numbers(inputs.weights, sigmoid ? 2 * problem.classes : problem.classes,
                  "weights must be contiguous numbers of the computing type, one for each class and role");
  require(inputs.gamma || !inputs.normalized(), "a normalized loss needs gamma and level");
  require_numbers(inputs.gamma,
                  inputs.normalized()        ? 2
                  : inputs.gamma_is_scalar() ? 1
                                             : problem.classes,
                  "gamma must be a contiguous number of the computing type, or one for each class");
  if (inputs.sample_weight) {
    require(is_floating(dtype_of(*inputs.sample_weight)), "sample_weight must be floating point");
    require_shape(*inputs.sample_weight, logits, problem.class_dim, !sigmoid, "sample_weight must be like the loss");
  }
  if (inputs.scores) {
    require(sigmoid && !problem.dense && is_floating(dtype_of(*inputs.scores)), "scores go with class labels");
    require_shape(*inputs.scores, logits, problem.class_dim, true, "scores must be like the targets");
  }
  const int64_t background =
      sigmoid && numbers.background_index == kNoBackground ? problem.classes : numbers.background_index;
  problem.index = {problem.classes, numbers.ignore_index, background, sigmoid};
  const bool binary =
      sigmoid && (numbers.loss == Loss::kAsymmetric || (is_of_margin(numbers.loss) && numbers.loss != Loss::kFocal));
  const double largest = binary ? 0 : sigmoid ? 1 : std::numeric_limits<double>::infinity();
  problem.dense_rule = {static_cast<double>(numbers.ignore_index), largest,
                        numbers.loss == Loss::kGaussian ? 1 : std::numeric_limits<float>::denorm_min(), binary};
  return problem;
}

// What the CPU's and the GPU's tasks have alike.
template <class Task>
void set_numbers(Task& task, const Problem& problem, const Inputs& inputs) {
  const Numbers& numbers = inputs.numbers;
  task.classes = problem.classes;
  task.dense = problem.dense;
  task.index = problem.index;
  task.dense_rule = problem.dense_rule;
  task.rule = {numbers.loss, numbers.gamma, {}};
  for (int i = 0; i < 4; ++i) task.rule.parameter[i] = numbers.parameter[i];
  // Smoothing leaves 1 - 1 / (the number of outcomes) of its share to the others. Here, for a graph has no fixed C.
  if (numbers.loss == Loss::kShaped) {
    task.rule.parameter[1] *= 1 - 1 / static_cast<double>(problem.softmax() ? problem.classes : 2);
  }
  task.smoothing = numbers.smoothing;
  task.positive_weight = numbers.positive_weight;
  task.negative_weight = numbers.negative_weight;
  if (inputs.gamma && !inputs.gamma_is_scalar()) task.gammas = inputs.gamma->data_ptr();
  if (inputs.weights) {
    const size_t bytes = static_cast<size_t>(problem.classes) * inputs.weights->element_size();
    task.positive_weights = inputs.weights->data_ptr();
    if (!problem.softmax()) task.negative_weights = static_cast<const char*>(task.positive_weights) + bytes;
  }
}

// The targets as a scan counts them: every label or dense sigmoid target; of dense softmax targets those of class 0.
inline Positions counted_positions(const Problem& problem, const Tensor& targets) {
  Positions positions;
  for (int64_t d = 0; d < targets.dim(); ++d) {
    if (problem.softmax() && problem.dense && d == problem.class_dim) continue;
    Dim dim{targets.size(d), {}};
    dim.stride[kTargets] = targets.stride(d);
    positions.append(dim);
  }
  return positions;
}

// Strides of the operands over the positions. An operand is shaped like the logits, like the logits without the class
// dimension, or absent (null).
struct OperandTensors {
  const Tensor* tensor[kOperands] = {};

  explicit OperandTensors(const Inputs& inputs) {
    tensor[kLogits] = &inputs.logits;
    tensor[kTargets] = &inputs.targets;
    if (inputs.sample_weight) tensor[kSampleWeight] = &*inputs.sample_weight;
    if (inputs.scores) tensor[kScores] = &*inputs.scores;
  }
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
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  const int32_t code = dtype == ScalarType::Double     ? aoti_torch_dtype_float64()
                       : dtype == ScalarType::Half     ? aoti_torch_dtype_float16()
                       : dtype == ScalarType::BFloat16 ? aoti_torch_dtype_bfloat16()
                                                       : aoti_torch_dtype_float32();
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(rank, sizes, strides, code, device_type, device_index, &handle));
  return Tensor(handle);
}

inline Tensor empty_scalar(ScalarType dtype, const Tensor& like) {
  return empty_strided(nullptr, nullptr, 0, dtype, like);
}

inline Tensor empty_contiguous(const int64_t* sizes, int64_t rank, ScalarType dtype, const Tensor& like) {
  int64_t strides[kMaxRank];
  require(rank <= kMaxRank, "a tensor has too many dimensions");
  int64_t stride = 1;
  for (int64_t d = rank - 1; d >= 0; --d) {
    strides[d] = stride;
    stride *= sizes[d] > 1 ? sizes[d] : 1;
  }
  return empty_strided(sizes, strides, rank, dtype, like);
}

inline Tensor empty_contiguous_like(const Tensor& shape, ScalarType dtype) {
  return empty_contiguous(shape.sizes().data(), shape.dim(), dtype, shape);
}

// The dtype a tensor of margins is probed in.
inline ScalarType probed_dtype(const Tensor& margin) {
  const ScalarType dtype = margin.scalar_type();
  require((dtype == ScalarType::Float || dtype == ScalarType::Double) && margin.is_contiguous(),
          "margins must be contiguous float32 or float64");
  return dtype;
}

// The loss's memory: one number, or one for each element (sigmoid) or position (softmax).
inline Tensor empty_loss(const Problem& problem, const Inputs& inputs) {
  if (inputs.numbers.reduction != Reduction::kNone) return empty_scalar(problem.computing(), inputs.logits);
  if (!problem.softmax()) return empty_contiguous_like(inputs.logits, problem.computing());
  if (!problem.dense) return empty_contiguous_like(inputs.targets, problem.computing());
  int64_t sizes[kMaxRank], rank = 0;
  for (int64_t d = 0; d < inputs.logits.dim(); ++d) {
    if (d != problem.class_dim) sizes[rank++] = inputs.logits.size(d);
  }
  return empty_contiguous(sizes, rank, problem.computing(), inputs.logits);
}

// The gradient's memory: as torch.empty_like.
inline Tensor empty_gradient(const Tensor& logits) {
  return logits.is_contiguous() ? empty_contiguous_like(logits, logits.scalar_type())
                                : torch::stable::empty_like(logits);
}

}  // namespace focal::glue
