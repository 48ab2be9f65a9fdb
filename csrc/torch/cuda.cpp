// The operators on CUDA devices: tensors to launches on the current stream of their device. No arithmetic of the loss,
// no synchronisation, no read of a device's memory: everything can be captured into a CUDA graph.
// Order of a forward: counts of the labels where the gradient needs them, the scale, the engine, the sum. Labels are
// checked on the way, and a bad one stops the last of these kernels (scan.cu).
#include <algorithm>
#include <numeric>

#include "cuda/probe.cuh"
#include "cuda/task.h"
#include "torch/device.h"
#include "torch/operators.h"

namespace focal::glue {
namespace {

cuda::Tensor tensor_of(const Tensor& tensor, int64_t class_stride) {
  return {tensor.data_ptr(), dtype_of(tensor), class_stride};
}

// The task, planned. Logits without an element have no plan.
cuda::Task make_task(const Problem& problem, const Inputs& inputs, const OperandTensors& operands) {
  cuda::Task task;
  int64_t class_strides[kOperands];
  task.positions = positions_of(problem, inputs.logits, operands, class_strides);
  for (int o = 0; o < kOperands; ++o) {
    if (operands.tensor[o]) task.tensor[o] = tensor_of(*operands.tensor[o], class_strides[o]);
  }
  task.softmax = problem.softmax();
  set_numbers(task, problem, inputs);
  if (inputs.gamma_is_scalar()) task.device_gamma = inputs.gamma->data_ptr();
  if (inputs.logits.numel() > 0 && !cuda::plan(task))
    throw std::invalid_argument(
        "focal_cuda operator: expected logits and targets whose memory is walked in at most 12 nested strides, got "
        "more; call .contiguous() on them.");
  return task;
}

cuda::ScanTask scan_task(const Problem& problem, const Tensor& targets) {
  cuda::ScanTask task;
  task.positions = counted_positions(problem, targets);
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

struct Cuda {
  static std::tuple<Tensor, Tensor> forward(const Inputs& inputs, const std::optional<Tensor>& normalizer, double scale,
                                            const Tensor* gradient);
  static void backward(const Inputs& inputs, const Tensor& grad_loss, const Tensor& scale, bool filled,
                       const Tensor& grad_logits, const Tensor* kept);
};

// loss and, where a gradient tensor is given, the gradient for an upstream of 1. gradient may be the logits themselves.
std::tuple<Tensor, Tensor> Cuda::forward(const Inputs& inputs, const std::optional<Tensor>& normalizer, double scale,
                                         const Tensor* gradient) {
  const Tensor &logits = inputs.logits, &targets = inputs.targets;
  const OnDeviceOf device(logits);
  const cudaStream_t stream = device.stream();
  const Problem problem = describe(inputs);
  inputs.for_tensors([&](const Tensor& tensor) { require_same_device(logits, tensor); });
  if (normalizer) {
    require(normalizer->numel() == 1, "normalizer must be one number");
    require_same_device(logits, *normalizer);
  }
  const Reduction reduction = inputs.numbers.reduction;
  const bool unreduced = reduction == Reduction::kNone, mean = reduction == Reduction::kMean;
  require(!(unreduced && gradient), "an unreduced loss has no gradient before its upstream is known");
  const bool inplace = gradient && gradient->data_ptr() == logits.data_ptr();
  const bool has_elements = logits.numel() > 0;
  const double per_position = static_cast<double>(problem.elements_per_count());
  const double everything = static_cast<double>(counted_positions(problem, targets).count) * per_position;
  // A mean's loss alone needs its count last. Its gradient needs it first: labels weigh little and are counted. Dense
  // targets weigh as much as the logits, so all are taken to count, and where some do not the gradient is made again.
  const bool hopeful = mean && gradient && problem.dense && !problem.softmax() && !inplace;
  const bool counts_first = has_elements && (reduction == Reduction::kPositives || (mean && gradient && !hopeful));
  const bool settles = counts_first || normalizer;

  Tensor loss = empty_loss(problem, inputs);
  Tensor applied = empty_scalar(ScalarType::Double, logits);
  OperandTensors operands(inputs);
  operands.tensor[kGradient] = gradient;
  operands.tensor[kLoss] = unreduced ? &loss : nullptr;
  cuda::Task task = make_task(problem, inputs, operands);
  cuda::ScanTask labels;
  if (counts_first) labels = scan_task(problem, targets);
  Workspace workspace(labels.blocks * sizeof(cuda::Counts) + task.blocks * sizeof(cuda::Partial) + 2 * sizeof(double),
                      logits);
  labels.counts = workspace.take<cuda::Counts>(labels.blocks);
  task.partials = workspace.take<cuda::Partial>(task.blocks);

  Reach reach;
  inputs.for_tensors([&](const Tensor& tensor) { reach.read(tensor); });
  if (normalizer) reach.read(*normalizer);
  for (const Tensor* output :
       {&static_cast<const Tensor&>(loss), &static_cast<const Tensor&>(applied), &workspace.memory()})
    reach.write(*output, true);
  if (gradient) reach.write(*gradient, !inplace);

  double* const applied_scale = static_cast<double*>(applied.data_ptr());
  if (settles) {
    cuda::ScaleRule rule;
    rule.reduction = reduction;
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
  last.count_of = unreduced ? everything : -1;
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

void Cuda::backward(const Inputs& inputs, const Tensor& grad_loss, const Tensor& scale, bool filled,
                    const Tensor& grad_logits, const Tensor* kept) {
  const Tensor& logits = inputs.logits;
  const OnDeviceOf device(logits);
  const Problem problem = describe(inputs);
  const bool unreduced = inputs.numbers.reduction == Reduction::kNone;
  require_grad_loss(problem, inputs, grad_loss);
  inputs.for_tensors([&](const Tensor& tensor) { require_same_device(logits, tensor); });
  for (const Tensor* other : {&grad_loss, &scale, &grad_logits}) require_same_device(logits, *other);
  if (logits.numel() == 0) return;
  const bool each = unreduced && (kept || !is_expanded_number(grad_loss));
  OperandTensors operands(inputs);
  operands.tensor[kGradient] = &grad_logits;
  operands.tensor[kUpstream] = each ? &grad_loss : nullptr;
  cuda::Task task = make_task(problem, inputs, operands);
  if (!unreduced) task.scaling.device_scale = static_cast<const double*>(scale.data_ptr());
  if (kept) task.kept = static_cast<const Kept*>(kept->data_ptr());
  if (!each) task.scaling.upstream = grad_loss.data_ptr();
  if (kept) task.scaling.upstream = scale.data_ptr();
  task.scaling.filled = filled;
  Reach reach;
  inputs.for_tensors([&](const Tensor& tensor) { reach.read(tensor); });
  for (const Tensor* input : {&grad_loss, &scale}) reach.read(*input);
  if (kept) reach.read(*kept);
  reach.write(grad_logits, !filled && grad_logits.data_ptr() != grad_loss.data_ptr());
  check_launch(cuda::run(task, device.stream()));
}

void scale(Tensor gradient, Tensor factor) {
  const OnDeviceOf device(gradient);
  require_same_device(gradient, factor);
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

STABLE_TORCH_LIBRARY_IMPL(focal_cuda, FOCAL_DISPATCH_KEY, library) {
  library.impl("margin_probe", TORCH_BOX(&probe));
  library.impl("scale_", TORCH_BOX(&scale));
  register_losses<Cuda>(library);
}

}  // namespace focal::glue
