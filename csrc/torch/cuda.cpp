// The operators on CUDA devices: tensors to launches on the current stream of their device. No arithmetic of the loss,
// no synchronisation, no read of a device's memory: everything can be captured into a CUDA graph.
// Order of a forward: counts of the labels where the gradient needs them, the scale, the engine, the sum. Labels are
// checked on the way, and a bad one stops the last of these kernels (scan.cu).
#if !defined(FOCAL_SIMT)
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#endif

#include <algorithm>
#include <deque>
#include <numeric>

#include "cuda/probe.cuh"
#include "cuda/task.h"
#include "torch/problem.h"

namespace focal::glue {
namespace {

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
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
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

void check_launch(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::string text = std::string("focal_cuda: a CUDA launch failed: ") + cudaGetErrorString(error);
#if !defined(FOCAL_SIMT)
  if (error == cudaErrorNoKernelImageForDevice) {
    text +=
        "; this build has no kernels for the GPU's architecture: rebuild with TORCH_CUDA_ARCH_LIST set to it "
        "(focal_cuda.build_info() lists what it has).";
  }
#endif
  throw std::runtime_error(text);
}

void require_same_device(const Tensor& logits, const Tensor& other, const char* what) {
#if !defined(FOCAL_SIMT)
  require(other.is_cuda() && other.get_device_index() == logits.get_device_index(), what);
#else
  (void)logits, (void)other, (void)what;
#endif
}

cuda::Tensor tensor_of(const Tensor& tensor, int64_t class_stride) {
  return {tensor.data_ptr(), dtype_of(tensor), class_stride};
}

cuda::Task make_task(const Problem& problem, const Tensor& logits, const OperandTensors& operands,
                     const std::optional<Tensor>& alpha, const Numbers& numbers) {
  cuda::Task task;
  int64_t class_strides[kOperands];
  task.positions = positions_of(problem, logits, operands, class_strides);
  for (int o = 0; o < kOperands; ++o) {
    if (operands.tensor[o]) task.tensor[o] = tensor_of(*operands.tensor[o], class_strides[o]);
  }
  task.softmax = problem.family == Family::kSoftmax;
  task.classes = problem.classes;
  task.dense = problem.dense;
  task.index = problem.index;
  task.dense_rule = problem.dense_rule;
  task.alpha = alpha ? alpha->data_ptr() : nullptr;
  task.positive_weight = numbers.positive_weight;
  task.negative_weight = numbers.negative_weight;
  task.gamma = numbers.gamma;
  return task;
}

void plan(cuda::Task& task, const Tensor& logits) {
  if (logits.numel() > 0 && !cuda::plan(task))
    throw std::invalid_argument(
        "focal_cuda operator: expected logits and targets whose memory is walked in at most 12 nested strides, got "
        "more; call .contiguous() on them.");
}

cuda::ScanTask scan_task(const Problem& problem, const Tensor& targets) {
  cuda::ScanTask task;
  for (int64_t d = 0; d < targets.dim(); ++d) {
    Dim dim{targets.size(d), {}};
    dim.stride[kTargets] = targets.stride(d);
    task.positions.append(dim);
  }
  task.targets = tensor_of(targets, 0);
  task.dense = problem.dense;
  task.index = problem.index;
  task.dense_rule = problem.dense_rule;
  plan_scan(task);
  return task;
}

cuda::Naming naming_of(const Tensor& targets) {
  cuda::Naming naming;
  const int64_t skipped = std::max<int64_t>(targets.dim() - cuda::Naming::kRank, 0);
  for (int64_t d = skipped; d < targets.dim(); ++d) {
    naming.sizes[naming.rank] = targets.size(d);
    naming.strides[naming.rank] = targets.stride(d);
    ++naming.rank;
  }
  std::iota(naming.order, naming.order + naming.rank, 0);
  std::stable_sort(naming.order, naming.order + naming.rank,
                   [&](int a, int b) { return naming.strides[a] > naming.strides[b]; });
  return naming;
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

// loss and, where a gradient tensor is given, the gradient for an upstream of 1. gradient may be the logits themselves.
std::tuple<Tensor, Tensor> forward(Family family, const Tensor& logits, const Tensor& targets,
                                   const std::optional<Tensor>& alpha, const std::optional<Tensor>& normalizer,
                                   double scale, const Numbers& numbers, const Tensor* gradient) {
  const OnDeviceOf device(logits);
  const cudaStream_t stream = device.stream();
  const Problem problem = describe(family, logits, targets, alpha, numbers);
  require_same_device(logits, targets, "targets must be on the logits' device");
  if (alpha) require_same_device(logits, *alpha, "alpha must be on the logits' device");
  if (normalizer) {
    require(normalizer->numel() == 1, "normalizer must be one number");
    require_same_device(logits, *normalizer, "normalizer must be on the logits' device");
  }
  const bool unreduced = numbers.reduction == Reduction::kNone, mean = numbers.reduction == Reduction::kMean;
  require(!(unreduced && gradient), "an unreduced loss has no gradient before its upstream is known");
  const bool inplace = gradient && gradient->data_ptr() == logits.data_ptr();
  const bool has_elements = logits.numel() > 0;
  const double per_position = family == Family::kSigmoid && !problem.dense ? static_cast<double>(problem.classes) : 1;
  const double everything = static_cast<double>(targets.numel()) * per_position;
  // A mean's loss alone needs its count last. Its gradient needs it first: labels weigh little and are counted. Dense
  // targets weigh as much as the logits, so all are taken to count, and where some do not the gradient is made again.
  const bool hopeful = mean && gradient && problem.dense && !inplace;
  const bool counts_first =
      has_elements && (numbers.reduction == Reduction::kPositives || (mean && gradient && !hopeful));
  const bool settles = counts_first || normalizer;

  const ScalarType computing = problem.computing();
  Tensor loss = !unreduced                   ? empty_scalar(computing, logits)
                : family == Family::kSigmoid ? empty_contiguous_like(logits, computing)
                                             : empty_contiguous_like(targets, computing);
  Tensor applied = empty_scalar(ScalarType::Double, logits);
  OperandTensors operands;
  operands.tensor[kLogits] = &logits;
  operands.tensor[kTargets] = &targets;
  operands.tensor[kGradient] = gradient;
  operands.tensor[kLoss] = unreduced ? &loss : nullptr;
  cuda::Task task = make_task(problem, logits, operands, alpha, numbers);
  plan(task, logits);
  cuda::ScanTask labels;
  if (counts_first) labels = scan_task(problem, targets);
  const Workspace workspace_memory(
      labels.blocks * sizeof(cuda::Counts) + task.blocks * sizeof(cuda::Partial) + 2 * sizeof(double), logits);
  Workspace workspace = workspace_memory;
  labels.counts = workspace.take<cuda::Counts>(labels.blocks);
  task.partials = workspace.take<cuda::Partial>(task.blocks);

  Reach reach;
  for (const Tensor* input : {&logits, &targets}) reach.read(*input);
  if (alpha) reach.read(*alpha);
  if (normalizer) reach.read(*normalizer);
  for (const Tensor* output :
       {&static_cast<const Tensor&>(loss), &static_cast<const Tensor&>(applied), &workspace.memory()})
    reach.write(*output, true);
  if (gradient) reach.write(*gradient, !inplace);

  double* const applied_scale = static_cast<double*>(applied.data_ptr());
  if (settles) {
    cuda::ScaleRule rule;
    rule.reduction = static_cast<int>(numbers.reduction);
    rule.scale = scale;
    rule.per_position = per_position;
    if (normalizer) {
      rule.normalizer = normalizer->data_ptr();
      rule.normalizer_dtype = dtype_of(*normalizer);
    }
    if (counts_first) check_launch(cuda::scan(labels, stream));
    check_launch(cuda::settle_scale(rule, labels.counts, labels.blocks, applied_scale, stream));
    task.scaling.device_scale = applied_scale;
  } else if (mean) {
    task.scaling.scale = has_elements ? 1 / everything : 0;
  } else if (!unreduced) {
    task.scaling.scale = scale;
  }
  if (has_elements) check_launch(cuda::run(task, stream));

  cuda::FinishTask last;
  last.partials = task.partials;
  last.blocks = has_elements ? task.blocks : 0;
  last.applied = applied_scale;
  last.settled = settles;
  last.scale = task.scaling.scale;
  last.mean_of = mean && has_elements ? everything : 0;
  last.loss = unreduced ? nullptr : loss.data_ptr();
  last.loss_dtype = dtype_of(loss);
  last.naming = naming_of(targets);
  void* const correction = workspace.take<double>(1);
  if (hopeful) last.correction = correction;
  check_launch(cuda::finish(last, task, stream));

  if (hopeful && has_elements) {
    task.partials = nullptr;
    task.scaling.upstream = correction;
    task.scaling.filled = true;
    check_launch(cuda::run(task, stream));
  }
  return {loss, applied};
}

// Whether a tensor is one number repeated, as the gradient of a sum is.
bool is_expanded_number(const Tensor& tensor) {
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) > 1 && tensor.stride(d) != 0) return false;
  }
  return true;
}

