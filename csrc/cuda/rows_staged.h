// Softmax engine for short rows that lie next to each other (images in channels_last, [N, classes]): a block copies a
// chunk of rows into shared memory as it lies, in vectors that know no rows, and its lanes take them from there.
//   mapping        a chunk of rows at a time, the next one on its way meanwhile; 1, 2, 4 ... 32 lanes share a row and
//                  hold kCount of its classes each in registers. The gradient takes the logits' place in shared memory
//   traffic        logits read once, gradient written once, both in 16-byte vectors; labels once
//   banks          single elements: rows of an odd number of words have no conflicts, of twice an odd number two to a
//                  bank. Rows of whole vectors: Staging moves the vectors so that no two lanes meet
//   determinism    a row's sum and a block's rows follow from the shape alone
//   participation  every thread reaches the barriers and leave_partial, with or without rows
// Rows that lie apart or off the boundaries are copied one element at a time.
// Must not know: which loss Term is, torch.
#pragma once

#include "cuda/rows.h"

namespace focal::cuda {

constexpr unsigned kStagedThreads = 128;

// What a lane takes of a row: all of it; every a.lanes-th class; every a.lanes-th vector of 16 bytes.
enum class Take { kRow, kClasses, kVectors };

template <class Real>
struct StagedRows : Softmax<Real> {
  RowRuns at;  // kLoss: an unreduced loss or its upstream
  int32_t run_blocks, chunk_rows, steps;
  int32_t lanes, lanes_log2;
  int32_t swizzle;
  FastDivisor by_classes;
  bool in_vectors;  // chunks are copied in vectors
};

// Of blocks on a multiprocessor, so that enough bytes are on their way.
constexpr int staged_blocks(int count) { return count <= 24 ? 8 : 6; }

// A chunk in shared memory. Vectors lie where `at` says.
template <class Storage, Take take>
struct Staging {
  static constexpr int kVector = kRowVector<Storage>;
  Line* lines;
  int swizzle;

  FOCAL_DEVICE int at(int line) const { return take == Take::kVectors ? line ^ (line >> 3 & swizzle) : line; }
  FOCAL_DEVICE Storage* element(int i) const {
    if (take != Take::kVectors) return reinterpret_cast<Storage*>(lines) + i;
    return reinterpret_cast<Storage*>(lines + at(i / kVector)) + i % kVector;
  }

  // `rows` rows from `from` on. What is less than a vector at the end of the last chunk goes in elements, as does
  // everything that is not aligned.
  template <class Real>
  FOCAL_DEVICE void fill(const StagedRows<Real>& a, const Storage* from, int rows) const {
    int i = static_cast<int>(threadIdx.x);
    const int count = rows * a.classes;
    if (a.in_vectors) {
      for (int line = i; line < count / kVector; line += kStagedThreads)
        start_copy(lines + at(line), reinterpret_cast<const Line*>(from) + line);
      i += count / kVector * kVector;
    }
#pragma unroll 1
    for (; i < count; i += kStagedThreads) {
      const int row = static_cast<int>(a.by_classes.quotient(i));
      *element(i) = load(from + static_cast<int64_t>(row) * a.at.pitch[kLogits] + (i - row * a.classes));
    }
  }

  template <class Real>
  FOCAL_DEVICE void empty(const StagedRows<Real>& a, Storage* to, int rows) const {
    int i = static_cast<int>(threadIdx.x);
    const int count = rows * a.classes;
    if (a.in_vectors) {
      for (int line = i; line < count / kVector; line += kStagedThreads)
        store<Cache::kOnce>(reinterpret_cast<Line*>(to) + line, shared_line(lines + at(line)));
      i += count / kVector * kVector;
    }
#pragma unroll 1
    for (; i < count; i += kStagedThreads) {
      const int row = static_cast<int>(a.by_classes.quotient(i));
      store(to + static_cast<int64_t>(row) * a.at.pitch[kGradient] + (i - row * a.classes), *element(i));
    }
  }
};

// Of a lane's items, elements or vectors of them, those that a kernel counts on; the rest may not exist.
constexpr int staged_least(int count, Take take, int vector) {
  if (take == Take::kVectors) return count / vector - 1;
  return count <= 12                         ? count - 3
         : count == 20 && take == Take::kRow ? 13
         : count == 32                       ? 25 - (take != Take::kRow)
                                             : count - 4 + (take == Take::kRow);
}

// A lane's part of a row in shared memory.
template <class Storage, int kCount, Take take>
struct Part {
  static constexpr int kVector = kRowVector<Storage>;
  static constexpr int kLeast = staged_least(kCount, take, kVector);
  const Staging<Storage, take> staging;
  const int first;  // element or, of vectors, line
  const int step;   // from one to the lane's next
  const int count;  // elements or lines there are

