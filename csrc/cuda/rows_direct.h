// Softmax engine for longer rows, and for those whose length shared memory does not suit.
//   direct   the threads of a row hold it in registers: a part of a block, a block, or a cluster of blocks
//   swept    rows that no registers hold: a block a row, which is read twice
//   mapping        a thread's vectors of 16 bytes are a whole turn of all threads apart; where rows do not lie on such
//                  boundaries its elements are the lanes of a warp apart, wherever a row begins: the same sums for all
//   traffic        logits read once (swept: a second time from the cache, where the row fits), gradient written once
//   determinism    shuffles, then warps of a row, of all blocks of its cluster, in the same order for every thread
//   participation  every thread reaches the barriers and leave_partial, with or without a row
// Every logit of a row is read before a gradient is written in its place. Must not know: which loss Term is, torch.
#pragma once

#include "cuda/rows.h"

namespace focal::cuda {

constexpr unsigned kDirectThreads = 1024, kSweptThreads = 512;

template <class Real>
struct DirectRows : Softmax<Real> {
  RowRuns at;              // kLoss: an unreduced loss or its upstream
  int32_t rows;            // of all runs
  int32_t steps;           // rows that a block, or each part of it, takes in turn
  int32_t row_threads;     // of a block
  int32_t cluster;         // blocks that share a row
  FastDivisor by_threads;  // of a row
  bool whole;              // every row is whole vectors on their boundaries
};

struct RowPlace {
  int64_t offset[kOperands];
  bool exists;

  FOCAL_DEVICE RowPlace(const DirectRows<float>& a, int row) {
    exists = row < a.rows;
    row = exists ? row : 0;
    const int run = a.at.runs == 1 ? 0 : static_cast<int>(a.at.by_rows.quotient(row));
    a.at.locate(run, offset);
    row -= run * a.at.rows;
#pragma unroll
    for (int o = 0; o < kOperands; ++o) offset[o] += static_cast<int64_t>(row) * a.at.pitch[o];
  }
  FOCAL_DEVICE OwnPlaces own() const { return {offset[kLoss], offset[kSampleWeight]}; }
};

// The same number, of which the compiler no longer knows that it has seen it.
template <class Int>
FOCAL_DEVICE Int unknown(Int number) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(number));
#endif
  return number;
}

// A thread's share of a row: kCount elements in vectors that are a turn of all threads apart (whole), or elements of its
// warp's own stretch of the row, its lanes by turns.
template <class Storage, int kVectors, bool whole>
class RowShare {
 public:
  static constexpr int kVector = kRowVector<Storage>, kCount = kVectors * kVector;
  using Raw = Vector<Storage, kVector>;

  FOCAL_DEVICE RowShare(int threads, int thread, int classes)
      : threads_(threads),
        first_(whole ? thread : thread / kLanes * kCount * kLanes + thread % kLanes),
        left_((whole ? classes / kVector : classes) - first_) {}

  // Where a row has ended there is -inf.
  template <Cache cache>
  FOCAL_DEVICE Raw read(const Storage* row, int j) const {
    Raw raw{};
    if (whole && left_ > distance(j)) return load_vector<cache, kVector>(row + (first_ + distance(j)) * kVector);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      Storage value = from_real<Storage>(-std::numeric_limits<float>::infinity());
      if (!whole && left_ > distance(j, i)) value = load(row + first_ + distance(j, i));
      raw.put(i, value);
    }
    return raw;
  }

  FOCAL_DEVICE void write(Storage* row, int j, const float (&slope)[kVector]) const {
    const Raw raw = narrow<Storage>(slope);
    if constexpr (whole) {
      if (left_ > distance(j)) store_vector<Cache::kOnce>(row + (first_ + distance(j)) * kVector, raw);
    } else {
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        if (left_ > distance(j, i)) store(row + first_ + distance(j, i), raw.get(i));
      }
    }
  }

  // Which of the thread's elements a class is; a negative number: of another thread's, or none.
  FOCAL_DEVICE int own(const FastDivisor& by_threads, int32_t code) const {
    if (whole) {
      const int vector = code / kVector, turn = static_cast<int>(by_threads.quotient(vector));
      return code >= 0 && vector - turn * threads_ == first_ ? turn * kVector + code % kVector : -1;
    }
    const int from = code - first_;
    return from >= 0 && from % kLanes == 0 && from < kCount * kLanes ? from / kLanes : -1;
  }

 private:
  static constexpr int kLanes = static_cast<int>(kWarp);

  FOCAL_DEVICE int distance(int j, int i = 0) const { return whole ? j * threads_ : (j * kVector + i) * kLanes; }

  const int threads_, first_, left_;  // whole: in vectors
};

// What the warps of a row tell each other, for each way of joining it.
struct RowShares {
  float of[kMaxWarps];
};

