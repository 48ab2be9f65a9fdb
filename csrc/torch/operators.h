// The operators' entries, the same for every device: what the schemas pass, gathered, and the outputs' memory.
// A Device has forward(inputs, normalizer, scale, gradient or null) -> (loss, applied scale)
//          and backward(inputs, grad_loss, scale, filled, grad_logits, kept or null).
// Must not know: what a device does with them.
#pragma once

#include "torch/hardest.h"
#include "torch/problem.h"

namespace focal::glue {

#define FOCAL_TENSORS                                                                        \
  Tensor logits, Tensor targets, std::optional<Tensor> weights, std::optional<Tensor> gamma, \
      std::optional<Tensor> sample_weight, std::optional<Tensor> scores
#define FOCAL_NUMBERS                                                                                      \
  double positive_weight, double negative_weight, double fixed_gamma, double smoothing, int64_t loss_kind, \
      double first, double second, double third, double fourth, int64_t class_dim, int64_t ignore_index,   \
      int64_t background_index, int64_t reduction
#define FOCAL_INPUTS                                                                                             \
  Inputs {                                                                                                       \
    family, logits, targets, weights, gamma, sample_weight, scores, {                                            \
      positive_weight, negative_weight, fixed_gamma, smoothing, Loss(loss_kind), {first, second, third, fourth}, \
          class_dim, ignore_index, background_index, Reduction(reduction)                                        \
    }                                                                                                            \
  }

template <class Device, Family family>
std::tuple<Tensor, Tensor, Tensor> focal_loss(FOCAL_TENSORS, std::optional<Tensor> normalizer, double scale,
                                              FOCAL_NUMBERS, bool with_gradient) {
  const int64_t zero = 0, one = 1;
  Tensor gradient =
      with_gradient ? empty_gradient(logits) : empty_strided(&zero, &one, 1, logits.scalar_type(), logits);
  auto [loss, applied] = Device::forward(FOCAL_INPUTS, normalizer, scale, with_gradient ? &gradient : nullptr);
  return {loss, applied, gradient};
}

template <class Device, Family family>
std::tuple<Tensor, Tensor> focal_loss_inplace(FOCAL_TENSORS, std::optional<Tensor> normalizer, double scale,
                                              FOCAL_NUMBERS) {
  return Device::forward(FOCAL_INPUTS, normalizer, scale, &logits);
}

template <class Device, Family family>
void focal_loss_backward(Tensor grad_loss, FOCAL_TENSORS, Tensor scale, FOCAL_NUMBERS, bool filled, Tensor grad_logits,
                         std::optional<Tensor> kept) {
  const Inputs inputs = FOCAL_INPUTS;
  require(grad_logits.dim() == logits.dim() && grad_logits.numel() == logits.numel() &&
              grad_logits.scalar_type() == logits.scalar_type(),
          "grad_logits must be like the logits");
  if (kept) {
    require(inputs.numbers.reduction == Reduction::kNone && !filled, "kept goes with unreduced losses");
    check_kept(grad_loss, scale, *kept);
  }
  Device::backward(inputs, grad_loss, scale, filled, grad_logits, kept ? &*kept : nullptr);
}

#undef FOCAL_TENSORS
#undef FOCAL_NUMBERS
#undef FOCAL_INPUTS

// Whether an upstream gradient is like the loss.
inline void require_grad_loss(const Problem& problem, const Inputs& inputs, const Tensor& grad_loss) {
  const bool unreduced = inputs.numbers.reduction == Reduction::kNone;
  const int64_t rank = inputs.logits.dim() - (problem.softmax() ? 1 : 0);
  require(
      grad_loss.scalar_type() == problem.computing() && (unreduced ? grad_loss.dim() == rank : grad_loss.numel() == 1),
      "grad_loss must be like the loss");
}

template <class Device, class Library>
void register_losses(Library& library) {
  library.impl("sigmoid_focal_loss", TORCH_BOX((&focal_loss<Device, Family::kSigmoid>)));
  library.impl("softmax_focal_loss", TORCH_BOX((&focal_loss<Device, Family::kSoftmax>)));
  library.impl("sigmoid_focal_loss_inplace", TORCH_BOX((&focal_loss_inplace<Device, Family::kSigmoid>)));
  library.impl("softmax_focal_loss_inplace", TORCH_BOX((&focal_loss_inplace<Device, Family::kSoftmax>)));
  library.impl("sigmoid_focal_loss_backward", TORCH_BOX((&focal_loss_backward<Device, Family::kSigmoid>)));
  library.impl("softmax_focal_loss_backward", TORCH_BOX((&focal_loss_backward<Device, Family::kSoftmax>)));
}

}  // namespace focal::glue
