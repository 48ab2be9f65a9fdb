// The operators on the CPU: tensors to tasks, tasks to threads, errors to exceptions. No arithmetic of the loss.
// Order: class labels are counted and checked before anything is computed or written; dense targets are checked on the
// way, or before where the logits would be overwritten.
#include <algorithm>
#include <cstring>
#include <sstream>
#include <vector>

#include "cpu/kernels.h"
#include "torch/host.h"
#include "torch/operators.h"

namespace focal::glue {
namespace {

using cpu::Kernels;
using cpu::TargetCounts;
using cpu::Task;

// Softmax gradients from here on are streamed: they would not stay in the caches anyway, and their many separate runs
// make ordinary stores wait. [4, 19, 512, 512] fp32: 20 -> 15 ms (two cores). The sigmoid's one long run gains nothing.
constexpr int64_t kStreamBytes = 16 << 20;

double number_at(const Tensor& tensor, int64_t index) {
  require(tensor.is_cpu(), "a number on the CPU is needed");
  const void* data = tensor.data_ptr();
  switch (dtype_of(tensor)) {
    case DType::kFloat32: return static_cast<const float*>(data)[index];
    case DType::kFloat64: return static_cast<const double*>(data)[index];
    case DType::kFloat16: return to_real<float>(static_cast<const Half*>(data)[index]);
    case DType::kBFloat16: return to_real<float>(static_cast<const BFloat16*>(data)[index]);
    case DType::kUInt8: return static_cast<const uint8_t*>(data)[index];
    case DType::kInt8: return static_cast<const int8_t*>(data)[index];
    case DType::kInt16: return static_cast<const int16_t*>(data)[index];
    case DType::kInt32: return static_cast<const int32_t*>(data)[index];
    case DType::kInt64: return static_cast<double>(static_cast<const int64_t*>(data)[index]);
  }
  return 0;
}

double read_number(const Tensor& tensor) {
  require(tensor.numel() == 1, "one number is needed");
  return number_at(tensor, 0);
}

// "targets[3, 17] = 25", from a position in the targets' logical order.
std::string name_element(const Tensor& targets, int64_t position) {
  std::ostringstream text;
  const int64_t rank = targets.dim();
  std::vector<int64_t> index(static_cast<size_t>(rank));
  int64_t offset = 0;
  for (int64_t d = rank - 1, rest = position; d >= 0; --d) {
    index[d] = rest % targets.size(d);
    rest /= targets.size(d);
    offset += index[d] * targets.stride(d);
  }
  text << "targets[";
  for (int64_t d = 0; d < rank; ++d) text << (d ? ", " : "") << index[d];
  text << "] = ";
  const auto* data = static_cast<const char*>(targets.data_ptr());
  switch (dtype_of(targets)) {
    case DType::kFloat32: text << reinterpret_cast<const float*>(data)[offset]; break;
    case DType::kFloat64: text << reinterpret_cast<const double*>(data)[offset]; break;
    case DType::kFloat16: text << to_real<float>(reinterpret_cast<const Half*>(data)[offset]); break;
    case DType::kBFloat16: text << to_real<float>(reinterpret_cast<const BFloat16*>(data)[offset]); break;
    case DType::kUInt8: text << static_cast<int>(reinterpret_cast<const uint8_t*>(data)[offset]); break;
    case DType::kInt8: text << static_cast<int>(reinterpret_cast<const int8_t*>(data)[offset]); break;
    case DType::kInt16: text << reinterpret_cast<const int16_t*>(data)[offset]; break;
    case DType::kInt32: text << reinterpret_cast<const int32_t*>(data)[offset]; break;
    case DType::kInt64: text << reinterpret_cast<const int64_t*>(data)[offset]; break;
  }
  return text.str();
}

const char* op_name(Family family) { return family == Family::kSigmoid ? "sigmoid_focal_loss" : "softmax_focal_loss"; }

// Throws what Python shows as IndexError (class labels) or ValueError (dense targets).
[[noreturn]] void reject_targets(const Problem& problem, const Tensor& targets, int64_t position) {
  std::ostringstream text;
  text << op_name(problem.family) << ": expected ";
  if (problem.dense) {
    text << "dense targets " << (problem.dense_rule.binary ? "0, 1" : "in [0, 1]") << " or equal to ignore_index ("
         << problem.dense_rule.ignore_value << "), got " << name_element(targets, position)
         << "; clamp them, or of a mask take mask > 0.";
    throw std::invalid_argument(text.str());
  }
  text << "class labels in [0, " << problem.classes << ")";
  if (problem.index.background_allowed) text << ", background_index (" << problem.index.background_index << ")";
  text << " or ignore_index (" << problem.index.ignore_index << "), got " << name_element(targets, position)
       << "; fix the labels or set " << (problem.index.background_allowed ? "background_index or " : "")
       << "ignore_index.";
  throw std::out_of_range(text.str());
}

// Counts and checks the targets: all of them, or the first chunk alone.
TargetCounts scan(const Problem& problem, const Tensor& targets, bool first_chunk = false) {
  cpu::ScanTask task;
  task.positions = counted_positions(problem, targets);
  task.targets = {targets.data_ptr(), problem.targets, 0};
  task.dense = problem.dense;
  task.index = problem.index;
  task.dense_rule = problem.dense_rule;
  plan_scan(task);
  if (first_chunk && task.chunks > 1) task.chunks = 1;
  std::vector<TargetCounts> counts(static_cast<size_t>(task.chunks));
  task.counts = counts.data();
  const Kernels& kernels = cpu::kernels();
  for_chunks(task.chunks, [&](int64_t first, int64_t last) { kernels.scan(task, first, last); });
  const TargetCounts all = combine(task);
  const bool checked = !(problem.softmax() && problem.dense);  // those are weights, and only class 0 was read
  if (checked && all.first_invalid >= 0) reject_targets(problem, targets, all.first_invalid);
  return all;
}

// The task, cut. Logits without an element have no cut, and no chunks.
Task make_task(const Problem& problem, const Inputs& inputs, const OperandTensors& operands) {
  const Tensor& logits = inputs.logits;
  Task task;
  if (logits.numel() == 0) return task;
  int64_t class_strides[kOperands];
  task.positions = positions_of(problem, logits, operands, class_strides);
  for (int o = 0; o < kOperands; ++o) {
    if (operands.tensor[o])
      task.tensor[o] = {operands.tensor[o]->data_ptr(), dtype_of(*operands.tensor[o]), class_strides[o]};
  }
  const int64_t bytes = logits.numel() * static_cast<int64_t>(logits.element_size());
  task.tensor[kGradient].stream = problem.family == Family::kSoftmax && task.tensor[kGradient] &&
                                  bytes >= kStreamBytes && task.tensor[kGradient].data != task.tensor[kLogits].data;
  set_numbers(task, problem, inputs);
  if (inputs.gamma_is_scalar()) task.rule.gamma = number_at(*inputs.gamma, 0);
  if (inputs.normalized()) task.rule.parameter[0] = number_at(*inputs.gamma, 1);
  problem.softmax() ? plan_softmax(task) : plan_elementwise(task);
  return task;
}

void run(const Task& task) {
  const Kernels& kernels = cpu::kernels();
  for_chunks(task.chunks, [&](int64_t first, int64_t last) { kernels.run(task, first, last); });
}

void write_number(const Tensor& tensor, double value) {
  if (tensor.scalar_type() == ScalarType::Double) {
    *static_cast<double*>(tensor.data_ptr()) = value;
  } else {
    *static_cast<float*>(tensor.data_ptr()) = static_cast<float>(value);
  }
}

struct Cpu {
  static std::tuple<Tensor, Tensor> forward(const Inputs& inputs, const std::optional<Tensor>& normalizer, double scale,
                                            const Tensor* gradient);
  static void backward(const Inputs& inputs, const Tensor& grad_loss, const Tensor& scale, bool filled,
                       const Tensor& grad_logits, const Tensor* kept);
};

// loss and, where a gradient tensor is given, the gradient for an upstream of 1. gradient may be the logits themselves.
std::tuple<Tensor, Tensor> Cpu::forward(const Inputs& inputs, const std::optional<Tensor>& normalizer, double scale,
                                        const Tensor* gradient) {
  const Problem problem = describe(inputs);
  const Tensor &logits = inputs.logits, &targets = inputs.targets;
  const Reduction reduction = inputs.numbers.reduction;
  const bool unreduced = reduction == Reduction::kNone;
  require(!(unreduced && gradient), "an unreduced loss has no gradient before its upstream is known");
  const bool inplace = gradient && gradient->data_ptr() == logits.data_ptr();
  TargetCounts counts{counted_positions(problem, targets).count, 0, -1};
  // Dense targets weigh as much as the logits, so they are counted on the way, taken to be all counted until then.
  // Where the first chunk has an ignored one, that would fail and cost a second pass of everything.
  const auto some_ignored = [&] {
    return scan(problem, targets, true).counted < std::min<int64_t>(counts.counted, cpu::kChunkElements);
  };
  const bool found_on_the_way = problem.dense && !problem.softmax();
  const bool scanned = !found_on_the_way || inplace || reduction == Reduction::kPositives ||
                       (reduction == Reduction::kMean && gradient && some_ignored());
  if (scanned) counts = scan(problem, targets);

  Tensor loss = empty_loss(problem, inputs);
  Tensor final_scale = empty_scalar(ScalarType::Double, logits);
  OperandTensors operands(inputs);
  operands.tensor[kGradient] = gradient;
  operands.tensor[kLoss] = unreduced ? &loss : nullptr;
  Task task = make_task(problem, inputs, operands);
  if (unreduced) expect_first_touch(loss);
  if (gradient && !inplace) expect_first_touch(*gradient);

  std::vector<double> partial_sums(static_cast<size_t>(task.chunks));
  std::vector<cpu::DenseFindings> findings(found_on_the_way ? static_cast<size_t>(task.chunks) : 0);
  if (!unreduced) task.partial_sums = partial_sums.data();
  if (found_on_the_way) task.findings = findings.data();
  const auto scale_for = [&](int64_t counted) {
    const auto elements_counted = static_cast<double>(counted * problem.elements_per_count());
    const double own = scale_of(reduction, scale, elements_counted, static_cast<double>(counts.positives));
    return normalizer ? own * inverse(read_number(*normalizer)) : own;
  };
  task.gradient_scale = scale_for(counts.counted);
  run(task);
  int64_t ignored = 0;
  for (const cpu::DenseFindings& found : findings) {
    if (found.invalid) scan(problem, targets);  // throws, naming the first one
    ignored += found.ignored;
  }
  double total = 0;
  for (double sum : partial_sums) total += sum;

  // Some were ignored after all: a mean's gradient has to be made again.
  if (!scanned && ignored > 0) {
    counts.counted -= ignored;
    if (gradient && reduction == Reduction::kMean) {
      task.gradient_scale = scale_for(counts.counted);
      task.partial_sums = nullptr;
      run(task);
    }
  }
  const double applied = scale_for(counts.counted);
  const auto counted = static_cast<double>(counts.counted * problem.elements_per_count());
  write_number(final_scale, unreduced ? counted : applied);
  if (!unreduced) write_number(loss, total * applied);
  return {loss, final_scale};
}

void Cpu::backward(const Inputs& inputs, const Tensor& grad_loss, const Tensor& scale, bool filled,
                   const Tensor& grad_logits, const Tensor* kept) {
  const bool unreduced = inputs.numbers.reduction == Reduction::kNone;
  const double upstream = unreduced ? 1 : read_number(grad_loss);
  if (filled && upstream == 1) return;
  const Problem problem = describe(inputs);
  require_grad_loss(problem, inputs, grad_loss);
  OperandTensors operands(inputs);
  operands.tensor[kGradient] = &grad_logits;
  operands.tensor[kUpstream] = unreduced ? &grad_loss : nullptr;
  Task task = make_task(problem, inputs, operands);
  task.gradient_scale = unreduced ? 1 : read_number(scale) * upstream;
  Kept which;
  if (kept) {
    std::memcpy(&which, kept->data_ptr(), sizeof which);
    task.kept = &which;
    task.gradient_scale = read_number(scale) * which.share;
  }
  if (!filled && grad_logits.data_ptr() != grad_loss.data_ptr()) expect_first_touch(grad_logits);
  run(task);
}

std::tuple<Tensor, Tensor> probe(Tensor margin, double gamma) {
  const ScalarType dtype = probed_dtype(margin);
  Tensor value = empty_contiguous_like(margin, dtype), deriv = empty_contiguous_like(margin, dtype);
  const Kernels& kernels = cpu::kernels();
  if (dtype == ScalarType::Double) {
    kernels.margin_float64(gamma, static_cast<const double*>(margin.data_ptr()), static_cast<double*>(value.data_ptr()),
                           static_cast<double*>(deriv.data_ptr()), margin.numel());
  } else {
    kernels.margin_float32(gamma, static_cast<const float*>(margin.data_ptr()), static_cast<float*>(value.data_ptr()),
                           static_cast<float*>(deriv.data_ptr()), margin.numel());
  }
  return {value, deriv};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(focal_cuda, CPU, library) {
  library.impl("margin_probe", TORCH_BOX(&probe));
  register_losses<Cpu>(library);
}

}  // namespace focal::glue
