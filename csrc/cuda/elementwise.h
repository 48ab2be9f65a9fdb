// Sigmoid engine: every logit is an element of its own. Three kernels walk memory in vectors, one walks any strides:
//   rows     [N, C], classes contiguous, class index targets: a thread keeps its classes and goes from row to row
//   planes   strided classes, class index targets: a thread keeps its positions and goes from class to class
//   dense    targets shaped like the logits, all in the same flat memory
//   strided  anything else, float64, and every loss and option but the plain focal loss: one element at a time
// Almost every element is a negative. A vector is evaluated as negatives; ignored elements are taken out before and
// positives patched in afterwards, in branches that few vectors enter.
//   traffic        logits read once, gradient written once, labels once (from the caches, where classes share them)
//   mapping        16-byte vectors, the next one on its way while a thread works on one
//   determinism    a block's elements and the order of its sum follow from the shape alone
//   participation  every thread of a block reaches leave_partial, with or without elements
// Must not know: which loss Term is, torch.
#pragma once

#include "cuda/arguments.h"
#include "cuda/elements.h"
#include "cuda/labels.h"
#include "cuda/places.h"
#include "cuda/reduce.h"
#include "cuda/term.h"

namespace focal::cuda {

// Rows in groups that are whole vectors, `group_vectors` of them; a step of a block is `step_groups` groups, or, where
// one group has more vectors than a block has threads, one of the group's `column_blocks` parts.
template <class Real>
struct RowsOfElements : Elements<Real> {
  int64_t rows;
  int64_t pitch[kOperands];  // from row to row
  int32_t step[kOperands];   // from a thread's vector to its next, in bytes
  int32_t label_bytes;
  int32_t group_rows, group_vectors, step_groups, column_blocks;
  int32_t steps;
};

template <class Term, Mode mode, class Storage>
__global__ void __launch_bounds__(kElementThreads, kElementBlocks<Storage>)
    elementwise_rows(const RowsOfElements<typename Term::Math::Real> a) {
  using Real = typename Term::Math::Real;
  constexpr int kCount = kVectorOf<Storage>;
  Real scale;
  if (!begin(a.scaling, scale)) return;
  Findings<Real> found;
  VectorOfElements<Term, mode, Storage> vector(a, scale, found);

  const int thread = static_cast<int>(threadIdx.x);
  const int part = static_cast<int>(blockIdx.x) % a.column_blocks;
  const int in_step = thread / a.group_vectors;  // 0 where there are parts
  const int column = a.column_blocks > 1 ? part * static_cast<int>(blockDim.x) + thread : thread % a.group_vectors;
  const bool active = (a.column_blocks > 1 || in_step < a.step_groups) && column < a.group_vectors;
  const int first = column * kCount;
  const int row_in_group = first / a.classes;
  const int c = first - row_in_group * a.classes;
  const int more_rows = (c + kCount - 1) / a.classes;
  const int64_t step_rows = static_cast<int64_t>(a.step_groups) * a.group_rows;
  const int64_t row = static_cast<int64_t>(blockIdx.x / a.column_blocks) * a.steps * step_rows +
                      static_cast<int64_t>(a.column_blocks > 1 ? 0 : in_step) * a.group_rows + row_in_group;

  // Steps with a whole vector of this thread; then perhaps one with what is left of it in the last rows.
  const int64_t left = a.rows - row;
  int whole = left > more_rows ? static_cast<int>(min((left - more_rows - 1) / step_rows + 1, int64_t(a.steps))) : 0;
  if (!active || a.each) whole = 0;

  const Place<Storage> first_place{keep(static_cast<const Storage*>(a.logits) + row * a.pitch[kLogits] + c),
                                   keep(static_cast<Storage*>(a.gradient) + row * a.pitch[kGradient] + c),
                                   c,
                                   1,
                                   1,
                                   kCount};
  const char* const first_label = keep(static_cast<const char*>(a.targets) + row * a.pitch[kTargets] * a.label_bytes);
  const auto place_at = [&](int step) {
    Place<Storage> place = first_place;
    place.logits = moved(place.logits, step, a.step[kLogits]);
    place.gradient = moved(place.gradient, step, a.step[kGradient]);
    return place;
  };
  const auto label_at = [&](int step) {
    return load_label(moved(first_label, step, a.step[kTargets]), a.target_dtype);
  };
  // The labels of a vector's rows, the first of them given: what they make of its elements.
  const auto look = [&](int64_t label, int step, int count, unsigned& positives, unsigned& ignored) {
    for (int more = 0;; ++more) {
      const int start = more * a.classes - c;  // where the row's class 0 would be
      const int stop = start + a.classes;
      const int64_t at = (row + step * step_rows + more) * a.pitch[kTargets];
      if (more > 0) label = load_label(a.targets, a.target_dtype, at);
      mark(a, at, label, start > 0 ? start : 0, stop < kCount ? stop : kCount, start > 0 ? 0 : c, positives, ignored,
           found);
      if (stop >= count) return;
    }
  };

  // Where a vector goes on in the next row, none is.
  const int64_t ordinary = more_rows > 0 ? kAllValid : a.ordinary;
  typename VectorOfElements<Term, mode, Storage>::Raw next;
  if (whole > 0) next = vector.read(first_place);
  for (int step = 0; step < whole; ++step) {
    const auto raw = next;
    const int64_t label = label_at(step);
    next = vector.read(place_at(step + 1 < whole ? step + 1 : step));  // the last one twice, from the cache
    if (label == ordinary) {
      vector.evaluate(raw, [&] { return place_at(step); });
    } else {
      unsigned positives = 0, ignored = 0;
      look(label, step, kCount, positives, ignored);
      vector.evaluate(raw, place_at(step), positives, positives | ignored);
    }
  }
  // One by one: the rest, or, where each element is of its own, all.
  for (int step = whole; active && step < a.steps; ++step) {
    const int64_t r = row + step * step_rows;
    if (r >= a.rows) break;
    Place<Storage> place = place_at(step);
    place.count = a.rows - r > more_rows ? kCount : static_cast<int>((a.rows - r) * a.classes - c);
    unsigned positives = 0, ignored = 0;
    look(label_at(step), step, place.count, positives, ignored);
    vector.evaluate_each(place, r * a.pitch[kLoss] + c, positives, ignored);
  }
  leave_partial(found, Term::Math::kUnit, a.partials);
}

// Positions in runs of `run` neighbours, cut into tiles of one vector for each thread, times parts of the classes.
template <class Real>
struct PlanesOfElements : Elements<Real> {
  Outer outer;
  int64_t run;
  int64_t class_stride[kOperands];
  int64_t target_stride;  // from position to position
  int32_t tiles, parts, part_classes;
  bool aligned;
};

template <class Term, Mode mode, class Storage>
__global__ void __launch_bounds__(kElementThreads, kElementBlocks<Storage>)
    elementwise_planes(const PlanesOfElements<typename Term::Math::Real> a) {
  using Real = typename Term::Math::Real;
  constexpr int kCount = kVectorOf<Storage>;
  Real scale;
  if (!begin(a.scaling, scale)) return;
  Findings<Real> found;
  VectorOfElements<Term, mode, Storage> vector(a, scale, found);

  const unsigned tile = blockIdx.x % a.tiles, rest = blockIdx.x / a.tiles;
  const unsigned part = rest % a.parts;
  int64_t offset[kOperands];
  a.outer.locate(rest / a.parts, offset);
  const Lane lane(a.aligned, kCount, threadIdx.x, blockDim.x, tile, a.run);
  if (lane.count > 0) {
    const int64_t first_target = offset[kTargets] + lane.first * a.target_stride;
    int64_t label[kCount];
    load_labels(a.targets, a.target_dtype, first_target, a.target_stride * lane.spread, lane.count, false, label);
    int32_t codes[kCount];
    bool ordinary = true;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      codes[i] = i < lane.count ? code_of(a.index, label[i]) : kBackground;
      if (codes[i] == kInvalid) found.invalid = first_target + i * lane.spread * a.target_stride;
      ordinary &= codes[i] == kBackground;
    }
    const int32_t begin_class = static_cast<int32_t>(part) * a.part_classes;
    const int32_t end_class = begin_class + a.part_classes < a.classes ? begin_class + a.part_classes : a.classes;
    Place<Storage> place{
        static_cast<const Storage*>(a.logits) + offset[kLogits] + lane.first + begin_class * a.class_stride[kLogits],
        static_cast<Storage*>(a.gradient) + offset[kGradient] + lane.first + begin_class * a.class_stride[kGradient],
        begin_class,
        0,
        lane.spread,
        lane.count};
    const bool whole = lane.count == kCount && !a.each;
    auto next = vector.read(place);
    for (int32_t c = begin_class; c < end_class; ++c) {
      const auto raw = next;
      const Place<Storage> here = place;
      place.logits += a.class_stride[kLogits];
      place.gradient += a.class_stride[kGradient];
      place.first_class = c + 1;
      if (c + 1 < end_class) next = vector.read(place);
      unsigned positives = 0, ignored = 0;
      if (!ordinary) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          positives |= static_cast<unsigned>(codes[i] == c) << i;
          ignored |= static_cast<unsigned>(codes[i] < kBackground) << i;
        }
        found.ignored += __popc(ignored);
      }
      if (!whole) {
        vector.evaluate_each(here, offset[kLoss] + lane.first + c * a.class_stride[kLoss], positives, ignored);
      } else if (positives | ignored) {
        vector.evaluate(raw, here, positives, positives | ignored);
      } else {
        vector.evaluate(raw, [&] { return here; });
      }
    }
  }
  leave_partial(found, Term::Math::kUnit, a.partials);
}