void backward(Family family, const Tensor& grad_loss, const Tensor& logits, const Tensor& targets,
              const std::optional<Tensor>& alpha, const Tensor& scale, const Numbers& numbers, bool filled,
              const Tensor& grad_logits) {
  const OnDeviceOf device(logits);
  const Problem problem = describe(family, logits, targets, alpha, numbers);
  const bool unreduced = numbers.reduction == Reduction::kNone;
  require(grad_logits.dim() == logits.dim() && grad_logits.numel() == logits.numel() &&
              grad_logits.scalar_type() == logits.scalar_type(),
          "grad_logits must be like the logits");
  require(grad_loss.scalar_type() == problem.computing() &&
              (unreduced ? grad_loss.dim() == (family == Family::kSigmoid ? logits.dim() : targets.dim())
                         : grad_loss.numel() == 1),
          "grad_loss must be like the loss");
  for (const Tensor* other : {&targets, &grad_loss, &scale, &grad_logits})
    require_same_device(logits, *other, "all tensors must be on the logits' device");
  if (logits.numel() == 0) return;
  const bool each = unreduced && !is_expanded_number(grad_loss);
  OperandTensors operands;
  operands.tensor[kLogits] = &logits;
  operands.tensor[kTargets] = &targets;
  operands.tensor[kGradient] = &grad_logits;
  operands.tensor[kUpstream] = each ? &grad_loss : nullptr;
  cuda::Task task = make_task(problem, logits, operands, alpha, numbers);
  plan(task, logits);
  if (!unreduced) task.scaling.device_scale = static_cast<const double*>(scale.data_ptr());
  if (!each) task.scaling.upstream = grad_loss.data_ptr();
  task.scaling.filled = filled;
  Reach reach;
  for (const Tensor* input : {&logits, &targets, &grad_loss, &scale}) reach.read(*input);
  if (alpha) reach.read(*alpha);
  reach.write(grad_logits, !filled);
  check_launch(cuda::run(task, device.stream()));
}