// Of a row's threads, here and in the other blocks of the cluster; every one gets the same bits. Before the same Join
// comes again there must be another one: its barrier says that everyone has read the shares.
template <class Join>
FOCAL_DEVICE float over_row(float value, int row_threads, int cluster, Join join) {
  FOCAL_SHARED(RowShares, shares);
  value = over_lanes(value, kWarp, join);
  const int warps = row_threads / static_cast<int>(kWarp);
  if (warps * cluster == 1) return value;
  const int warp = static_cast<int>(threadIdx.x / kWarp), lane = static_cast<int>(threadIdx.x % kWarp);
  if (lane == 0) shares.of[warp] = value;
  value = Join::kNothing;
  if (cluster == 1) {
    __syncthreads();
    if (lane < warps) value = shares.of[warp / warps * warps + lane];
  } else {
    cluster_barrier();
    for (int i = lane; i < warps * cluster; i += kWarp)
      value = join(value, cluster_read(&shares.of[i / cluster], i % cluster));
  }
  return over_lanes(value, kWarp, join);
}

template <class Term, class Storage, int kVectors, bool whole>
__global__ void __launch_bounds__(kDirectThreads, 1) rows_direct(const DirectRows<float> a) {
  using Math = typename Term::Math;
  using Real = float;
  constexpr int kVector = kRowVector<Storage>;
  using Raw = Vector<Storage, kVector>;
  const Real lowest = -std::numeric_limits<Real>::infinity();
  Real scale;
  if (!begin(a.scaling, scale)) return;
  Findings<Real> found;

  const int part = static_cast<int>(threadIdx.x) / a.row_threads;
  const int parts = static_cast<int>(blockDim.x) / a.row_threads;
  const int rank = a.cluster > 1 ? static_cast<int>(cluster_rank()) : 0;
  const int thread = rank * a.row_threads + static_cast<int>(threadIdx.x) - part * a.row_threads;
  int number = static_cast<int>(blockIdx.x) / a.cluster * a.steps * parts;
  const int end = min(number + a.steps * parts, a.rows);

  for (; number < end; number += parts) {
    const RowPlace place(a, number + part);
    const Storage* const row = static_cast<const Storage*>(a.logits) + place.offset[kLogits];
    const RowShare<Storage, kVectors, whole> share(a.row_threads * a.cluster, thread, place.exists ? a.classes : 0);
    Raw raw[kVectors];
#pragma unroll
    for (int j = 0; j < kVectors; ++j) raw[j] = share.template read<Cache::kOnce>(row, j);
    int64_t label = a.index.ignore_index;
    if (place.exists) label = load_label(a.targets, a.target_dtype, place.offset[kTargets]);
    const int32_t code = note_code<Term>(a, label, place.offset[kTargets], place.offset[kSampleWeight],
                                         thread == 0 && place.exists, found);
    Real own = 0;
    if (code >= 0) own = to_real<Real>(load(row + code));

    // The target's logit is out of maximum and sum; an ignored row's all are, NaN included.
    const int own_at = share.own(a.by_threads, code);
    Real largest = lowest;
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      if (code < 0 || (own_at >= 0 && own_at / kVector == j)) {
        Raw without{};
#pragma unroll
        for (int i = 0; i < kVector; ++i)
          without.put(i, code < 0 || i == own_at % kVector ? from_real<Storage>(lowest) : raw[j].get(i));
        raw[j] = without;
      }
      Real x[kVector];
      widen(raw[j], x);
#pragma unroll
      for (int i = 0; i < kVector; ++i) largest = fmaxf(largest, x[i]);
    }
    largest = over_row(largest, a.row_threads, a.cluster, Larger());
    const Relative<Math> relative(largest);
    // The exponentials are made twice: to keep them would take twice the registers. far: see Relative.
    const auto exponentials = [&](int j, Real(&e)[kVector], bool far) {
      widen(raw[j], e);
#pragma unroll
      for (int i = 0; i < kVector; ++i) e[i] = Math::exp(relative.near(far ? e[i] - relative.shift : e[i]));
    };
    const auto sum_of = [&](auto far) {
      Real sum = 0;
#pragma unroll
      for (int j = 0; j < kVectors; ++j) {
        Real e[kVector];
        exponentials(j, e, far.value);
#pragma unroll
        for (int i = 0; i < kVector; ++i) sum += e[i];
      }
      return sum;
    };
    Real sum = relative.far ? sum_of(std::true_type()) : sum_of(std::false_type());
    sum = over_row(sum, a.row_threads, a.cluster, Added());

    // Where the row lies is worked out again: to keep it would take the registers of four classes.
    const RowPlace again(a, unknown(number) + part);
    if (!again.exists) continue;
    const PositionGradient<Real> gradient =
        settle_position<Term, Mode::kGradient>(a, scale, code, relative(own), sum, again.own(), thread == 0, found);
    if (!a.gradient) continue;
    __syncwarp();  // a row of one warp has passed no barrier since its logits were read
    Storage* const to = static_cast<Storage*>(a.gradient) + again.offset[kGradient];
    const RowShare<Storage, kVectors, whole> same(a.row_threads * a.cluster, unknown(thread), a.classes);
    const auto write = [&](auto far) {
#pragma unroll
      for (int j = 0; j < kVectors; ++j) {
#pragma unroll
        for (int w = 0; w < Raw::kWords; ++w) raw[j].word[w] = unknown(raw[j].word[w]);
        Real slope[kVector];
        exponentials(j, slope, far.value);
#pragma unroll
        for (int i = 0; i < kVector; ++i) slope[i] *= gradient.others;
        same.write(to, j, slope);
      }
    };
    relative.far ? write(std::true_type()) : write(std::false_type());
    // By the thread that has just written a 0 there.
    if (own_at >= 0) store(to + code, from_real<Storage>(gradient.own));
  }
  if (a.cluster > 1) cluster_barrier();  // the others may still be reading this block's shares
  leave_partial(found, Math::kUnit, a.partials);
}

