// Softmax engine for longer rows, and for those whose length shared memory does not suit.
//   direct   the threads of a row hold it in registers: a part of a block, a block, or a cluster of blocks
//   swept    rows that no registers hold: a block a row, which is read twice
//   mapping        vectors of 16 bytes wherever the row begins; what lies before the first and behind the last goes to
//                  one lane each. A thread's vectors are a whole turn of all threads apart
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
  Outer positions;
  int64_t rows;
  int32_t steps;        // rows that a block, or each part of it, takes in turn
  int32_t row_threads;  // of a block
  int32_t cluster;      // blocks that share a row
};

// Where a row lies, and how: `head` elements, `body` vectors, `tail` elements.
template <class Storage>
struct RowPlace {
  static constexpr int kVector = kRowVector<Storage>;
  int64_t offset[kOperands];
  const Storage* logits;
  Storage* gradient;
  int head, body, tail;
  bool exists;
  bool whole;  // gradients are stored in vectors

  FOCAL_DEVICE RowPlace(const DirectRows<float>& a, int64_t row) {
    exists = row < a.rows;
    a.positions.locate(exists ? row : 0, offset);
    logits = static_cast<const Storage*>(a.logits) + offset[kLogits];
    gradient = static_cast<Storage*>(a.gradient) + offset[kGradient];
    const auto phase = [](const Storage* p) {
      return static_cast<int>(reinterpret_cast<uintptr_t>(p) / sizeof(Storage) % kVector);
    };
    head = min((kVector - phase(logits)) % kVector, a.classes);
    whole = phase(logits) == phase(gradient);
    body = (a.classes - head) / kVector;
    tail = a.classes - head - body * kVector;
    if (!exists) head = body = tail = 0;
  }

  // The class of the single element that a thread takes of head and tail; -1: none.
  FOCAL_DEVICE int single(int thread, int32_t classes) const {
    return thread < head ? thread : thread < head + tail ? classes - tail + (thread - head) : -1;
  }
};

// A vector of -inf: what stands where a row has ended.
template <class Storage>
FOCAL_DEVICE Vector<Storage, kRowVector<Storage>> nothing() {
  Vector<Storage, kRowVector<Storage>> vector{};
#pragma unroll
  for (int i = 0; i < kRowVector<Storage>; ++i)
    vector.put(i, from_real<Storage>(-std::numeric_limits<float>::infinity()));
  return vector;
}

template <class Storage>
FOCAL_DEVICE void store_slopes(Storage* to, const float (&slope)[kRowVector<Storage>], bool whole) {
  const auto raw = narrow<Storage>(slope);
  if (whole) {
    store_vector<Cache::kOnce>(to, raw);
  } else {
#pragma unroll
    for (int i = 0; i < kRowVector<Storage>; ++i) store(to + i, raw.get(i));
  }
}

// What the warps of a row tell each other.
struct RowShares {
  float largest[kMaxWarps];
  float sum[kMaxWarps];
};

// Of a row's threads, here and in the other blocks of the cluster; every one gets the same bits.
template <class Join>
FOCAL_DEVICE float over_row(float value, float* shares, int row_threads, int cluster, Join join) {
  value = over_lanes(value, kWarp, join);
  const int warps = row_threads / static_cast<int>(kWarp);
  if (warps * cluster == 1) return value;
  const int warp = static_cast<int>(threadIdx.x / kWarp), lane = static_cast<int>(threadIdx.x % kWarp);
  if (lane == 0) shares[warp] = value;
  value = Join::kNothing;
  if (cluster == 1) {
    __syncthreads();
    if (lane < warps) value = shares[warp - warp % warps + lane];
  } else {
    cluster_barrier();
    for (int i = lane; i < warps * cluster; i += kWarp)
      value = join(value, cluster_read(shares + i / cluster, i % cluster));
  }
  return over_lanes(value, kWarp, join);
}

