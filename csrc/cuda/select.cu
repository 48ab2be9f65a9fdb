// The k hardest of n losses: radix selection on the bits of the losses, eleven at a time from the highest.
//   mapping        a block takes per_block losses, vectors of 16 bytes by neighbouring threads; kernels between two passes
//                  are one block
//   traffic        float32: the losses read three times (float64: six); once more for a threshold, and where the k-th
//                  largest has equals of which some are left out. The gradient reads them once and is written once.
//   determinism    counts are integers, added in any order; sums are added in a fixed order, in float64. Of equal losses
//                  the first are taken.
//   participation  every thread of a block comes to every barrier; a kernel that has nothing to do ends as a whole
// Nothing is read by the host: later kernels find out on the device that an earlier one has settled everything.
#include <algorithm>

#include "cuda/plan.h"
#include "cuda/select.h"
#include "cuda/select_search.h"

namespace focal::cuda {
namespace {

using namespace selection;

// Mapping: one block.
template <class Real>
__global__ void __launch_bounds__(kThreads)
    select_begin_kernel(const Arguments<Real> a, const HardestRule rule, const void* counted, DType counted_dtype) {
  for (unsigned d = threadIdx.x; d < kDigits; d += kThreads) store(a.counts + d, 0ull);
  if (threadIdx.x != 0) return;
  const double n = counted_dtype == DType::kFloat64 ? load(static_cast<const double*>(counted))
                                                    : static_cast<double>(load(static_cast<const int64_t*>(counted)));
  const int64_t k = rule.by_ratio(n, a.n);
  const bool none = a.n == 0 || !(n > 0);
  if (none) store_nothing(a);
  store_search(a.search, {k, 0, none ? 0 : k, none ? 0 : a.n});
}

// Sums and counts the losses above the threshold.
template <class Real>
__global__ void __launch_bounds__(kThreads) select_above_kernel(const Arguments<Real> a, Key<Real> threshold) {
  if (settled(load_search(a.search))) return;
  double sum = 0;
  int64_t count = 0;
  for_each_loss(a, [&](Real loss) {
    if (key_of(loss) > threshold) {
      sum += static_cast<double>(loss);
      ++count;
    }
  });
  const Sum total = block_total(sum, count);
  if (threadIdx.x == 0) {
    store(&a.sums[blockIdx.x].sum, total.sum);
    store(&a.sums[blockIdx.x].count, total.count);
  }
}

// Mapping: one block; a thread adds every 256th record.
template <class Real>
__global__ void __launch_bounds__(kThreads) select_settle_kernel(const Arguments<Real> a, Key<Real> threshold) {
  const Search search = load_search(a.search);
  if (settled(search)) return;
  double sum = 0;
  int64_t count = 0;
  for (int64_t b = threadIdx.x; b < a.blocks; b += kThreads) {
    sum += load(&a.sums[b].sum);
    count += load(&a.sums[b].count);
  }
  const Sum above = block_total(sum, count);
  if (threadIdx.x != 0 || above.count < search.k) return;
  store_search(a.search, {});
  if (above.count == 0) return store_nothing(a);
  const double taken = static_cast<double>(above.count);
  store_result(a, above.sum / taken, threshold, -1, 1 / taken);
}

struct Counters {
  uint32_t of[kDigits];
};

// Counts the digits of the keys in the range; in the last pass sums the losses above it, too. Digit 0 is not counted, so
// that the many losses that are 0 do not wait for each other at one counter.
template <class Real, bool last>
__global__ void __launch_bounds__(kThreads) select_digits_kernel(const Arguments<Real> a, const Digit digit) {
  using Unsigned = typename Order<Real>::Unsigned;
  FOCAL_SHARED(Counters, counters);
  const Search search = load_search(a.search);
  if (settled(search)) return;
  for (unsigned d = threadIdx.x; d < digit.digits; d += kThreads) counters.of[d] = 0;
  __syncthreads();
  const Key<Real> low = static_cast<Key<Real>>(search.low), high = low + static_cast<Key<Real>>(digit.digits - 1);
  double sum = 0;
  for_each_loss(a, [&](Real loss) {
    const Key<Real> key = key_of(loss);
    const Unsigned at = static_cast<Unsigned>(key - low) >> digit.shift;
    if (at - 1 < digit.digits - 1) count_shared(&counters.of[at]);
    if (last && key > high) sum += static_cast<double>(loss);
  });
  __syncthreads();
  for (unsigned d = threadIdx.x; d < digit.digits; d += kThreads) {
    if (counters.of[d] > 0) add_global(a.counts + d, counters.of[d]);
  }
  if (last) {
    const Sum total = block_total(sum, 0);
    if (threadIdx.x == 0) store(&a.sums[blockIdx.x].sum, total.sum);
  }
}

struct Chosen {
  unsigned digit;
  int64_t rank, within;
};

// Finds the digit of the k-th largest; the range becomes that digit's. After the last pass a digit is a key, so that the
// losses of higher ones are summed by their counts. Mapping: one block, neighbouring digits by a thread.
template <class Real, bool last>
__global__ void __launch_bounds__(kThreads) select_choose_kernel(const Arguments<Real> a, const Digit digit) {
  FOCAL_SHARED(Chosen, chosen);
  const Search search = load_search(a.search);
  if (settled(search)) return;
  const unsigned each = (digit.digits + kThreads - 1) / kThreads;
  const unsigned begin = threadIdx.x * each, end = min(begin + each, digit.digits);
  int64_t mine = 0;
  for (unsigned d = begin; d < end; ++d) mine += static_cast<int64_t>(load(a.counts + d));
  const int64_t behind = total_behind(mine);
  if (behind < search.rank && search.rank <= behind + mine) {
    unsigned d = end - 1;
    int64_t rank = search.rank - behind, within;
    while (rank > (within = static_cast<int64_t>(load(a.counts + d)))) rank -= within, --d;
    chosen.digit = d;
    chosen.rank = rank;
    chosen.within = within;
  } else if (threadIdx.x == 0 && search.rank > behind + mine) {
    chosen.digit = 0;
    chosen.rank = search.rank - behind - mine;
    chosen.within = search.within - behind - mine;
  }
  __syncthreads();
  const int64_t low = search.low + (static_cast<int64_t>(chosen.digit) << digit.shift);
  double sum = 0;
  for (unsigned d = begin; d < end; ++d) {
    const unsigned long long count = load(a.counts + d);
    if (last && d > chosen.digit && count > 0)
      sum += static_cast<double>(count) *
             static_cast<double>(bit_cast<Real>(static_cast<Key<Real>>(search.low + static_cast<int64_t>(d))));
    store(a.counts + d, 0ull);
  }
  if (last) {
    for (int64_t b = threadIdx.x; b < a.blocks; b += kThreads) sum += load(&a.sums[b].sum);
    sum = block_total(sum, 0).sum;
  }
  if (threadIdx.x != 0) return;
  store_search(a.search, {search.k, low, chosen.rank, chosen.within});
  if (last) {
    const double k = static_cast<double>(search.k);
    sum += static_cast<double>(chosen.rank) * static_cast<double>(bit_cast<Real>(static_cast<Key<Real>>(low)));
    store_result(a, sum / k, low, a.n - 1, 1 / k);
  }
}

// Where some of the losses that equal the k-th largest are left out, counts them in every block.
template <class Real>
__global__ void __launch_bounds__(kThreads) select_equal_kernel(const Arguments<Real> a) {
  const Search search = load_search(a.search);
  if (search.rank == search.within) return;
  int64_t count = 0;
  for_each_loss(a, [&](Real loss) { count += key_of(loss) == static_cast<Key<Real>>(search.low); });
  const Sum total = block_total(0, count);
  if (threadIdx.x == 0) store(&a.sums[blockIdx.x].count, total.count);
}

struct Place {
  int64_t block, rank;
};

struct WarpCounts {
  unsigned of[kWarps];
};

// Finds the last of them that is kept. Mapping: one block; the blocks' counts by neighbouring threads from the end, then
// the losses of the block that it lies in, in order, by all threads.
template <class Real>
__global__ void __launch_bounds__(kThreads) select_cut_kernel(const Arguments<Real> a) {
  FOCAL_SHARED(Place, place);
  FOCAL_SHARED(WarpCounts, counts);
  const Search search = load_search(a.search);
  if (search.rank == search.within) return;
  const int64_t each = (a.blocks + kThreads - 1) / kThreads;
  const int64_t first = static_cast<int64_t>(kThreads - 1 - threadIdx.x) * each;
  const int64_t behind = first + each < a.blocks ? first + each : a.blocks;
  int64_t mine = 0;
  for (int64_t b = first; b < behind; ++b) mine += load(&a.sums[b].count);
  const int64_t before = total_behind(mine);
  if (before < search.rank && search.rank <= before + mine) {
    int64_t rank = search.rank - before, b = first, count;
    while (rank > (count = load(&a.sums[b].count))) rank -= count, ++b;
    place.block = b;
    place.rank = rank;
  }
  __syncthreads();
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t begin = place.block * a.per_block;
  const int64_t end = begin + a.per_block < a.n ? begin + a.per_block : a.n;
  int64_t rank = place.rank;
  for (int64_t tile = begin; tile < end && rank > 0; tile += kThreads) {
    const int64_t i = tile + threadIdx.x;
    const bool equal = i < end && key_of(load(a.losses + i)) == static_cast<Key<Real>>(search.low);
    const unsigned lanes = __ballot_sync(kAllLanes, equal);
    if (lane == 0) counts.of[warp] = static_cast<unsigned>(__popc(lanes));
    __syncthreads();
    int64_t total = 0, at = __popc(lanes & ((2u << lane) - 1));  // up to this lane
    for (unsigned w = 0; w < kWarps; ++w) {
      total += counts.of[w];
      if (w < warp) at += counts.of[w];
    }
    if (equal && at == rank) store(&a.kept->last, i);
    rank -= total;
    __syncthreads();
  }
}

template <class Real>
struct GradientArguments {
  Arguments<Real> losses;
  Real* gradient;
  bool aligned;  // to 16 bytes
  const Real* upstream;
};

template <class Real>
__global__ void __launch_bounds__(kThreads) select_gradient_kernel(const GradientArguments<Real> a) {
  const Key<Real> key = static_cast<Key<Real>>(load(&a.losses.kept->key));
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * a.losses.per_block;
  const auto limit = static_cast<unsigned>(keeps_equal(load(&a.losses.kept->last), begin, 1, a.losses.per_block));
  const Real value = static_cast<Real>(static_cast<double>(load(a.upstream)) * load(&a.losses.kept->share));
  Real* gradient = a.gradient + begin;
  for_losses(a.losses, [&](auto vector, unsigned i) {
    constexpr int count = vector.kWords * 4 / static_cast<int>(sizeof(Real));
    decltype(vector) result{};
#pragma unroll
    for (int j = 0; j < count; ++j) {
      const Key<Real> here = key_of(vector.get(j));
      result.put(j, here > key || (here == key && i + j < limit) ? value : Real(0));
    }
    if (count == 1 || a.aligned) {
      store_vector<Cache::kKeep>(gradient + i, result);
    } else {
#pragma unroll
      for (int j = 0; j < count; ++j) store(gradient + i + j, result.get(j));
    }
  });
}

template <class Real>
int64_t per_block(int64_t n) {
  return std::max<int64_t>(1, divide_up(divide_up(n, kFewBlocks), kTile<Real>)) * kTile<Real>;
}

template <class Real>
Arguments<Real> arguments(const void* losses, int64_t n) {
  Arguments<Real> a{};
  a.losses = static_cast<const Real*>(losses);
  a.aligned = lies_on_16_bytes(losses);
  a.n = n;
  a.per_block = per_block<Real>(n);
  a.blocks = divide_up(n, a.per_block);
  return a;
}

template <class Real, bool last>
cudaError_t pass(const Arguments<Real>& a, const Digit& digit, cudaStream_t stream) {
  const cudaError_t error =
      FOCAL_LAUNCH((Grid{a.blocks, kThreads}), stream, (select_digits_kernel<Real, last>), a, digit);
  if (error != cudaSuccess) return error;
  return FOCAL_LAUNCH((Grid{1, kThreads}), stream, (select_choose_kernel<Real, last>), a, digit);
}

template <class Real>
cudaError_t select(const SelectTask& task, cudaStream_t stream) {
  Arguments<Real> a = arguments<Real>(task.losses, task.n);
  a.search = static_cast<Search*>(task.workspace);
  a.counts = reinterpret_cast<unsigned long long*>(a.search + 1);
  a.sums = reinterpret_cast<Sum*>(a.counts + kDigits);
  a.mean = static_cast<Real*>(task.mean);
  a.kept = task.kept;
  const Grid all{a.blocks, kThreads}, one{1, kThreads};
  cudaError_t error =
      FOCAL_LAUNCH(one, stream, select_begin_kernel<Real>, a, task.rule, task.counted, task.counted_dtype);
  if (task.n == 0) return error;
  if (task.rule.threshold >= 0) {
    const Key<Real> threshold = key_of(static_cast<Real>(task.rule.threshold));
    if (error == cudaSuccess) error = FOCAL_LAUNCH(all, stream, select_above_kernel<Real>, a, threshold);
    if (error == cudaSuccess) error = FOCAL_LAUNCH(one, stream, select_settle_kernel<Real>, a, threshold);
  }
  if (task.rule.keep_ratio <= 0) return error;
  for (int bits = Order<Real>::kBits; bits > 0 && error == cudaSuccess; bits -= kDigitBits) {
    const int shift = std::max(0, bits - kDigitBits);
    const Digit digit{shift, 1u << (bits - shift)};
    error = shift > 0 ? pass<Real, false>(a, digit, stream) : pass<Real, true>(a, digit, stream);
  }
  if (error == cudaSuccess) error = FOCAL_LAUNCH(all, stream, select_equal_kernel<Real>, a);
  if (error == cudaSuccess) error = FOCAL_LAUNCH(one, stream, select_cut_kernel<Real>, a);
  return error;
}

template <class Real>
cudaError_t gradient_of(const void* losses, void* gradient, int64_t n, const Kept* kept, const void* upstream,
                        cudaStream_t stream) {
  GradientArguments<Real> a{arguments<Real>(losses, n), static_cast<Real*>(gradient), lies_on_16_bytes(gradient),
                            static_cast<const Real*>(upstream)};
  a.losses.kept = const_cast<Kept*>(kept);
  return FOCAL_LAUNCH((Grid{a.losses.blocks, kThreads}), stream, select_gradient_kernel<Real>, a);
}

}  // namespace

size_t workspace_bytes(const SelectTask& task) {
  const int64_t each = task.dtype == DType::kFloat64 ? per_block<double>(task.n) : per_block<float>(task.n);
  return sizeof(Search) + kDigits * sizeof(unsigned long long) + divide_up(task.n, each) * sizeof(Sum);
}

cudaError_t select_hardest(const SelectTask& task, cudaStream_t stream) {
  return task.dtype == DType::kFloat64 ? select<double>(task, stream) : select<float>(task, stream);
}

cudaError_t hardest_gradient(const void* losses, void* gradient, DType dtype, int64_t n, const Kept* kept,
                             const void* upstream, cudaStream_t stream) {
  const auto run = dtype == DType::kFloat64 ? gradient_of<double> : gradient_of<float>;
  return run(losses, gradient, n, kept, upstream, stream);
}

}  // namespace focal::cuda