void scale(Tensor gradient, Tensor factor) {
  const OnDeviceOf device(gradient);
  require_same_device(gradient, factor, "factor must be on the gradient's device");
  const DType dtype = dtype_of(gradient);
  require(is_floating(dtype) && factor.numel() == 1 &&
              dtype_of(factor) == (dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32),
          "factor must be one number of the computing type");
  Positions positions;
  for (int64_t d = 0; d < gradient.dim(); ++d) {
    Dim dim{gradient.size(d), {}};
    dim.stride[kLogits] = gradient.stride(d);
    positions.append(dim);
  }
  Reach reach;
  reach.read(factor);
  reach.write(gradient, false);
  check_launch(cuda::scale(positions, tensor_of(gradient, 0), factor.data_ptr(), device.stream()));
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
  auto [loss, applied] =
      forward(family, logits, targets, alpha, normalizer, scale, numbers, with_gradient ? &gradient : nullptr);
  return {loss, applied, gradient};
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
  const OnDeviceOf device(margin);
  const ScalarType dtype = probed_dtype(margin);
  Tensor value = empty_contiguous_like(margin, dtype), deriv = empty_contiguous_like(margin, dtype);
  Reach reach;
  reach.read(margin);
  reach.write(value, true);
  reach.write(deriv, true);
  const int64_t n = margin.numel();
  if (dtype == ScalarType::Double) {
    check_launch(cuda::launch_probe(gamma, static_cast<const double*>(margin.data_ptr()),
                                    static_cast<double*>(value.data_ptr()), static_cast<double*>(deriv.data_ptr()), n,
                                    device.stream()));
  } else {
    check_launch(cuda::launch_probe(gamma, static_cast<const float*>(margin.data_ptr()),
                                    static_cast<float*>(value.data_ptr()), static_cast<float*>(deriv.data_ptr()), n,
                                    device.stream()));
  }
  return {value, deriv};
}

}  // namespace

#if defined(FOCAL_SIMT)
#define FOCAL_DISPATCH_KEY CPU
#else
#define FOCAL_DISPATCH_KEY CUDA
#endif

STABLE_TORCH_LIBRARY_IMPL(focal_cuda, FOCAL_DISPATCH_KEY, library) {
  library.impl("margin_probe", TORCH_BOX(&probe));
  library.impl("scale_", TORCH_BOX(&scale));
  library.impl("sigmoid_focal_loss", TORCH_BOX(&focal_loss<Family::kSigmoid>));
  library.impl("softmax_focal_loss", TORCH_BOX(&focal_loss<Family::kSoftmax>));
  library.impl("sigmoid_focal_loss_inplace", TORCH_BOX(&focal_loss_inplace<Family::kSigmoid>));
  library.impl("softmax_focal_loss_inplace", TORCH_BOX(&focal_loss_inplace<Family::kSoftmax>));
  library.impl("sigmoid_focal_loss_backward", TORCH_BOX(&focal_loss_backward<Family::kSigmoid>));
  library.impl("softmax_focal_loss_backward", TORCH_BOX(&focal_loss_backward<Family::kSoftmax>));
}

}  // namespace focal::glue