  FOCAL_DEVICE void read(float (&x)[kCount]) const {
    if constexpr (take == Take::kVectors) {
#pragma unroll
      for (int j = 0; j < kCount / kVector; ++j) {
        float some[kVector];
        if (j < kLeast || j < count) {
          widen(bit_cast<Vector<Storage, kVector>>(shared_line(staging.lines + staging.at(first + j * step))), some);
        } else {
#pragma unroll
          for (int i = 0; i < kVector; ++i) some[i] = -std::numeric_limits<float>::infinity();
        }
#pragma unroll
        for (int i = 0; i < kVector; ++i) x[j * kVector + i] = some[i];
      }
    } else {
      const Storage* from = reinterpret_cast<const Storage*>(staging.lines) + first;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        x[i] = -std::numeric_limits<float>::infinity();
        if (i < kLeast || i < count) x[i] = to_real<float>(from[i * step]);
      }
    }
  }

  FOCAL_DEVICE void write(const float (&x)[kCount], float factor) const {
    if constexpr (take == Take::kVectors) {
#pragma unroll
      for (int j = 0; j < kCount / kVector; ++j) {
        float some[kVector];
#pragma unroll
        for (int i = 0; i < kVector; ++i) some[i] = x[j * kVector + i] * factor;
        if (j < kLeast || j < count)
          set_shared_line(staging.lines + staging.at(first + j * step), bit_cast<Line>(narrow<Storage>(some)));
      }
    } else {
      float slope[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) slope[i] = x[i] * factor;
      const Vector<Storage, kCount> raw = narrow<Storage>(slope);
      Storage* to = reinterpret_cast<Storage*>(staging.lines) + first;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (i < kLeast || i < count) to[i * step] = raw.get(i);
      }
    }
  }
};

