// Softmax engine for long rows: one position at a time, vectorised across its classes in blocks.
//   block     up to tile_classes logits in L1. A row that fits one block keeps its exponentials; a longer one is read
//             three times (maximum, sum, gradient), the later two from the L2 cache
//   traffic   logits read once from memory while a row fits the cache, gradient written once
//   order     blocks in order with double sums, one double partial sum per chunk: the same bits for any number of threads
// Compiled once per instruction set (FOCAL_CPU_ISA). Must not know: which loss the Term is, torch.
#pragma once

#include "cpu/runs.h"
#include "cpu/term.h"

namespace focal::cpu::FOCAL_CPU_ISA {

// A chunk whose tiles are one position each: where each lies, its loss from row(), and what becomes of it.
template <class Real, class Row>
void for_rows(const Task& task, int64_t index, Run& run, const Row& row) {
  const int64_t first = index * task.tiles_per_chunk;
  const int64_t last = first + task.tiles_per_chunk < task.tiles ? first + task.tiles_per_chunk : task.tiles;
  Cursor cursor(task.positions, first);
  double total = 0;
  for (int64_t position = first; position < last; ++position) {
    run = cursor.next(1);
    const Real value = row();
    total += static_cast<double>(value);
    if (task.tensor[kLoss]) store_run(task.tensor[kLoss], run.offset[kLoss], 1, &value, Uniform<Real>{1}, 1);
  }
  if (task.partial_sums) task.partial_sums[index] = total;
}

template <class Term>
class Rows {
  using Math = typename Term::Math;
  using Real = typename Term::Real;

 public:
  explicit Rows(const Task& task)
      : task_(task), block_(static_cast<Real*>(scratch(sizeof(Real) * static_cast<size_t>(task.tile_classes)))) {}

  void chunk(int64_t index) {
    for_rows<Real>(task_, index, run_, [&] { return row(); });
  }

 private:
  Real row() {
    int32_t label;
    load_codes(&label, task_.tensor[kTargets], task_.index, run_.offset[kTargets], 1, 1);
    Real sample = 1;
    if (task_.tensor[kSampleWeight]) load_run(&sample, task_.tensor[kSampleWeight], run_.offset[kSampleWeight], 1, 1);
    if (label == kIgnored || sample == Real(0)) {
      if (task_.tensor[kGradient]) clear();
      return 0;
    }
    const Tensor& logits = task_.tensor[kLogits];
    Real own;
    load_run(&own, logits, run_.offset[kLogits] + label * logits.class_stride, 1, 1);

    const Real lowest = -std::numeric_limits<Real>::infinity();
    Real largest = lowest;
    for (int64_t begin = 0; begin < task_.classes; begin += task_.tile_classes) {
      const Real candidate = largest_of(load_block(begin, label));
      largest = candidate > largest ? candidate : largest;
    }
    if (largest == lowest) largest = 0;  // every other class masked by -inf

    const bool kept = task_.classes <= task_.tile_classes;
    double total = 0;
    for (int64_t begin = 0; begin < task_.classes; begin += task_.tile_classes) {
      total += exponentials(kept ? static_cast<int>(task_.classes) : load_block(begin, label), largest);
    }
    const Real others = static_cast<Real>(total);
    const Real margin = (own - largest) - Math::log(others);
    const Real *weights = static_cast<const Real*>(task_.positive_weights),
               *gammas = static_cast<const Real*>(task_.gammas);
    const ValueDeriv<Real> result =
        Term::hard(task_, gammas ? gammas + label : nullptr, [&](const auto& loss) { return at(loss, 0)(margin); });
    const Real weight = sample * (weights ? weights[label] : static_cast<Real>(task_.positive_weight));
    if (task_.tensor[kGradient]) gradient(label, weight * result.deriv, others, largest, kept);
    return weight * result.value;
  }

  int length(int64_t begin) const {
    return static_cast<int>(task_.classes - begin < task_.tile_classes ? task_.classes - begin : task_.tile_classes);
  }

  // The other classes' logits of a block; the target's place is taken by -inf. Returns the length.
  int load_block(int64_t begin, int32_t label) {
    const Tensor& logits = task_.tensor[kLogits];
    const int n = length(begin);
    load_run(block_, logits, run_.offset[kLogits] + begin * logits.class_stride, logits.class_stride, n);
    if (label >= begin && label < begin + n) block_[label - begin] = -std::numeric_limits<Real>::infinity();
    return n;
  }

  Real largest_of(int n) const {
    const Real* FOCAL_RESTRICT x = block_;
    Real largest = -std::numeric_limits<Real>::infinity();
#pragma omp simd reduction(max : largest)
    for (int i = 0; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
    return largest;
  }

  double exponentials(int n, Real largest) {
    Real* FOCAL_RESTRICT x = block_;
    Real total = 0;
#pragma omp simd reduction(+ : total)
    for (int i = 0; i < n; ++i) {
      const Real e = Math::exp(x[i] - largest);
      x[i] = e;
      total += e;
    }
    return static_cast<double>(total);
  }

  // d loss / d x_t = slope, d loss / d x_j = -slope e_j / others. Entering the target as e_t = -others makes both one product.
  void gradient(int32_t label, Real slope, Real others, Real largest, bool kept) {
    const Tensor& out = task_.tensor[kGradient];
    Real upstream = 1;
    if (task_.tensor[kUpstream]) load_upstream(task_, &upstream, run_.offset[kUpstream], 1, 1);
    const Real inverse = others == Real(0) ? Real(0) : Real(1) / others;
    const Real factor = -(slope * upstream * static_cast<Real>(task_.gradient_scale)) * inverse;
    for (int64_t begin = 0; begin < task_.classes; begin += task_.tile_classes) {
      const int n = length(begin);
      if (!kept) exponentials(load_block(begin, label), largest);
      if (label >= begin && label < begin + n) block_[label - begin] = -others;
      store_run(out, run_.offset[kGradient] + begin * out.class_stride, out.class_stride, block_, Uniform<Real>{factor},
                n);
    }
  }

  void clear() {
    const Tensor& out = task_.tensor[kGradient];
    for (int64_t begin = 0; begin < task_.classes; begin += task_.tile_classes) {
      const int n = length(begin);
      for (int i = 0; i < n; ++i) block_[i] = 0;
      store_run(out, run_.offset[kGradient] + begin * out.class_stride, out.class_stride, block_, Uniform<Real>{1}, n);
    }
  }

  const Task& task_;
  Real* block_;
  Run run_{};
};

}  // namespace focal::cpu::FOCAL_CPU_ISA