// `count` elements; a block takes `steps` times one vector for each thread.
template <class Real>
struct DenseElements : Elements<Real> {
  int64_t count;
  int32_t steps;
  bool targets_aligned;
};

template <class Term, Mode mode, class Storage>
__global__ void __launch_bounds__(kElementThreads, kElementBlocks<Storage>)
    elementwise_dense(const DenseElements<typename Term::Math::Real> a) {
  using Real = typename Term::Math::Real;
  constexpr int kCount = kVectorOf<Storage>;
  Real scale;
  if (!begin(a.scaling, scale)) return;
  Findings<Real> found;
  VectorOfElements<Term, mode, Storage> vector(a, scale, found);

  int64_t at = (static_cast<int64_t>(blockIdx.x) * a.steps * kElementThreads + threadIdx.x) * kCount;
  for (int step = 0; step < a.steps; ++step, at += kElementThreads * kCount) {
    if (at >= a.count) break;
    const int count = a.count - at < kCount ? static_cast<int>(a.count - at) : kCount;
    const Place<Storage> place{
        static_cast<const Storage*>(a.logits) + at, static_cast<Storage*>(a.gradient) + at, 0, 0, 1, count};
    const auto raw = vector.read(place);
    Real target[kCount];
    if (count == kCount) {
      load_targets(a.targets, a.target_dtype, at, a.targets_aligned, target);
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i)
        target[i] = i < count ? load_target<Real>(a.targets, a.target_dtype, at + i) : Real(0);
    }
    vector.evaluate(raw, place, at, target);
  }
  leave_partial(found, Term::Math::kUnit, a.partials);
}