template <class Term, class Storage, int kCount>
__global__ void __launch_bounds__(kDirectThreads, 1) rows_direct(const DirectRows<float> a) {
  using Math = typename Term::Math;
  using Real = float;
  constexpr int kVector = kRowVector<Storage>, kVectors = kCount / kVector;
  using Raw = Vector<Storage, kVector>;
  const Real lowest = -std::numeric_limits<Real>::infinity();
  Real scale;
  if (!begin(a.scaling, scale)) return;
  Findings<Real> found;
  FOCAL_SHARED(RowShares, shares);

  const int part = static_cast<int>(threadIdx.x) / a.row_threads;
  const int parts = static_cast<int>(blockDim.x) / a.row_threads;
  const int rank = a.cluster > 1 ? static_cast<int>(cluster_rank()) : 0;
  const int thread = rank * a.row_threads + static_cast<int>(threadIdx.x) - part * a.row_threads;
  const int threads = a.row_threads * a.cluster;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x / a.cluster) * a.steps * parts;

  for (int step = 0; step < a.steps && first_row + step * parts < a.rows; ++step) {
    const RowPlace<Storage> place(a, first_row + step * parts + part);
    const Storage* const from = place.logits + place.head;
    Raw raw[kVectors];
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      const int line = thread + j * threads;
      raw[j] = nothing<Storage>();
      if (line < place.body) raw[j] = load_vector<Cache::kOnce, kVector>(from + line * kVector);
    }
    const int single = place.single(thread, a.classes);
    Real alone = lowest;
    if (single >= 0) alone = to_real<Real>(load(place.logits + single));
    int32_t code = kIgnored;
    Real own = 0;
    if (place.exists) {
      const int64_t label = load_label(a.targets, a.target_dtype, place.offset[kTargets]);
      code = note_code(a, label, place.offset[kTargets], thread == 0, found);
      if (code >= 0) own = to_real<Real>(load(place.logits + code));
    }

    // The target's logit is out of maximum and sum; an ignored row's all are, NaN included.
    const int own_at = code - place.head;
    const int own_line = own_at >= 0 ? own_at / kVector : -1;
    bool holds = single >= 0 && single == code;
    Real x[kVectors][kVector];
    Real largest = alone = holds || code < 0 ? lowest : alone;
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      const int line = thread + j * threads;
      widen(raw[j], x[j]);
      if (code < 0 || line == own_line) {
        holds |= line == own_line && line < place.body;
#pragma unroll
        for (int i = 0; i < kVector; ++i) x[j][i] = code < 0 || i == own_at % kVector ? lowest : x[j][i];
      }
#pragma unroll
      for (int i = 0; i < kVector; ++i) largest = fmaxf(largest, x[j][i]);
    }
    largest = over_row(largest, shares.largest, a.row_threads, a.cluster, Larger());
    const Real shift = Math::to_units(shift_of(largest));
    alone = Math::exp(exponent_of_class<Math>(alone, shift));
    Real sum = alone;
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        x[j][i] = Math::exp(exponent_of_class<Math>(x[j][i], shift));
        sum += x[j][i];
      }
    }
    sum = over_row(sum, shares.sum, a.row_threads, a.cluster, Added());
    if (!place.exists) continue;
    const PositionGradient<Real> gradient = evaluate_position<Term, Mode::kGradient>(
        a, scale, code, exponent_of_class<Math>(own, shift), Real(0), sum, place.offset[kLoss], thread == 0, found);
    if (!a.gradient) continue;
    __syncwarp();  // a row of one warp has passed no barrier since its logits were read
    Storage* const to = place.gradient + place.head;
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      const int line = thread + j * threads;
      if (line >= place.body) continue;
#pragma unroll
      for (int i = 0; i < kVector; ++i) x[j][i] *= gradient.others;
      store_slopes(to + line * kVector, x[j], place.whole);
    }
    if (single >= 0) store(place.gradient + single, from_real<Storage>(alone * gradient.others));
    if (holds) store(place.gradient + code, from_real<Storage>(gradient.own));
  }
  if (a.cluster > 1) cluster_barrier();  // the others may still be reading this block's shares
  leave_partial(found, Math::kUnit, a.partials);
}

