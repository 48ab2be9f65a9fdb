// What the two kinds of rows kernels share: exponents, a row's label, memory on its way into shared memory, clusters.
// Must not know: which loss Term is, torch.
#pragma once

#include "cuda/softmax.h"

namespace focal::cuda {

template <class Storage>
constexpr int kRowVector = 16 / static_cast<int>(sizeof(Storage));

using Line = Vector<uint32_t, 4>;  // 16 bytes

// Rows as a kernel's parameter: runs of them, each with one distance from row to row, in at most two more dimensions.
struct RowRuns {
  static constexpr int kDims = 3;
  int32_t rows = 0;                  // of a run
  int32_t runs = 0, inner_runs = 0;  // in all, and of the inner one of the two dimensions
  FastDivisor by_rows;
  int64_t stride[2][kOperands];  // from run to run: of the outer and of the inner dimension
  int32_t pitch[kOperands];      // from row to row

  FOCAL_DEVICE void locate(uint32_t run, int64_t (&offset)[kOperands]) const {
#pragma unroll
    for (int o = 0; o < kOperands; ++o) offset[o] = 0;
    if (runs == 1) return;
    const uint32_t outer = run / static_cast<uint32_t>(inner_runs), inner = run - outer * inner_runs;
#pragma unroll
    for (int o = 0; o < kOperands; ++o) offset[o] = outer * stride[0][o] + inner * stride[1][o];
  }
};

// Logits relative to the largest of the other classes, in units of Math. Where that is near zero it is taken off by the
// instruction that changes units, and its rounding is in everything and cancels; where it is far, before.
template <class Math>
struct Relative {
  float shift, units;
  bool far;

  FOCAL_DEVICE explicit Relative(float largest) : shift(shift_of(largest)) {
    far = !(absolute(shift) < Math::kNear);
    units = far ? 0 : Math::to_units(shift);
  }
  // Of a logit; where the shift is far, of one from which it has been taken.
  FOCAL_DEVICE float near(float x) const { return Math::between_units(x, units); }
  FOCAL_DEVICE float operator()(float x) const { return near(far ? x - shift : x); }
};

FOCAL_DEVICE Line shared_line(const Line* from) {
#if defined(__CUDA_ARCH__)
  return bit_cast<Line>(*reinterpret_cast<const uint4*>(from));
#else
  return *from;
#endif
}

FOCAL_DEVICE void set_shared_line(Line* to, const Line& line) {
#if defined(__CUDA_ARCH__)
  *reinterpret_cast<uint4*>(to) = bit_cast<uint4>(line);
#else
  *to = line;
#endif
}

// 16 bytes of global into shared memory, where they are after wait_for_copies and a barrier. Older GPUs wait at once.
FOCAL_DEVICE void start_copy(Line* shared, const void* global) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(shared))),
      "l"(global)
      : "memory");
#else
  set_shared_line(shared, load<Cache::kOnce>(static_cast<const Line*>(global)));
#endif
}

FOCAL_DEVICE void wait_for_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// A block's number in its cluster, the barrier of the cluster's threads, and a variable of another block. GPUs without
// clusters are never asked for one.
FOCAL_DEVICE unsigned cluster_rank() {
#if defined(FOCAL_SIMT)
  return simt::cluster_rank();
#else
  unsigned rank = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
#endif
}

FOCAL_DEVICE void cluster_barrier() {
#if defined(FOCAL_SIMT)
  simt::cluster_barrier();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\n barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __trap();
#endif
}

FOCAL_DEVICE float cluster_read(const float* variable, unsigned rank) {
#if defined(FOCAL_SIMT)
  return *simt::cluster_map(variable, rank);
#else
  float value = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("{.reg .u32 there; mapa.shared::cluster.u32 there, %1, %2; ld.shared::cluster.f32 %0, [there];}"
               : "=f"(value)
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(variable))), "r"(rank)
               : "memory");
#endif
  return value;
#endif
}

struct Larger {
  static constexpr float kNothing = -std::numeric_limits<float>::infinity();
  FOCAL_DEVICE float operator()(float a, float b) const { return fmaxf(a, b); }
};
struct Added {
  static constexpr float kNothing = 0;
  FOCAL_DEVICE float operator()(float a, float b) const { return a + b; }
};

// Over groups of `lanes` lanes, a power of two; every lane gets the same bits.
template <class Join>
FOCAL_DEVICE float over_lanes(float value, int lanes, Join join) {
  for (int distance = lanes / 2; distance > 0; distance /= 2)
    value = join(value, __shfl_xor_sync(kAllLanes, value, distance));
  return value;
}

}  // namespace focal::cuda
