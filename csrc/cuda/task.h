// One call of an engine on a GPU as plain data: pointers, strides, weights and how the work is cut; and the entries of
// the kernels for the glue. The cut depends on shapes and strides alone, never on the GPU, so results do not either.
// Must not know: torch.
#pragma once

#if defined(FOCAL_SIMT)
#include "simt.h"
#else
#include <cuda_runtime_api.h>
#endif

#include <limits>

#include "hardest.h"
#include "layout.h"
#include "math/relatives.h"
#include "reduction.h"
#include "targets.h"

namespace focal::cuda {

enum class Engine : int { kElementwise, kColumns, kRows, kStrided };

constexpr int64_t kAllValid = std::numeric_limits<int64_t>::min();

// What a block leaves behind: its share of the sum, the dense targets it found ignored, and where a target that is out
// of range lies, in elements from the targets' first.
struct Partial {
  double sum;
  int64_t ignored;
  int64_t invalid;  // or kAllValid
};

struct Counts {
  int64_t counted, positives;
};

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t class_stride = 0;

  explicit operator bool() const { return data != nullptr; }
};

// What a gradient is multiplied by, read where it is known: scale x *device_scale x *upstream.
struct Scaling {
  double scale = 1;
  const double* device_scale = nullptr;
  const void* upstream = nullptr;  // a scalar of the computing type
  bool filled = false;             // the gradient is there already for an upstream of 1: then nothing is to be done
};

struct Task {
  Positions positions;
  int64_t classes = 1;
  Tensor tensor[kOperands];  // of the upstream and the loss: those of an unreduced one

  bool softmax = false;
  bool dense = false;  // targets have the logits' shape
  IndexRule index{};
  DenseRule dense_rule{};

  LossRule rule;
  double smoothing = 0;  // of labels: a positive's target is 1 - a negative's, smoothing / 2 (softmax: / classes)
  // Of the classes, in the computing type, or null: weights as a positive and as a negative, gammas.
  const void *positive_weights = nullptr, *negative_weights = nullptr, *gammas = nullptr;
  const void* device_gamma =
      nullptr;  // takes the place of the rule's, in the computing type; kNormalized: and the level
  double positive_weight = 1;
  double negative_weight = 1;
  const Kept* kept =
      nullptr;  // on the device; then kUpstream has the unreduced losses, and the upstream is 1 / their number
  Scaling scaling;

  bool soft() const { return dense || smoothing > 0; }  // softmax: targets that are no class

  Engine engine = Engine::kStrided;
  int64_t blocks = 0;
  Partial* partials = nullptr;  // [blocks]
};

// Chooses the engine and the number of blocks. False: no engine takes so many nested strides.
bool plan(Task& task);
// With a gradient tensor: the gradient, and the sums of the loss beside it. Without: the loss. Asynchronous.
cudaError_t run(const Task& task, cudaStream_t stream);

// What a reduction multiplies the sum of losses by, from counts of the targets that stay on the device.
struct ScaleRule {
  Reduction reduction = Reduction::kSum;
  double scale = 1;
  double per_position = 1;  // elements that count for each counted position
  const void* normalizer = nullptr;
  DType normalizer_dtype = DType::kFloat32;
};

struct ScanTask {
  Positions positions;  // targets in their own order; only the kTargets strides are used
  Tensor targets;
  bool dense = false;
  IndexRule index{};
  DenseRule dense_rule{};
  int64_t blocks = 0;
  Counts* counts = nullptr;  // [blocks]
};

void plan_scan(ScanTask& task);
cudaError_t scan(const ScanTask& task, cudaStream_t stream);
// applied[0]: what the sum is multiplied by, from `blocks` counts (0 where the rule needs none).
cudaError_t settle_scale(const ScaleRule& rule, const Counts* counts, int64_t blocks, double* applied,
                         cudaStream_t stream);

// How the targets lie, to name the element at an offset; their innermost dimensions alone where there are more.
struct Naming {
  static constexpr int kRank = 8;
  int rank = 0;
  int64_t sizes[kRank], strides[kRank];
  int order[kRank];  // dimensions by stride, largest first
};

// data *= *factor (of the computing type), element by element of `positions` by their kLogits strides; nothing is touched
// where it is 1.
cudaError_t scale(const Positions& positions, const Tensor& data, const void* factor, cudaStream_t stream);

// After run: loss (if not null) = applied[0] x the sum of the partials. A target out of range stops with a printed line.
struct FinishTask {
  const Partial* partials = nullptr;
  int64_t blocks = 0;
  double* applied = nullptr;
  bool settled = false;  // applied[0] is there already; otherwise it becomes
  double scale = 1;      //   this, or
  double mean_of = 0;    //   where > 0, 1 / (this - ignored elements), or
  double count_of = -1;  //   where >= 0, this - ignored elements
  void* loss = nullptr;
  void* correction = nullptr;  // null, or of the loss's type: applied[0] / (1 / mean_of)
  DType loss_dtype = DType::kFloat32;
  Naming naming;
};
cudaError_t finish(const FinishTask& task, const Task& of, cudaStream_t stream);

}  // namespace focal::cuda
