// One call of an engine on the CPU as plain data: pointers, strides, weights, and how the work is cut.
// The cut depends on shapes alone, so results do not depend on the number of threads.
// Must not know: torch, the instruction set.
#pragma once

#include "hardest.h"
#include "layout.h"
#include "math/relatives.h"
#include "targets.h"

namespace focal::cpu {

// Work of one chunk: long against a dispatch, short against a thread's share.
constexpr int64_t kChunkElements = 1 << 16;

enum class Engine : int { kElementwise, kColumns, kRows, kSoftColumns, kSoftRows };

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t class_stride = 0;
  bool stream = false;  // contiguous float32 runs are written past the caches: for outputs that would not stay there

  explicit operator bool() const { return data != nullptr; }
};

// What a pass over dense targets met on its way.
struct DenseFindings {
  int64_t ignored = 0;
  bool invalid = false;  // a target that the rule does not take
};

// Which outputs exist is the mode: a loss tensor and/or partial sums, and/or a gradient.
struct Task {
  Engine engine = Engine::kElementwise;
  Positions positions;
  int64_t classes = 1;
  Tensor tensor[kOperands];  // of the upstream and the loss: those of an unreduced one

  bool dense = false;  // targets have the logits' shape
  IndexRule index{};
  DenseRule dense_rule{};

  LossRule rule;
  double smoothing = 0;  // of labels: a positive's target is 1 - a negative's, smoothing / 2 (softmax: / classes)
  // Of the classes, in the computing type, or null: weights as a positive and as a negative, gammas.
  const void *positive_weights = nullptr, *negative_weights = nullptr, *gammas = nullptr;
  double positive_weight = 1;  // without weights of classes: sigmoid positives; softmax, every position
  double negative_weight = 1;  // without weights of classes: sigmoid negatives
  double gradient_scale = 1;   // upstream scalar x reduction
  const Kept* kept = nullptr;  // then kUpstream has the unreduced losses, and the upstream is 1 for those and else 0

  // A tile is what one pass of arithmetic works on and fits the L1 cache; a chunk is what a thread takes and what one
  // partial sum covers.
  int64_t tile_positions = 1, tile_classes = 1;
  int64_t tiles_per_chunk = 1, tiles = 0, chunks = 0;
  double* partial_sums = nullptr;     // [chunks], or null
  DenseFindings* findings = nullptr;  // [chunks], dense targets only

  bool soft() const { return dense || smoothing > 0; }  // softmax: targets that are no class
  int64_t class_blocks() const { return (classes + tile_classes - 1) / tile_classes; }
};

// Fills in the cut, and the engine where the layout decides it.
void plan_elementwise(Task& task);
void plan_softmax(Task& task);

// What targets amount to, before any loss: found for the whole tensor.
struct TargetCounts {
  int64_t counted = 0;
  int64_t positives = 0;
  int64_t first_invalid = -1;  // position in the order of the given dimensions, or -1
};

struct ScanTask {
  Positions positions;  // targets in their own, logical order; only the kTargets strides are used
  Tensor targets;
  bool dense = false;
  IndexRule index{};
  DenseRule dense_rule{};
  int64_t chunk_positions = 1, chunks = 0;
  TargetCounts* counts = nullptr;  // [chunks]
};

void plan_scan(ScanTask& task);
TargetCounts combine(const ScanTask& task);

}  // namespace focal::cpu