// Rows that no registers hold. Of a row's threads each takes every row_threads-th vector, in both sweeps the same.
template <class Term, class Storage>
__global__ void __launch_bounds__(kSweptThreads) rows_swept(const DirectRows<float> a) {
  using Math = typename Term::Math;
  using Real = float;
  constexpr int kVector = kRowVector<Storage>;
  const Real lowest = -std::numeric_limits<Real>::infinity();
  Real scale;
  if (!begin(a.scaling, scale)) return;
  Findings<Real> found;
  FOCAL_SHARED(RowShares, shares);
  const int thread = static_cast<int>(threadIdx.x);

  for (int step = 0; step < a.steps; ++step) {
    const int64_t row = static_cast<int64_t>(blockIdx.x) * a.steps + step;
    if (row >= a.rows) break;
    const RowPlace<Storage> place(a, row);
    const int64_t label = load_label(a.targets, a.target_dtype, place.offset[kTargets]);
    const int32_t code = note_code(a, label, place.offset[kTargets], thread == 0, found);
    const Real own = code >= 0 ? to_real<Real>(load(place.logits + code)) : Real(0);
    const int single = place.single(thread, a.classes);
    const int own_at = code >= place.head ? code - place.head : -1;
    // The classes of a vector as numbers, without the target's.
    const auto read = [&](int line, Real(&x)[kVector]) {
      widen(load_vector<Cache::kKeep, kVector>(place.logits + place.head + line * kVector), x);
      if (code < 0 || own_at / kVector == line) {
#pragma unroll
        for (int i = 0; i < kVector; ++i) x[i] = code < 0 || own_at == line * kVector + i ? lowest : x[i];
      }
    };
    Real alone = single >= 0 && single != code && code >= 0 ? to_real<Real>(load(place.logits + single)) : lowest;

    // A thread's sum is relative to its own largest, which may grow.
    Real largest = alone, shift = Math::to_units(shift_of(alone));
    Real sum = Math::exp(exponent_of_class<Math>(alone, shift));
    for (int line = thread; line < place.body; line += kSweptThreads) {
      Real x[kVector];
      read(line, x);
      Real most = x[0];
#pragma unroll
      for (int i = 1; i < kVector; ++i) most = fmaxf(most, x[i]);
      if (most > largest) {
        const Real before = shift;
        shift = Math::to_units(most);
        sum = largest == lowest ? sum * 0 : sum * Math::exp(before - shift);
        largest = most;
      }
#pragma unroll
      for (int i = 0; i < kVector; ++i) sum += Math::exp(exponent_of_class<Math>(x[i], shift));
    }
    const Real before = shift;
    const bool had_none = largest == lowest;
    largest = over_row(largest, shares.largest, kSweptThreads, 1, Larger());
    shift = Math::to_units(shift_of(largest));
    sum = over_row(had_none ? sum : sum * Math::exp(before - shift), shares.sum, kSweptThreads, 1, Added());
    const PositionGradient<Real> gradient = evaluate_position<Term, Mode::kGradient>(
        a, scale, code, exponent_of_class<Math>(own, shift), Real(0), sum, place.offset[kLoss], thread == 0, found);
    if (!a.gradient) continue;

    for (int line = thread; line < place.body; line += kSweptThreads) {
      Real x[kVector];
      read(line, x);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const Real slope = gradient.others * Math::exp(exponent_of_class<Math>(x[i], shift));
        x[i] = own_at == line * kVector + i ? gradient.own : slope;
      }
      store_slopes(place.gradient + place.head + line * kVector, x, place.whole);
    }
    alone = single == code ? gradient.own : gradient.others * Math::exp(exponent_of_class<Math>(alone, shift));
    if (single >= 0) store(place.gradient + single, from_real<Storage>(alone));
  }
  leave_partial(found, Math::kUnit, a.partials);
}

}  // namespace focal::cuda