template <class Term, class Storage, int kCount, Take take>
__global__ void __launch_bounds__(kStagedThreads, staged_blocks(kCount)) rows_staged(const StagedRows<float> a) {
  using Math = typename Term::Math;
  using Real = float;
  constexpr int kVector = kRowVector<Storage>;
  const Real lowest = -std::numeric_limits<Real>::infinity();
  Real scale;
  if (!begin(a.scaling, scale)) return;
  Findings<Real> found;

  const int lanes = take == Take::kRow ? 1 : a.lanes;
  const int lane = take == Take::kRow ? 0 : static_cast<int>(threadIdx.x) & (lanes - 1);
  const int group = take == Take::kRow ? static_cast<int>(threadIdx.x) : static_cast<int>(threadIdx.x) >> a.lanes_log2;
  const int groups = static_cast<int>(kStagedThreads) >> (take == Take::kRow ? 0 : a.lanes_log2);
  const int items = take == Take::kVectors ? a.classes / kVector : a.classes;
  const int count = take == Take::kRow ? items : (items - lane + lanes - 1) >> a.lanes_log2;
  const int stage_lines = a.chunk_rows * a.classes / kVector;

  int64_t offset[kOperands];
  const uint32_t run = blockIdx.x / static_cast<uint32_t>(a.run_blocks);
  a.at.locate(run, offset);
  const int chunks_before = static_cast<int>(blockIdx.x - run * a.run_blocks) * a.steps;
  const int first_row = chunks_before * a.chunk_rows;
  const int rows = min(a.at.rows - first_row, a.steps * a.chunk_rows);  // of this block
#pragma unroll
  for (int o = 0; o < kOperands; ++o) offset[o] += static_cast<int64_t>(first_row) * a.at.pitch[o];
  const Storage* const logits = static_cast<const Storage*>(a.logits) + offset[kLogits];
  Storage* const gradients = static_cast<Storage*>(a.gradient) + offset[kGradient];
  const auto place_of = [&](Operand o, int row) { return offset[o] + static_cast<int64_t>(row) * a.at.pitch[o]; };
  const auto label_of = [&](int row) -> int64_t {
    return row < rows ? load_label(a.targets, a.target_dtype, place_of(kTargets, row)) : a.index.ignore_index;
  };

  // The first turn is without a chunk: it only starts on the next one, as every turn does.
  Line* const lines = reinterpret_cast<Line*>(dynamic_shared());
  int next_line = 0;
  int64_t label = 0;
  for (int chunk = -a.chunk_rows; chunk < rows; chunk += a.chunk_rows) {
    wait_for_copies();
    __syncthreads();
    const int next = chunk + a.chunk_rows;
    if (next < rows)
      Staging<Storage, take>{lines + next_line, a.swizzle}.fill(
          a, logits + static_cast<int64_t>(next) * a.at.pitch[kLogits], min(rows - next, a.chunk_rows));
    next_line ^= stage_lines;
    if (chunk < 0) {
      label = label_of(group);
      continue;
    }
    const Staging<Storage, take> staging{lines + next_line, a.swizzle};
    for (int row = group; row < a.chunk_rows; row += groups) {
      const int number = chunk + row;  // in the block
      const bool exists = number < rows;
      const OwnPlaces own_places{place_of(kLoss, number), place_of(kSampleWeight, number)};
      const int32_t code =
          note_code<Term>(a, label, place_of(kTargets, number), own_places.sample, lane == 0 && exists, found);
      label = label_of(number + groups);

      // The target's logit is kept and leaves its place in shared memory to -inf.
      int own_at = -1, holder = 0;
      Real own = 0;
      if (code >= 0) {
        holder = (take == Take::kVectors ? code / kVector : code) & (lanes - 1);
        if (holder == lane) {
          own_at = row * a.classes + code;
          Storage* const place = staging.element(own_at);
          own = to_real<Real>(*place);
          *place = from_real<Storage>(lowest);
        }
      }
      if (take != Take::kRow) own = __shfl_sync(kAllLanes, own, holder, lanes);

      const Part<Storage, kCount, take> part{staging, row * items + lane, lanes, count};
      Real x[kCount];
      part.read(x);
      if (__any_sync(kAllLanes, code < 0)) {
        // Whatever stands there, NaN included, gets a gradient of 0.
#pragma unroll
        for (int i = 0; i < kCount; ++i) x[i] = code < 0 ? lowest : x[i];
      }
      Real largest = lowest;
#pragma unroll
      for (int i = 0; i < kCount; ++i) largest = fmaxf(largest, x[i]);
      if (take != Take::kRow) largest = over_lanes(largest, lanes, Larger());
      const Relative<Math> relative(largest);
      if (__any_sync(kAllLanes, relative.far)) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) x[i] -= relative.far ? relative.shift : Real(0);
      }
      Real sum = 0;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        x[i] = Math::exp(relative.near(x[i]));
        sum += x[i];
      }
      if (take != Take::kRow) sum = over_lanes(sum, lanes, Added());
      const PositionGradient<Real> gradient = settle_position<Term, Mode::kGradient>(
          a, scale, code, relative(own), sum, own_places, lane == 0 && exists, found);
      if (a.gradient) {
        part.write(x, gradient.others);
        if (own_at >= 0) *staging.element(own_at) = from_real<Storage>(gradient.own);
      }
    }
    if (a.gradient) {
      __syncthreads();
      staging.empty(a, gradients + static_cast<int64_t>(chunk) * a.at.pitch[kGradient],
                    min(rows - chunk, a.chunk_rows));
    }
  }
  leave_partial(found, Math::kUnit, a.partials);
}

}  // namespace focal::cuda
