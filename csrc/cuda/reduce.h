// What a block sums and what it leaves behind, and the scalars kernels begin with.
// Order: shuffles within a warp, then warps in order, so that a block's sum has the same bits on every run.
// Must not know: the loss, layouts.
#pragma once

#include "cuda/memory.h"
#include "cuda/task.h"

namespace focal::cuda {

constexpr unsigned kWarp = 32, kAllLanes = 0xffffffffu;
constexpr int kMaxWarps = 32;

template <class T>
FOCAL_DEVICE T warp_sum(T value) {
#pragma unroll
  for (unsigned distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
}

// What a thread collects on its way: the loss, ignored dense targets, a target that is out of range.
template <class Real>
struct Findings {
  Real sum = 0;
  int32_t ignored = 0;
  int64_t invalid = kAllValid;
};

struct BlockShares {
  double sum[kMaxWarps];
  int64_t ignored[kMaxWarps];
  int64_t invalid[kMaxWarps];
};

// Every thread of the block comes here, once. unit: of the sum.
template <class Real>
FOCAL_DEVICE void leave_partial(const Findings<Real>& found, double unit, Partial* partials) {
  if (!partials) return;
  FOCAL_SHARED(BlockShares, shares);
  const unsigned warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const double sum = warp_sum(static_cast<double>(found.sum) * unit);
  const int ignored = warp_sum(found.ignored);
  if (lane == 0) {
    shares.sum[warp] = sum;
    shares.ignored[warp] = ignored;
    shares.invalid[warp] = kAllValid;
  }
  __syncwarp();
  // Whichever thread of the warp comes last: one is as good as another.
  if (found.invalid != kAllValid) shares.invalid[warp] = found.invalid;
  __syncthreads();
  if (threadIdx.x == 0) {
    Partial partial{0, 0, kAllValid};
    for (unsigned w = 0; w < blockDim.x / kWarp; ++w) {
      partial.sum += shares.sum[w];
      partial.ignored += shares.ignored[w];
      if (shares.invalid[w] != kAllValid) partial.invalid = shares.invalid[w];
    }
    Partial* mine = partials + blockIdx.x;
    store(&mine->sum, partial.sum);
    store(&mine->ignored, partial.ignored);
    store(&mine->invalid, partial.invalid);
  }
}

// What gradients are multiplied by; false: they are there already, and the kernel has nothing to do.
template <class Real>
FOCAL_DEVICE bool begin(const Scaling& scaling, Real& scale) {
  scale = static_cast<Real>(scaling.scale);
  if (scaling.device_scale) scale = static_cast<Real>(scaling.scale * load(scaling.device_scale));
  if (scaling.upstream) {
    const Real upstream = load(static_cast<const Real*>(scaling.upstream));
    if (scaling.filled && upstream == Real(1)) return false;
    scale *= upstream;
  }
  return true;
}

}  // namespace focal::cuda