// Rows that no registers hold. Of a row's threads each takes every kSweptThreads-th vector or element, in both sweeps.
template <class Term, class Storage, bool whole>
__global__ void __launch_bounds__(kSweptThreads) rows_swept(const DirectRows<float> a) {
  using Math = typename Term::Math;
  using Real = float;
  constexpr int kVector = kRowVector<Storage>;
  const Real lowest = -std::numeric_limits<Real>::infinity();
  Real scale;
  if (!begin(a.scaling, scale)) return;
  Findings<Real> found;
  const int thread = static_cast<int>(threadIdx.x);
  constexpr int kThreads = static_cast<int>(kSweptThreads), kStep = kThreads * kVector;

  for (int step = 0; step < a.steps; ++step) {
    const int number = static_cast<int>(blockIdx.x) * a.steps + step;
    if (number >= a.rows) break;
    const RowPlace place(a, number);
    const Storage* const row = static_cast<const Storage*>(a.logits) + place.offset[kLogits];
    const int64_t label = load_label(a.targets, a.target_dtype, place.offset[kTargets]);
    const int32_t code =
        note_code<Term>(a, label, place.offset[kTargets], place.offset[kSampleWeight], thread == 0, found);
    const Real own = code >= 0 ? to_real<Real>(load(row + code)) : Real(0);
    // A thread's share of the classes from `from` on, as numbers and without the target's.
    const auto read = [&](int from, Real(&x)[kVector]) {
      const RowShare<Storage, 1, whole> share(kThreads, thread, a.classes - from);
      widen(share.template read<Cache::kKeep>(row + from, 0), x);
      const int own_at = share.own(a.by_threads, code - from);
      if (code < 0 || own_at >= 0) {
#pragma unroll
        for (int i = 0; i < kVector; ++i) x[i] = code < 0 || i == own_at ? lowest : x[i];
      }
      return own_at;
    };

    // A thread's sum is relative to its own largest, which may grow.
    Real largest = lowest, sum = 0;
    for (int from = 0; from < a.classes; from += kStep) {
      Real x[kVector];
      read(from, x);
      Real most = x[0];
#pragma unroll
      for (int i = 1; i < kVector; ++i) most = fmaxf(most, x[i]);
      if (most > largest) {
        sum *= largest == lowest ? Real(1) : Math::exp(Math::between(largest, most));
        largest = most;
      }
#pragma unroll
      for (int i = 0; i < kVector; ++i) sum += Math::exp(Math::between(x[i], shift_of(largest)));
    }
    const Real before = largest;
    largest = over_row(largest, kThreads, 1, Larger());
    const Real shift = shift_of(largest);
    sum = over_row(before == lowest ? sum : sum * Math::exp(Math::between(before, shift)), kThreads, 1, Added());
    const PositionGradient<Real> gradient = settle_position<Term, Mode::kGradient>(
        a, scale, code, Math::between(own, shift), sum, place.own(), thread == 0, found);
    if (!a.gradient) continue;

    Storage* const to = static_cast<Storage*>(a.gradient) + place.offset[kGradient];
    for (int from = 0; from < a.classes; from += kStep) {
      Real x[kVector];
      const int own_at = read(from, x);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const Real slope = gradient.others * Math::exp(Math::between(x[i], shift));
        x[i] = own_at == i ? gradient.own : slope;
      }
      RowShare<Storage, 1, whole>(kThreads, thread, a.classes - from).write(to + from, 0, x);
    }
  }
  leave_partial(found, Math::kUnit, a.partials);
}

}  // namespace focal::cuda
