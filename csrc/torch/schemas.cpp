// The operators' schemas: what Python and both devices agree on. Private; the public functions check their arguments.
//   reduction   0 none, 1 mean over counted positions, 2 sum, 3 sum / max(positives, 1)
//   scale       in: what a sum is multiplied by (1 / a number given as normalizer); out: what the sum was multiplied by, or,
//               of an unreduced loss, how many of its elements are counted
//   weights     sigmoid [2, C]: of a class's positives and negatives; softmax [C]; instead of the two numbers
//   gamma       a number on the device or [C], instead of the number fixed_gamma; of kNormalized: gamma and the level
//   smoothing   of labels: a positive's target is 1 - a negative's, smoothing / 2 (softmax: / C)
//   loss        math/relatives.h; first to fourth are its parameters (of kShaped the second is the smoothing, from which
//               the offset follows)
//   background_index   a label that is no positive; the smallest int64: C (sigmoid), none (softmax)
//   filled      grad_logits already holds the gradient for an upstream gradient of 1
//   kept        of the operator hardest: then grad_loss is the unreduced losses, scale their mean's upstream gradient (of
//               the losses' dtype), and the gradient is that of the mean; grad_logits may be the memory of the losses
// with_gradient: the gradient for an upstream of 1 is made in the same pass; otherwise grad_logits comes back empty.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(focal_cuda, library) {
#define FOCAL_TARGETS "Tensor targets, Tensor? weights, Tensor? gamma, Tensor? sample_weight, Tensor? scores, "
#define FOCAL_NUMBERS                                                                            \
  "float positive_weight, float negative_weight, float fixed_gamma, float smoothing, int loss, " \
  "float first, float second, float third, float fourth, int class_dim, int ignore_index, int "  \
  "background_index, int reduction"
#define FOCAL_FORWARD FOCAL_TARGETS "Tensor? normalizer, float scale, " FOCAL_NUMBERS
#define FOCAL_SCHEMAS(name)                                                                                   \
  library.def(name "(Tensor logits, " FOCAL_FORWARD                                                           \
                   ", bool with_gradient) -> (Tensor loss, Tensor scale, Tensor grad_logits)");               \
  library.def(name "_inplace(Tensor(a!) logits, " FOCAL_FORWARD ") -> (Tensor loss, Tensor scale)");          \
  library.def(name "_backward(Tensor grad_loss, Tensor logits, " FOCAL_TARGETS "Tensor scale, " FOCAL_NUMBERS \
                   ", bool filled, Tensor(b!) grad_logits, Tensor? kept=None) -> ()");
  // The loss of margins and its derivative, for tests of the same numbers on every device.
  library.def("margin_probe(Tensor margin, float gamma) -> (Tensor value, Tensor deriv)");
  // A gradient that lies over its logits, times the upstream gradient; nothing happens where that is 1. CUDA alone.
  library.def("scale_(Tensor(a!) gradient, Tensor factor) -> ()");
  // The mean of the k largest losses (>= 0 or NaN): k = int(counted * keep_ratio), at least 1 (0: none), or as many as are
  // above the threshold (negative: none), whichever is more. Of equal ones the first are taken. kept: which they are.
  library.def(
      "hardest(Tensor losses, Tensor counted, float keep_ratio, float threshold) -> (Tensor mean, Tensor kept)");
  // grad_losses may be the memory of the losses.
  library.def("hardest_backward(Tensor upstream, Tensor losses, Tensor kept, Tensor(a!) grad_losses) -> ()");
  FOCAL_SCHEMAS("sigmoid_focal_loss")
  FOCAL_SCHEMAS("softmax_focal_loss")
#undef FOCAL_TARGETS
#undef FOCAL_NUMBERS
#undef FOCAL_FORWARD
#undef FOCAL_SCHEMAS
}
