// What the kernels of select.cu share: where the search stands, how a block goes through its losses, its totals.
// Must not know: what is searched for.
#pragma once

#include "cuda/reduce.h"
#include "hardest.h"

namespace focal::cuda::selection {

constexpr unsigned kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kDigitBits = 11;
constexpr unsigned kDigits = 1u << kDigitBits;
constexpr unsigned kUnroll = 4;  // vectors in flight for each thread
template <class Real>
constexpr unsigned kVector = 16 / sizeof(Real);
template <class Real>
constexpr unsigned kTile = kThreads * kVector<Real> * kUnroll;

// Where the search stands, between kernels.
struct Search {
  int64_t k;
  int64_t low;     // of the range of keys that the k-th largest is in
  int64_t rank;    // of the k-th largest in that range, from the largest
  int64_t within;  // losses in that range; rank == within == 0: all is settled
};

struct Sum {
  double sum;
  int64_t count;
};

// What kernels share; all in the workspace but the losses, the mean and kept.
template <class Real>
struct Arguments {
  const Real* losses;
  bool aligned;  // to 16 bytes
  int64_t n, per_block, blocks;
  Search* search;
  unsigned long long* counts;  // [kDigits], of every digit but 0, which is what remains
  Sum* sums;                   // [blocks]
  Real* mean;
  Kept* kept;
};

// A pass over losses: keys from `low` on have the digits (key - low) >> shift, of which there are `digits`.
struct Digit {
  int shift;
  unsigned digits;
};

// Counters that threads add to in any order.
FOCAL_DEVICE void count_shared(uint32_t* counter) {
#if defined(FOCAL_SIMT)
  ++*counter;
#else
  atomicAdd(counter, 1u);
#endif
}

FOCAL_DEVICE void add_global(unsigned long long* counter, unsigned long long value) {
#if defined(FOCAL_SIMT)
  simt::check(counter, sizeof *counter, true);
  *counter += value;
#else
  atomicAdd(counter, value);
#endif
}

FOCAL_DEVICE Search load_search(const Search* search) {
  return {load(&search->k), load(&search->low), load(&search->rank), load(&search->within)};
}

FOCAL_DEVICE void store_search(Search* to, const Search& search) {
  store(&to->k, search.k);
  store(&to->low, search.low);
  store(&to->rank, search.rank);
  store(&to->within, search.within);
}

FOCAL_DEVICE bool settled(const Search& search) { return search.within == 0; }

template <class Real>
FOCAL_DEVICE void store_result(const Arguments<Real>& a, double mean, int64_t key, int64_t last, double share) {
  store(a.mean, static_cast<Real>(mean));
  store(&a.kept->key, key);
  store(&a.kept->last, last);
  store(&a.kept->share, share);
}

template <class Real>
FOCAL_DEVICE void store_nothing(const Arguments<Real>& a) {
  store_result(a, 0, Order<Real>::kNaN, -1, 0);
}

// body(vector of losses, index of the first in the block) for the block's whole tiles, body(loss, index) for the rest.
// Which thread sees which loss does not depend on where they lie.
template <class Real, class Body>
FOCAL_DEVICE void for_losses(const Arguments<Real>& a, const Body& body) {
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * a.per_block;
  const int64_t left = a.n - begin;
  const unsigned count = static_cast<unsigned>(left < a.per_block ? left : a.per_block);
  const Real* losses = a.losses + begin;
  const unsigned whole = count / kTile<Real> * kTile<Real>;
  for (unsigned i = threadIdx.x * kVector<Real>; i < whole; i += kTile<Real>) {
    Vector<Real, kVector<Real>> vectors[kUnroll];
#pragma unroll
    for (unsigned u = 0; u < kUnroll; ++u)
      vectors[u] = load_vector<Cache::kKeep, kVector<Real>>(losses + i + u * kThreads * kVector<Real>, a.aligned);
#pragma unroll
    for (unsigned u = 0; u < kUnroll; ++u) body(vectors[u], i + u * kThreads * kVector<Real>);
  }
  for (unsigned i = whole + threadIdx.x; i < count; i += kThreads) {
    Vector<Real, 1> loss{};
    loss.put(0, load(losses + i));
    body(loss, i);
  }
}

// body(loss) for each of a block's losses.
template <class Real, class Body>
FOCAL_DEVICE void for_each_loss(const Arguments<Real>& a, const Body& body) {
  for_losses(a, [&](const auto& vector, unsigned) {
#pragma unroll
    for (int j = 0; j < vector.kWords * 4 / static_cast<int>(sizeof(Real)); ++j) body(vector.get(j));
  });
}

struct Shares {
  double sum[kWarps];
  long long count[kWarps];
};

// The block's total, in thread 0: lanes by shuffles, then warps in order. Every thread of the block comes here, once.
FOCAL_DEVICE Sum block_total(double sum, int64_t count) {
  FOCAL_SHARED(Shares, shares);
  sum = warp_sum(sum);
  const long long both = warp_sum(static_cast<long long>(count));
  if (threadIdx.x % kWarp == 0) {
    shares.sum[threadIdx.x / kWarp] = sum;
    shares.count[threadIdx.x / kWarp] = both;
  }
  __syncthreads();
  Sum total{0, 0};
  if (threadIdx.x == 0) {
    for (unsigned w = 0; w < kWarps; ++w) {
      total.sum += shares.sum[w];
      total.count += shares.count[w];
    }
  }
  return total;
}

// The total of the later threads of the block. Every thread of the block comes here, once.
FOCAL_DEVICE int64_t total_behind(int64_t mine) {
  FOCAL_SHARED(Shares, shares);
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  long long total = mine;
#pragma unroll
  for (unsigned distance = 1; distance < kWarp; distance *= 2) {
    const long long other = __shfl_down_sync(kAllLanes, total, distance);
    if (lane + distance < kWarp) total += other;
  }
  if (lane == 0) shares.count[warp] = total;
  __syncthreads();
  for (unsigned w = warp + 1; w < kWarps; ++w) total += shares.count[w];
  return total - mine;
}

}  // namespace focal::cuda::selection
