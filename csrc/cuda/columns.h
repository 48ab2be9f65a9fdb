// Softmax engine for strided classes (segmentation): a thread holds a few neighbouring positions and a slice of their
// classes in registers, so that every logit is read once.
//   mapping        up to 32 classes: a thread has all of them. More, up to 1024: the warps of a block share the same
//                  positions and each has kClasses of their classes; maximum, sum and the target's logit meet in shared memory.
//   traffic        logits read once, gradient written once, 8 or 16 bytes for each thread and class, next to its
//                  neighbours'; labels once for each warp
//   determinism    a position's sum runs through classes, then warps, in order; a block's positions follow from the shape
//   participation  every thread reaches the barriers and leave_partial, with or without positions
// Must not know: which loss Term is, torch.
#pragma once

#include "cuda/softmax.h"

namespace focal::cuda {

template <class Real>
struct Columns : Softmax<Real> {
  Outer outer;
  int64_t run;                      // positions that are neighbours in memory
  int64_t class_stride[kOperands];  // in elements
  int64_t target_stride, each_stride, sample_stride;
  int64_t runs, all_tiles;
  unsigned tiles;        // of a run
  int32_t steps;         // tiles of a block
  bool targets_aligned;  // every vector of labels lies on its boundary
};

constexpr unsigned kColumnThreads = 128;
// What a block costs besides its tile is a few hundred instructions for each thread: up to here it takes several tiles.
constexpr int kFewClasses = 8;
constexpr int kColumnWarps = 12;  // that share positions, at most: as many as have the registers
// Where these are too few, 16 warps of one position a thread: as few registers as 32 warps have do not hold 32 classes.
constexpr int kManyClasses = 64, kWarpsOfMany = 16;

// Positions of a thread. 8 bytes for each class, 256 for a warp, cost a percent of bandwidth and half the registers of
// 16. Where half of a block's registers are not enough for 8, 4; few classes of float32, and two of any type, have them
// for 16. Single elements gain nothing from many positions.
template <class Storage>
constexpr int positions_of_thread(int classes, int warps, bool aligned) {
  constexpr int size = static_cast<int>(sizeof(Storage));
  if (classes == kManyClasses) return 1;
  if (warps > 1 && classes > 16) return 4 / size;
  if (!aligned) return 2;
  return classes == 2 || (classes <= 8 && size == 4) ? 16 / size : 8 / size;
}

// What the warps that share positions tell each other of each.
template <int warps, int positions>
struct Shares {
  float shift[warps][positions], sum[warps][positions];  // from every warp
  int32_t code[positions];                               // from the first
  float own[positions];
  float most[positions], own_slope[positions], others[positions];  // from the thread that settles it
};

// The positions of one tile that fall to a thread. offset: of the run's first position.
template <class Term, class Storage, int kClasses, int kLeast, int kWarps, bool aligned>
FOCAL_DEVICE void columns_tile(const Columns<float>& a, float scale, const int64_t (&offset)[kOperands],
                               const Lane& lane, Findings<float>& found) {
  using Math = typename Term::Math;
  using Real = float;
  constexpr bool shared = kWarps > 1;
  constexpr int kCount = positions_of_thread<Storage>(kClasses, kWarps, aligned);
  const Real lowest = -std::numeric_limits<Real>::infinity();
  const unsigned warp = threadIdx.x / kWarp;
  const int32_t first_class = shared ? static_cast<int32_t>(warp) * kClasses : 0;
  const int32_t classes = shared ? a.classes - first_class : a.classes;  // from the thread's first one on
  const auto places_of = [&](int64_t position) -> OwnPlaces {
    return {offset[kLoss] + position * a.each_stride, offset[kSampleWeight] + position * a.sample_stride};
  };

  Real x[kClasses][kCount];
  const Storage* from =
      static_cast<const Storage*>(a.logits) + offset[kLogits] + lane.first + first_class * a.class_stride[kLogits];
  if constexpr (aligned) {
    Vector<Storage, kCount> raw[kClasses];
#pragma unroll
    for (int c = 0; c < kClasses; ++c) {
      raw[c] = {};
      if ((c < kLeast || c < classes) && lane.count > 0) raw[c] = load_vector<Cache::kOnce, kCount>(from);
      from += a.class_stride[kLogits];
    }
#pragma unroll
    for (int c = 0; c < kClasses; ++c) widen(raw[c], x[c]);
  } else {
#pragma unroll
    for (int c = 0; c < kClasses; ++c) {
#pragma unroll
      for (int p = 0; p < kCount; ++p) {
        x[c][p] = 0;
        if ((c < kLeast || c < classes) && p < lane.count) x[c][p] = to_real<Real>(load(from + p * lane.spread));
      }
      from += a.class_stride[kLogits];
    }
  }

  const int64_t first_target = offset[kTargets] + lane.first * a.target_stride;
  int64_t label[kCount];
  load_labels(a.targets, a.target_dtype, first_target, a.target_stride * lane.spread, lane.count,
              aligned && lane.count > 0 && a.targets_aligned, label);
  int32_t code[kCount];
  bool ignored = false;
#pragma unroll
  for (int p = 0; p < kCount; ++p) {
    const bool exists = p < lane.count;
    code[p] = kIgnored;
    if (exists) {
      code[p] = note_code<Term>(a, label[p], first_target + p * lane.spread * a.target_stride,
                                places_of(lane.first + static_cast<int64_t>(p) * lane.spread).sample,
                                !shared || warp == 0, found);
    }
    ignored |= code[p] < 0;
  }
  if (ignored) {
    // Whatever stands there, NaN included, becomes an ordinary position whose slope is 0.
#pragma unroll
    for (int c = 0; c < kClasses; ++c) {
#pragma unroll
      for (int p = 0; p < kCount; ++p) x[c][p] = code[p] < 0 ? Real(0) : x[c][p];
    }
  }

  if constexpr (kClasses == 2) {
    // In closed form: no maximum, no sum, and what one class gains the other loses.
    Real slope[2][kCount];
#pragma unroll
    for (int p = 0; p < kCount; ++p) {
      const Real own = code[p] == 1 ? x[1][p] : x[0][p], other = code[p] == 1 ? x[0][p] : x[1][p];
      Real gradient = 0;
      if (p < lane.count) {
        gradient = settle_margin<Term, Mode::kGradient>(a, scale, code[p], Math::between(own, other),
                                                        places_of(lane.first + static_cast<int64_t>(p) * lane.spread),
                                                        true, found);
      }
      slope[0][p] = code[p] == 1 ? -gradient : gradient;
      slope[1][p] = -slope[0][p];
    }
    if (a.gradient && lane.count > 0) {
      Storage* to = static_cast<Storage*>(a.gradient) + offset[kGradient] + lane.first;
      store_vector<Cache::kOnce>(to, narrow<Storage>(slope[0]));
      store_vector<Cache::kOnce>(to + a.class_stride[kGradient], narrow<Storage>(slope[1]));
    }
    return;
  }

  // The target's logit is read again, from the caches: picked out of the registers it costs an instruction for each class.
  Real own[kCount], largest[kCount];
#pragma unroll
  for (int p = 0; p < kCount; ++p) {
    const Storage* logits = static_cast<const Storage*>(a.logits) + offset[kLogits] + lane.first + p * lane.spread;
    own[p] =
        code[p] < 0 || (shared && warp > 0) ? Real(0) : to_real<Real>(load(logits + code[p] * a.class_stride[kLogits]));
    largest[p] = lowest;
  }
  // Among the others it is taken out, and classes that do not exist never were in.
#pragma unroll
  for (int c = 0; c < kClasses; ++c) {
#pragma unroll
    for (int p = 0; p < kCount; ++p) {
      const bool is_other = (c < kLeast || c < classes) && code[p] - first_class != c;
      x[c][p] = is_other ? x[c][p] : lowest;
      largest[p] = fmaxf(largest[p], x[c][p]);
    }
  }
  // Shifts in units, which costs one instruction for each exponential; where one is far from zero, as they are, two.
  Real shift[kCount], sum[kCount];
  bool far = false;
#pragma unroll
  for (int p = 0; p < kCount; ++p) {
    shift[p] = shift_of(largest[p]);
    far |= !(absolute(shift[p]) < Math::kNear);
    sum[p] = 0;
  }
  if constexpr (kClasses == kManyClasses) {
    far = true;  // one way for all takes fewer registers
  } else if constexpr (shared) {
    far = __syncthreads_or(far);
  }
  if (far) {
#pragma unroll
    for (int c = 0; c < kClasses; ++c) {
#pragma unroll
      for (int p = 0; p < kCount; ++p) x[c][p] -= shift[p];
    }
  }
#pragma unroll
  for (int p = 0; p < kCount; ++p) shift[p] = far ? shift[p] : Math::to_units(shift[p]);
#pragma unroll
  for (int c = 0; c < kClasses; ++c) {
#pragma unroll
    for (int p = 0; p < kCount; ++p) {
      x[c][p] = Math::exp(Math::between_units(x[c][p], far ? Real(0) : shift[p]));
      sum[p] += x[c][p];
    }
  }

  PositionGradient<Real> gradient[kCount];
  if constexpr (shared) {
    using SharesOfWarps = Shares<kWarps, kWarp * kCount>;
    FOCAL_SHARED(SharesOfWarps, shares);
    const unsigned first = threadIdx.x % kWarp * kCount, warps = blockDim.x / kWarp;
    const Real units = far ? Math::kPerNat : Real(1);
#pragma unroll
    for (int p = 0; p < kCount; ++p) {
      shares.shift[warp][first + p] = sum[p] == Real(0) ? lowest : shift[p];
      shares.sum[warp][first + p] = sum[p];
      if (warp == 0) {
        shares.code[first + p] = code[p];
        shares.own[first + p] = own[p];
      }
    }
    __syncthreads();
    // Each position by one thread of the block: every warp for itself would cost ten instructions for each logit.
    const int64_t begin_of_tile = lane.first - (aligned ? first : threadIdx.x % kWarp);
    for (unsigned i = threadIdx.x; i < kWarp * kCount; i += blockDim.x) {
      Real most = lowest, total = 0;
      for (unsigned w = 0; w < warps; ++w) most = fmaxf(most, shares.shift[w][i]);
      most = shift_of(most);
      for (unsigned w = 0; w < warps; ++w) total += shares.sum[w][i] * Math::exp((shares.shift[w][i] - most) * units);
      const int64_t position = begin_of_tile + (aligned ? i : i % kCount * kWarp + i / kCount);
      PositionGradient<Real> settled{0, 0};
      if (position < a.run) {
        const Real relative = far ? Math::between(shares.own[i], most) : Math::between_units(shares.own[i], most);
        settled = settle_position<Term, Mode::kGradient>(a, scale, shares.code[i], relative, total, places_of(position),
                                                         true, found);
      }
      shares.most[i] = most;
      shares.own_slope[i] = settled.own;
      shares.others[i] = settled.others;
    }
    __syncthreads();
#pragma unroll
    for (int p = 0; p < kCount; ++p) {
      // The thread's exponentials are relative to its own shift.
      const Real part = sum[p] == Real(0) ? Real(0) : Math::exp((shift[p] - shares.most[first + p]) * units);
      gradient[p] = {shares.own_slope[first + p], shares.others[first + p] * part};
    }
  } else {
#pragma unroll
    for (int p = 0; p < kCount; ++p) {
      gradient[p] = {0, 0};
      if (p < lane.count) {
        const Real relative = far ? Math::between(own[p], shift[p]) : Math::between_units(own[p], shift[p]);
        gradient[p] = settle_position<Term, Mode::kGradient>(
            a, scale, code[p], relative, sum[p], places_of(lane.first + static_cast<int64_t>(p) * lane.spread), true,
            found);
      }
    }
  }

  if (!a.gradient) return;
  Storage* to =
      static_cast<Storage*>(a.gradient) + offset[kGradient] + lane.first + first_class * a.class_stride[kGradient];
  // Compared anew: as predicates that are kept from before, comparisons would cost three times as much.
  int32_t target[kCount];
#pragma unroll
  for (int p = 0; p < kCount; ++p) target[p] = apart(code[p] - first_class);
#pragma unroll
  for (int c = 0; c < kClasses; ++c) {
    Real slope[kCount];
#pragma unroll
    for (int p = 0; p < kCount; ++p) slope[p] = target[p] == c ? gradient[p].own : x[c][p] * gradient[p].others;
    const bool exists = c < kLeast || c < classes;
    if constexpr (aligned) {
      if (exists && lane.count > 0) store_vector<Cache::kOnce>(to, narrow<Storage>(slope));
    } else if constexpr (kCount == 1) {
      if (exists && lane.count > 0) store(to, from_real<Storage>(slope[0]));
    } else {
      const Vector<Storage, kCount> raw = narrow<Storage>(slope);
#pragma unroll
      for (int p = 0; p < kCount; ++p) {
        if (exists && p < lane.count) store(to + p * lane.spread, raw.get(p));
      }
    }
    to += a.class_stride[kGradient];
  }
}

// kLeast: the fewest classes the kernel is started with; those from there on may not exist.
// Loss and gradient are one kernel: the exponentials are there, and registers are not what bounds the loss alone.
template <class Term, class Storage, int kClasses, int kLeast, int kWarps, bool aligned>
__global__ void __launch_bounds__(kWarps > 1 ? 32 * kWarps : kColumnThreads, 1) columns(const Columns<float> a) {
  constexpr int kCount = positions_of_thread<Storage>(kClasses, kWarps, aligned);
  constexpr bool shared = kWarps > 1;
  float scale;
  if (!begin(a.scaling, scale)) return;
  Findings<float> found;
  const unsigned thread = shared ? threadIdx.x % kWarp : threadIdx.x, threads = shared ? kWarp : blockDim.x;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * a.steps;
  unsigned tile = static_cast<unsigned>(first % a.tiles);
  int64_t outer = first / a.tiles, offset[kOperands];
  a.outer.locate(outer, offset);
  // A loop of one turn holds no registers, a third of them in fp32; kernels of many warps gain nothing by it.
  constexpr bool kOnce = !shared && kLeast > kFewClasses;
  const int32_t steps = kOnce ? 1 : a.steps;
  for (int step = 0; step < steps && first + step < a.all_tiles; ++step) {
    columns_tile<Term, Storage, kClasses, kLeast, kWarps, aligned>(
        a, scale, offset, Lane(aligned, kCount, thread, threads, tile, a.run), found);
    if (++tile == a.tiles) {
      tile = 0;
      a.outer.locate(++outer < a.runs ? outer : 0, offset);
    }
  }
  leave_partial(found, Term::Math::kUnit, a.partials);
}

}  // namespace focal::cuda