// Every dimension by its strides, the class among them; every loss and every option.
template <class Real>
struct StridedElements : Elements<Real> {
  const Real* scores;  // of positives, or null
  Real lowest_target;  // a negative's: a positive's is 1 less that
  Outer all;           // elements, the class among their dimensions
  int32_t class_dim;   // which of them, or -1
  int64_t count;
  int32_t steps;
  bool dense;
};

template <class Term, Mode mode, class Storage>
__global__ void __launch_bounds__(kElementThreads, kElementBlocks<Storage>)
    elementwise_strided(const StridedElements<typename Term::Math::Real> a) {
  using Math = typename Term::Math;
  using Real = typename Math::Real;
  Real scale;
  if (!begin(a.scaling, scale)) return;
  Findings<Real> found;

  int64_t index = static_cast<int64_t>(blockIdx.x) * a.steps * kElementThreads + threadIdx.x;
  for (int step = 0; step < a.steps && index < a.count; ++step, index += kElementThreads) {
    int64_t offset[kOperands];
    const int32_t c = static_cast<int32_t>(a.all.locate(index, offset, a.class_dim));
    const Real positive_weight = a.positive_weights ? load(a.positive_weights + c) : a.positive_weight;
    const Real negative_weight = a.negative_weights ? load(a.negative_weights + c) : a.negative_weight;
    const Real sample = a.sample_weights ? load(a.sample_weights + offset[kSampleWeight]) : Real(1);
    const Real gamma = a.gammas ? load(a.gammas + c) : a.gamma();
    Real target = 0;
    bool counted = true, valid = true;
    if (a.dense) {
      target = load_target<Real>(a.targets, a.target_dtype, offset[kTargets]);
      counted = a.dense_rule.counted(target);
      valid = a.dense_rule.valid(target);
    } else {
      const int32_t code = code_of(a.index, load_label(a.targets, a.target_dtype, offset[kTargets]));
      counted = code != kIgnored;
      valid = code != kInvalid;
      if (code == c) target = a.scores ? load(a.scores + offset[kScores]) : Real(1);
    }
    if (!valid) found.invalid = offset[kTargets];
    Real value = 0, slope = 0;
    if (!counted || !valid) {
      ++found.ignored;
    } else if (sample != Real(0)) {
      target = a.lowest_target + (Real(1) - 2 * a.lowest_target) * target;
      const Real x = to_real<Real>(load(static_cast<const Storage*>(a.logits) + offset[kLogits]));
      const Real share = Share<Real>(a.rule.loss)(target);
      const Real weight = sample * (share * positive_weight + (Real(1) - share) * negative_weight);
      const ValueDeriv<Real> result = Term::of_target(a.rule, gamma, x, target);
      value = weight * result.value;
      if (mode == Mode::kGradient) {
        slope = weight * scale * a.upstream(offset[kUpstream]) * result.deriv;
      }
    }
    found.sum += value;
    if (a.loss) store(a.loss + offset[kLoss], value * Math::kUnit);
    if (mode == Mode::kGradient)
      store(static_cast<Storage*>(a.gradient) + offset[kGradient], from_real<Storage>(slope));
  }
  leave_partial(found, Math::kUnit, a.partials);
}

}  // namespace focal::cuda
