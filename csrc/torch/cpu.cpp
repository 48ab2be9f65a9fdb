// The operators on the CPU: tensors to tasks, tasks to threads, errors to exceptions. No arithmetic of the loss.
// Order: class labels are counted and checked before anything is computed or written; dense targets are checked on the
// way, or before where the logits would be overwritten.
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <sstream>
#include <vector>

#include "cpu/kernels.h"
#include "torch/problem.h"

namespace focal::glue {
namespace {

using cpu::Kernels;
using cpu::TargetCounts;
using cpu::Task;

// Static chunks: who computes one never changes what it gives.
template <class Body>
void for_chunks(int64_t chunks, const Body& body) {
  if (chunks == 1) {
    body(0, 1);
  } else if (chunks > 1) {
    torch::stable::parallel_for(0, chunks, 1, body);
  }
}

// The first touch of fresh memory costs more than the arithmetic: 32 MB in 4 KiB pages take 13.3 ms, with huge pages
// 3.8 ms, and 3.0 ms when the ends, where no huge page fits, are mapped in one call each (one thread). Only memory that
// nobody wrote to yet should come here.
void expect_first_touch(const Tensor& tensor) {
#if defined(MADV_HUGEPAGE) && defined(MADV_POPULATE_WRITE)
  constexpr uintptr_t kHuge = 2 << 20, kPage = 4096;
  const size_t bytes = static_cast<size_t>(tensor.numel()) * tensor.element_size();
  if (bytes < 2 * kHuge) return;
  const uintptr_t first = reinterpret_cast<uintptr_t>(tensor.data_ptr()) & ~(kPage - 1);
  const uintptr_t last = (reinterpret_cast<uintptr_t>(tensor.data_ptr()) + bytes + kPage - 1) & ~(kPage - 1);
  const uintptr_t begin = (first + kHuge - 1) & ~(kHuge - 1), end = last & ~(kHuge - 1);
  const auto advise = [](uintptr_t from, uintptr_t to, int advice) {
    if (to > from) madvise(reinterpret_cast<void*>(from), to - from, advice);  // hints: failure is harmless
  };
  advise(begin, end, MADV_HUGEPAGE);
  advise(first, begin, MADV_POPULATE_WRITE);
  advise(end, last, MADV_POPULATE_WRITE);
#else
  (void)tensor;
#endif
}

// Softmax gradients from here on are streamed: they would not stay in the caches anyway, and their many separate runs
// make ordinary stores wait. [4, 19, 512, 512] fp32: 20 -> 15 ms (two cores). The sigmoid's one long run gains nothing.
constexpr int64_t kStreamBytes = 16 << 20;

double read_number(const Tensor& tensor) {
  require(tensor.numel() == 1 && tensor.is_cpu(), "a number on the CPU is needed");
  const void* data = tensor.data_ptr();
  switch (dtype_of(tensor)) {
    case DType::kFloat32: return *static_cast<const float*>(data);
    case DType::kFloat64: return *static_cast<const double*>(data);
    case DType::kFloat16: return to_real<float>(*static_cast<const Half*>(data));
    case DType::kBFloat16: return to_real<float>(*static_cast<const BFloat16*>(data));
    case DType::kUInt8: return *static_cast<const uint8_t*>(data);
    case DType::kInt8: return *static_cast<const int8_t*>(data);
    case DType::kInt16: return *static_cast<const int16_t*>(data);
    case DType::kInt32: return *static_cast<const int32_t*>(data);
    case DType::kInt64: return static_cast<double>(*static_cast<const int64_t*>(data));
  }
  return 0;
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
    text << "dense targets in [0, 1] or equal to ignore_index (" << problem.dense_rule.ignore_value << "), got "
         << name_element(targets, position) << "; clamp or re-encode the targets.";
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
  for (int64_t d = 0; d < targets.dim(); ++d) {
    Dim dim{targets.size(d), {}};
    dim.stride[kTargets] = targets.stride(d);
    task.positions.append(dim);
  }
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
  if (all.first_invalid >= 0) reject_targets(problem, targets, all.first_invalid);
  return all;
}

Task make_task(const Problem& problem, const Tensor& logits, const OperandTensors& operands,
               const std::optional<Tensor>& alpha, const Numbers& numbers) {
  Task task;
  int64_t class_strides[kOperands];
  task.positions = positions_of(problem, logits, operands, class_strides);
  for (int o = 0; o < kOperands; ++o) {
    if (operands.tensor[o])
      task.tensor[o] = {operands.tensor[o]->data_ptr(), dtype_of(*operands.tensor[o]), class_strides[o]};
  }
  const int64_t bytes = logits.numel() * static_cast<int64_t>(logits.element_size());
  task.tensor[kGradient].stream = problem.family == Family::kSoftmax && task.tensor[kGradient] &&
                                  bytes >= kStreamBytes && task.tensor[kGradient].data != task.tensor[kLogits].data;
  task.classes = problem.classes;
  task.dense = problem.dense;
  task.index = problem.index;
  task.dense_rule = problem.dense_rule;
  task.alpha = alpha ? alpha->data_ptr() : nullptr;
  task.positive_weight = numbers.positive_weight;
  task.negative_weight = numbers.negative_weight;
  task.gamma = numbers.gamma;
  if (problem.family == Family::kSigmoid) {
    plan_elementwise(task);
  } else {
    plan_softmax(task);
  }
  return task;
}

void run(const Task& task) {
  const Kernels& kernels = cpu::kernels();
  for_chunks(task.chunks, [&](int64_t first, int64_t last) { kernels.run(task, first, last); });
}

double inverse(double denominator) { return denominator == 0 ? 0 : 1 / denominator; }

// What the sum of losses is multiplied by, when `counted` elements count.
double reduction_scale(Reduction reduction, double scale, const std::optional<Tensor>& normalizer, double counted,
                       double positives) {
  switch (reduction) {
    case Reduction::kNone: return 1;
    case Reduction::kMean: return inverse(counted);
    case Reduction::kSum: return normalizer ? scale * inverse(read_number(*normalizer)) : scale;
    case Reduction::kPositives: return scale / (positives > 1 ? positives : 1);
  }
  return 1;
}

void write_number(const Tensor& tensor, double value) {
  if (tensor.scalar_type() == ScalarType::Double) {
    *static_cast<double*>(tensor.data_ptr()) = value;
  } else {
    *static_cast<float*>(tensor.data_ptr()) = static_cast<float>(value);
  }
}

// loss and, where a gradient tensor is given, the gradient for an upstream of 1. gradient may be the logits themselves.
std::tuple<Tensor, Tensor> forward(Family family, const Tensor& logits, const Tensor& targets,
                                   const std::optional<Tensor>& alpha, const std::optional<Tensor>& normalizer,
                                   double scale, const Numbers& numbers, const Tensor* gradient) {
  const Problem problem = describe(family, logits, targets, alpha, numbers);
  const bool unreduced = numbers.reduction == Reduction::kNone;
  require(!(unreduced && gradient), "an unreduced loss has no gradient before its upstream is known");
  const bool inplace = gradient && gradient->data_ptr() == logits.data_ptr();
  const int64_t elements = logits.numel();
  TargetCounts counts{targets.numel(), 0, -1};
  // Dense targets weigh as much as the logits, so they are counted on the way, taken to be all counted until then.
  // Where the first chunk has an ignored one, that would fail and cost a second pass of everything.
  const auto some_ignored = [&] {
    return scan(problem, targets, true).counted < std::min<int64_t>(targets.numel(), cpu::kChunkElements);
  };
  const bool scanned = !problem.dense || inplace || numbers.reduction == Reduction::kPositives ||
                       (numbers.reduction == Reduction::kMean && gradient && some_ignored());
  if (scanned) counts = scan(problem, targets);
  const double per_position = family == Family::kSigmoid && !problem.dense ? static_cast<double>(problem.classes) : 1;

  const ScalarType computing = problem.computing();
  Tensor loss = !unreduced                   ? empty_scalar(computing, logits)
                : family == Family::kSigmoid ? empty_contiguous_like(logits, computing)
                                             : empty_contiguous_like(targets, computing);
  Tensor final_scale = empty_scalar(ScalarType::Double, logits);
  OperandTensors operands;
  operands.tensor[kLogits] = &logits;
  operands.tensor[kTargets] = &targets;
  operands.tensor[kGradient] = gradient;
  operands.tensor[kLoss] = unreduced ? &loss : nullptr;
  Task task = make_task(problem, logits, operands, alpha, numbers);
  if (elements == 0) task.chunks = 0;
  if (unreduced) expect_first_touch(loss);
  if (gradient && !inplace) expect_first_touch(*gradient);

  std::vector<double> partial_sums(static_cast<size_t>(task.chunks));
  std::vector<cpu::DenseFindings> findings(problem.dense ? static_cast<size_t>(task.chunks) : 0);
  if (!unreduced) task.partial_sums = partial_sums.data();
  if (problem.dense) task.findings = findings.data();
  const auto scale_for = [&](int64_t counted) {
    return reduction_scale(numbers.reduction, scale, normalizer, static_cast<double>(counted) * per_position,
                           static_cast<double>(counts.positives));
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
    if (gradient && numbers.reduction == Reduction::kMean) {
      task.gradient_scale = scale_for(counts.counted);
      task.partial_sums = nullptr;
      run(task);
    }
  }
  const double applied = scale_for(counts.counted);
  write_number(final_scale, applied);
  if (!unreduced) write_number(loss, total * applied);
  return {loss, final_scale};
}

void backward(Family family, const Tensor& grad_loss, const Tensor& logits, const Tensor& targets,
              const std::optional<Tensor>& alpha, const Tensor& scale, const Numbers& numbers, bool filled,
              const Tensor& grad_logits) {
  const bool unreduced = numbers.reduction == Reduction::kNone;
  const double upstream = unreduced ? 1 : read_number(grad_loss);
  if (filled && upstream == 1) return;
  const Problem problem = describe(family, logits, targets, alpha, numbers);
  require(grad_logits.dim() == logits.dim() && grad_logits.numel() == logits.numel() &&
              grad_logits.scalar_type() == logits.scalar_type(),
          "grad_logits must be like the logits");
  OperandTensors operands;
  operands.tensor[kLogits] = &logits;
  operands.tensor[kTargets] = &targets;
  operands.tensor[kGradient] = &grad_logits;
  operands.tensor[kUpstream] = unreduced ? &grad_loss : nullptr;
  if (unreduced) {
    require(grad_loss.scalar_type() == problem.computing() &&
                grad_loss.dim() == (family == Family::kSigmoid ? logits.dim() : targets.dim()),
            "grad_loss must be like the loss");
  }
  Task task = make_task(problem, logits, operands, alpha, numbers);
  if (logits.numel() == 0) return;
  task.gradient_scale = unreduced ? 1 : read_number(scale) * upstream;
  if (!filled) expect_first_touch(grad_logits);
  run(task);
}

template <Family family>
std::tuple<Tensor, Tensor, Tensor> focal_loss(Tensor logits, Tensor targets, std::optional<Tensor> alpha,
                                              std::optional<Tensor> normalizer, double scale, double positive_weight,
                                              double negative_weight, double gamma, int64_t class_dim,
                                              int64_t ignore_index, int64_t background_index, int64_t reduction,
                                              bool with_gradient) {
  const Numbers numbers{positive_weight,  negative_weight,     gamma, class_dim, ignore_index,
                        background_index, Reduction(reduction)};
  const int64_t zero = 0, one = 1;
  Tensor gradient =
      with_gradient ? empty_gradient(logits) : empty_strided(&zero, &one, 1, logits.scalar_type(), logits);
  auto [loss, final_scale] =
      forward(family, logits, targets, alpha, normalizer, scale, numbers, with_gradient ? &gradient : nullptr);
  return {loss, final_scale, gradient};
}

template <Family family>
std::tuple<Tensor, Tensor> focal_loss_inplace(Tensor logits, Tensor targets, std::optional<Tensor> alpha,
                                              std::optional<Tensor> normalizer, double scale, double positive_weight,
                                              double negative_weight, double gamma, int64_t class_dim,
                                              int64_t ignore_index, int64_t background_index, int64_t reduction) {
  const Numbers numbers{positive_weight,  negative_weight,     gamma, class_dim, ignore_index,
                        background_index, Reduction(reduction)};
  return forward(family, logits, targets, alpha, normalizer, scale, numbers, &logits);
}

template <Family family>
void focal_loss_backward(Tensor grad_loss, Tensor logits, Tensor targets, std::optional<Tensor> alpha, Tensor scale,
                         double positive_weight, double negative_weight, double gamma, int64_t class_dim,
                         int64_t ignore_index, int64_t background_index, int64_t reduction, bool filled,
                         Tensor grad_logits) {
  const Numbers numbers{positive_weight,  negative_weight,     gamma, class_dim, ignore_index,
                        background_index, Reduction(reduction)};
  backward(family, grad_loss, logits, targets, alpha, scale, numbers, filled, grad_logits);
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
  library.impl("sigmoid_focal_loss", TORCH_BOX(&focal_loss<Family::kSigmoid>));
  library.impl("softmax_focal_loss", TORCH_BOX(&focal_loss<Family::kSoftmax>));
  library.impl("sigmoid_focal_loss_inplace", TORCH_BOX(&focal_loss_inplace<Family::kSigmoid>));
  library.impl("softmax_focal_loss_inplace", TORCH_BOX(&focal_loss_inplace<Family::kSoftmax>));
  library.impl("sigmoid_focal_loss_backward", TORCH_BOX(&focal_loss_backward<Family::kSigmoid>));
  library.impl("softmax_focal_loss_backward", TORCH_BOX(&focal_loss_backward<Family::kSoftmax>));
}

}  // namespace focal::glue
