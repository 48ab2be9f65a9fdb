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
  RowRuns at;           // kLoss: an unreduced loss or its upstream
  int32_t rows;         // of all runs
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
  int head, body, tail;
  bool exists;

  FOCAL_DEVICE RowPlace(const DirectRows<float>& a, int row) {
    exists = row < a.rows;
    row = exists ? row : 0;
    const int run = a.at.runs == 1 ? 0 : static_cast<int>(a.at.by_rows.quotient(row));
    a.at.locate(run, offset);
    row -= run * a.at.rows;
#pragma unroll
    for (int o = 0; o < kOperands; ++o) offset[o] += static_cast<int64_t>(row) * a.at.pitch[o];
    logits = static_cast<const Storage*>(a.logits) + offset[kLogits];
    head = min(-phase(logits) & (kVector - 1), a.classes);
    body = (a.classes - head) / kVector;
    tail = (a.classes - head) % kVector;
    if (!exists) head = body = tail = 0;
  }

  static FOCAL_DEVICE int phase(const Storage* p) {
    return static_cast<int>(reinterpret_cast<uintptr_t>(p) / sizeof(Storage)) & (kVector - 1);
  }

  FOCAL_DEVICE Storage* gradient(const DirectRows<float>& a) const {
    return static_cast<Storage*>(a.gradient) + offset[kGradient];
  }

  // The vector that a class is in; not one of the body's where it is in none.
  FOCAL_DEVICE int line_of(int32_t code) const { return code >= head ? (code - head) / kVector : -1; }

  // The class of the single element that a thread takes of head and tail; -1: none.
  FOCAL_DEVICE int single(int thread, int32_t classes) const {
    return thread < head ? thread : thread < head + tail ? classes - tail + (thread - head) : -1;
  }
};

// The same number, of which the compiler no longer knows that it has seen it.
template <class Int>
FOCAL_DEVICE Int unknown(Int number) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+r"(number));
#endif
  return number;
}

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

template <class Term, class Storage, int kVectors>
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
  const int threads = a.row_threads * a.cluster;
  const int first_row = static_cast<int>(blockIdx.x) / a.cluster * a.steps * parts;

  for (int step = 0; step < a.steps && first_row + step * parts < a.rows; ++step) {
    const RowPlace<Storage> place(a, first_row + step * parts + part);
    // Vector j of a thread exists while j * threads < left.
    const int left = place.body - thread;
    const Storage* const from = place.logits + place.head + thread * kVector;
    Raw raw[kVectors];
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      raw[j] = nothing<Storage>();
      if (j * threads < left) raw[j] = load_vector<Cache::kOnce, kVector>(from + j * threads * kVector);
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
    const int own_left = place.line_of(code) - thread, own_lane = (code - place.head) % kVector;
    Real largest = alone = single == code || code < 0 ? lowest : alone;
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      if (code < 0 || j * threads == own_left) {
        Raw without{};
#pragma unroll
        for (int i = 0; i < kVector; ++i)
          without.put(i, code < 0 || i == own_lane ? from_real<Storage>(lowest) : raw[j].get(i));
        raw[j] = without;
      }
      Real x[kVector];
      widen(raw[j], x);
#pragma unroll
      for (int i = 0; i < kVector; ++i) largest = fmaxf(largest, x[i]);
    }
    largest = over_row(largest, a.row_threads, a.cluster, Larger());
    const Real shift = Math::to_units(shift_of(largest));
    alone = Math::exp(exponent_of_class<Math>(alone, shift));
    Real sum = alone;
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      Real x[kVector];
      widen(raw[j], x);
#pragma unroll
      for (int i = 0; i < kVector; ++i) sum += Math::exp(exponent_of_class<Math>(x[i], shift));
    }
    sum = over_row(sum, a.row_threads, a.cluster, Added());

    // Where the row lies is worked out again: to keep it would take the registers of four classes.
    const RowPlace<Storage> again(a, unknown(first_row + step * parts + part));
    if (!again.exists) continue;
    const PositionGradient<Real> gradient = settle_position<Term, Mode::kGradient>(
        a, scale, code, exponent_of_class<Math>(own, shift), sum, again.offset[kLoss], thread == 0, found);
    if (!a.gradient) continue;
    __syncwarp();  // a row of one warp has passed no barrier since its logits were read
    Storage* const gradients = again.gradient(a);
    Storage* const to = gradients + again.head + thread * kVector;
    const bool whole = again.phase(gradients) == again.phase(again.logits);
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      if (j * threads >= again.body - thread) continue;
#pragma unroll
      for (int w = 0; w < Raw::kWords; ++w) raw[j].word[w] = unknown(raw[j].word[w]);
      Real x[kVector];
      widen(raw[j], x);
#pragma unroll
      for (int i = 0; i < kVector; ++i) x[i] = gradient.others * Math::exp(exponent_of_class<Math>(x[i], shift));
      store_slopes(to + j * threads * kVector, x, whole);
    }
    const int also = again.single(thread, a.classes);
    if (also >= 0) store(gradients + also, from_real<Storage>(alone * gradient.others));
    // By the thread that has just written a 0 there.
    const int own_at = again.line_of(code) - thread;
    bool holds = also == code;
#pragma unroll
    for (int j = 0; j < kVectors; ++j) holds |= j * threads == own_at && j * threads < again.body - thread;
    if (holds && code >= 0) store(gradients + code, from_real<Storage>(gradient.own));
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
  const int thread = static_cast<int>(threadIdx.x);

  for (int step = 0; step < a.steps; ++step) {
    const int row = static_cast<int>(blockIdx.x) * a.steps + step;
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
    largest = over_row(largest, kSweptThreads, 1, Larger());
    shift = Math::to_units(shift_of(largest));
    sum = over_row(had_none ? sum : sum * Math::exp(before - shift), kSweptThreads, 1, Added());
    const PositionGradient<Real> gradient = settle_position<Term, Mode::kGradient>(
        a, scale, code, exponent_of_class<Math>(own, shift), sum, place.offset[kLoss], thread == 0, found);
    if (!a.gradient) continue;

    Storage* const gradients = place.gradient(a);
    const bool whole = place.phase(gradients) == place.phase(place.logits);
    for (int line = thread; line < place.body; line += kSweptThreads) {
      Real x[kVector];
      read(line, x);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const Real slope = gradient.others * Math::exp(exponent_of_class<Math>(x[i], shift));
        x[i] = own_at == line * kVector + i ? gradient.own : slope;
      }
      store_slopes(gradients + place.head + line * kVector, x, whole);
    }
    alone = single == code ? gradient.own : gradient.others * Math::exp(exponent_of_class<Math>(alone, shift));
    if (single >= 0) store(gradients + single, from_real<Storage>(alone));
  }
  leave_partial(found, Math::kUnit, a.partials);
}

}  // namespace focal::cuda
