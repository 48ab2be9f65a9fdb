// The small kernels around an engine: counting labels, settling what a sum is multiplied by, adding up what the blocks
// left behind, and stopping where a target is out of range.
//   traffic        scan reads the targets once; the others read one record for each block
//   determinism    counts are integers; the sum adds the blocks' records in a fixed order, in float64
#include <algorithm>
#include <cstdio>
#if defined(FOCAL_SIMT)
#include <stdexcept>
#include <string>
#endif

#include "cuda/labels.h"
#include "cuda/places.h"
#include "cuda/plan.h"
#include "cuda/reduce.h"

namespace focal::cuda {
namespace {

constexpr unsigned kScanThreads = 256, kFinishThreads = 1024;
constexpr int64_t kScanPerThread = 16, kScanBlocks = 1024;

struct ScanArguments {
  Outer all;
  const void* targets;
  DType dtype;
  bool dense;
  IndexRule index;
  DenseRule dense_rule;
  int64_t count, per_block;
  Counts* counts;
};

struct WarpCounts {
  int64_t counted[kMaxWarps], positives[kMaxWarps];
};

FOCAL_DEVICE int64_t warp_total(int64_t value) { return warp_sum(static_cast<long long>(value)); }

// The block's total, in thread 0. Every thread of the block comes here.
FOCAL_DEVICE Counts block_total(Counts mine) {
  FOCAL_SHARED(WarpCounts, shares);
  const unsigned warp = threadIdx.x / kWarp;
  mine = {warp_total(mine.counted), warp_total(mine.positives)};
  if (threadIdx.x % kWarp == 0) {
    shares.counted[warp] = mine.counted;
    shares.positives[warp] = mine.positives;
  }
  __syncthreads();
  Counts total{0, 0};
  if (threadIdx.x == 0) {
    for (unsigned w = 0; w < blockDim.x / kWarp; ++w) {
      total.counted += shares.counted[w];
      total.positives += shares.positives[w];
    }
  }
  return total;
}

// Mapping: a block takes per_block targets, neighbours by neighbouring threads.
__global__ void __launch_bounds__(kScanThreads) scan_kernel(const ScanArguments a) {
  Counts mine{0, 0};
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * a.per_block;
  const int64_t end = begin + a.per_block < a.count ? begin + a.per_block : a.count;
  for (int64_t i = begin + threadIdx.x; i < end; i += kScanThreads) {
    int64_t offset[kOperands];
    a.all.locate(i, offset);
    if (a.dense) {
      const double target = load_target<double>(a.targets, a.dtype, offset[kTargets]);
      mine.counted += a.dense_rule.counted(target);
      mine.positives += a.dense_rule.positive(target);
    } else {
      const int64_t label = load_label(a.targets, a.dtype, offset[kTargets]);
      mine.counted += a.index.counted(label);
      mine.positives += a.index.positive(label);
    }
  }
  const Counts total = block_total(mine);
  if (threadIdx.x == 0) {
    store(&a.counts[blockIdx.x].counted, total.counted);
    store(&a.counts[blockIdx.x].positives, total.positives);
  }
}

// Mapping: one block; a thread adds every 256th record.
__global__ void __launch_bounds__(kScanThreads)
    settle_kernel(const ScaleRule rule, const Counts* counts, int64_t blocks, double* applied) {
  Counts mine{0, 0};
  for (int64_t b = threadIdx.x; b < blocks; b += kScanThreads) {
    mine.counted += load(&counts[b].counted);
    mine.positives += load(&counts[b].positives);
  }
  const Counts total = block_total(mine);
  if (threadIdx.x == 0) {
    double scale = scale_of(rule.reduction, rule.scale, static_cast<double>(total.counted) * rule.per_position,
                            static_cast<double>(total.positives));
    if (rule.normalizer) scale *= inverse(load_target<double>(rule.normalizer, rule.normalizer_dtype, 0));
    store(applied, scale);
  }
}

struct FinishArguments {
  FinishTask task;
  const void* targets;
  DType target_dtype;
  bool dense, softmax;
  IndexRule index;
  DenseRule dense_rule;
};

// One line, as the CPU's exception would have it, and the end of the CUDA context. Out of line: printf keeps a frame.
__device__ __noinline__ void stop(const FinishArguments& a, int64_t offset) {
#if defined(FOCAL_SIMT)
  // The emulation ends in the exception that the CPU would throw.
  std::string line;
  const auto print = [&](const char* format, auto... values) {
    char text[256];
    std::snprintf(text, sizeof text, format, values...);
    line += text;
  };
#define FOCAL_PRINT(...) print(__VA_ARGS__)
#else
#define FOCAL_PRINT(...) printf(__VA_ARGS__)
#endif
  int64_t index[Naming::kRank];
  int64_t rest = offset;
  const Naming& naming = a.task.naming;
  for (int k = 0; k < naming.rank; ++k) {
    const int d = naming.order[k];
    index[d] = naming.strides[d] > 0 ? rest / naming.strides[d] : 0;
    if (index[d] >= naming.sizes[d]) index[d] = naming.sizes[d] - 1;
    rest -= index[d] * naming.strides[d];
  }
  const char* name = a.softmax ? "softmax_focal_loss" : "sigmoid_focal_loss";
  if (a.dense) {
    FOCAL_PRINT("%s: expected dense targets %s or equal to ignore_index (%g), got targets[", name,
                a.dense_rule.binary ? "0, 1" : "in [0, 1]", a.dense_rule.ignore_value);
  } else if (a.index.background_allowed) {
    FOCAL_PRINT("%s: expected class labels in [0, %lld), background_index (%lld) or ignore_index (%lld), got targets[",
                name, static_cast<long long>(a.index.classes), static_cast<long long>(a.index.background_index),
                static_cast<long long>(a.index.ignore_index));
  } else {
    FOCAL_PRINT("%s: expected class labels in [0, %lld) or ignore_index (%lld), got targets[", name,
                static_cast<long long>(a.index.classes), static_cast<long long>(a.index.ignore_index));
  }
  for (int d = 0; d < naming.rank; ++d) FOCAL_PRINT(d ? ", %lld" : "%lld", static_cast<long long>(index[d]));
  if (a.dense) {
    FOCAL_PRINT("] = %g; clamp them, or of a mask take mask > 0.",
                load_target<double>(a.targets, a.target_dtype, offset));
  } else {
    FOCAL_PRINT("] = %lld; fix the labels or set %signore_index.",
                static_cast<long long>(load_label(a.targets, a.target_dtype, offset)),
                a.index.background_allowed ? "background_index or " : "");
  }
#if defined(FOCAL_SIMT)
  if (a.dense) throw std::invalid_argument(line);
  throw std::out_of_range(line);
#else
  printf("\n");
  __trap();
#endif
}

// Mapping: one block; neighbouring records by neighbouring threads, then the sums of the threads in order.
__global__ void __launch_bounds__(kFinishThreads) finish_kernel(const FinishArguments a) {
  FOCAL_SHARED(BlockShares, shares);
  const FinishTask& task = a.task;
  double sum = 0;
  long long ignored = 0;
  int64_t invalid = kAllValid;
#pragma unroll 4
  for (int64_t b = threadIdx.x; b < task.blocks; b += blockDim.x) {
    sum += load(&task.partials[b].sum);
    ignored += load(&task.partials[b].ignored);
    const int64_t found = load(&task.partials[b].invalid);
    if (found != kAllValid) invalid = found;
  }
  sum = warp_sum(sum);
  ignored = warp_sum(ignored);
  const unsigned warp = threadIdx.x / kWarp;
  if (threadIdx.x % kWarp == 0) {
    shares.sum[warp] = sum;
    shares.ignored[warp] = ignored;
    shares.invalid[warp] = kAllValid;
  }
  __syncwarp();
  if (invalid != kAllValid) shares.invalid[warp] = invalid;
  __syncthreads();
  if (threadIdx.x != 0) return;
  sum = 0, ignored = 0;
  for (unsigned w = 0; w < blockDim.x / kWarp; ++w) {
    sum += shares.sum[w];
    ignored += shares.ignored[w];
    if (shares.invalid[w] != kAllValid) invalid = shares.invalid[w];
  }
  if (invalid != kAllValid) stop(a, invalid);
  double scale = task.scale;
  if (task.mean_of > 0) scale = inverse(task.mean_of - static_cast<double>(ignored));
  if (task.count_of >= 0) scale = task.count_of - static_cast<double>(ignored);
  if (task.settled) {
    scale = load(task.applied);
  } else if (task.applied) {
    store(task.applied, scale);
  }
  const bool wide = task.loss_dtype == DType::kFloat64;
  const auto write = [&](void* to, double value) {
    if (!to) return;
    wide ? store(static_cast<double*>(to), value) : store(static_cast<float*>(to), static_cast<float>(value));
  };
  write(task.loss, sum * scale);
  write(task.correction, ignored == 0 ? 1.0 : scale * task.mean_of);
}

struct ScaleArguments {
  Outer all;
  void* data;
  const void* factor;
  int64_t count, per_block;
  bool vectors;  // one run of neighbours from a 16-byte boundary
};

// Mapping: a block takes per_block elements, in vectors where they are neighbours. Traffic: read and written once, or not
// at all.
template <class Storage, class Real>
__global__ void __launch_bounds__(kScanThreads) scale_kernel(const ScaleArguments a) {
  constexpr int kCount = 16 / static_cast<int>(sizeof(Storage));
  const Real factor = load(static_cast<const Real*>(a.factor));
  if (factor == Real(1)) return;
  Storage* data = static_cast<Storage*>(a.data);
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * a.per_block;
  const int64_t end = begin + a.per_block < a.count ? begin + a.per_block : a.count;
  const int64_t whole = a.vectors ? begin + (end - begin) / kCount * kCount : begin;
  for (int64_t i = begin + static_cast<int64_t>(threadIdx.x) * kCount; i < whole; i += kScanThreads * kCount) {
    Real x[kCount];
    widen(load_vector<Cache::kOnce, kCount>(data + i), x);
#pragma unroll
    for (int k = 0; k < kCount; ++k) x[k] *= factor;
    store_vector<Cache::kOnce>(data + i, narrow<Storage>(x));
  }
  for (int64_t i = whole + threadIdx.x; i < end; i += kScanThreads) {
    int64_t offset[kOperands];
    a.all.locate(i, offset);
    Storage* element = data + offset[kLogits];
    store(element, from_real<Storage>(to_real<Real>(load(element)) * factor));
  }
}

}  // namespace

cudaError_t scale(const Positions& given, const Tensor& data, const void* factor, cudaStream_t stream) {
  ScaleArguments a{};
  Positions positions = given;
  positions.order_by(kLogits);
  positions.collapse();
  positions.require_innermost();
  if (!a.all.assign(positions.dims, positions.rank)) return cudaErrorInvalidValue;
  a.data = data.data;
  a.factor = factor;
  a.count = positions.count;
  a.vectors = positions.rank == 1 && positions.innermost().stride[kLogits] == 1 && lies_on_16_bytes(data.data);
  a.per_block = std::max<int64_t>(round_up(divide_up(a.count, kManyBlocks), 16), kScanThreads * 16);
  const Grid grid{divide_up(a.count, a.per_block), kScanThreads};
  switch (data.dtype) {
    case DType::kFloat32: return FOCAL_LAUNCH(grid, stream, (scale_kernel<float, float>), a);
    case DType::kFloat16: return FOCAL_LAUNCH(grid, stream, (scale_kernel<Half, float>), a);
    case DType::kBFloat16: return FOCAL_LAUNCH(grid, stream, (scale_kernel<BFloat16, float>), a);
    default: return FOCAL_LAUNCH(grid, stream, (scale_kernel<double, double>), a);
  }
}

void plan_scan(ScanTask& task) {
  const int64_t per_block = std::max(kScanThreads * kScanPerThread, divide_up(task.positions.count, kScanBlocks));
  task.blocks = divide_up(task.positions.count, per_block);
}

cudaError_t scan(const ScanTask& task, cudaStream_t stream) {
  ScanArguments a{};
  Positions positions = task.positions;
  positions.order_by(kTargets);
  positions.collapse();
  if (!a.all.assign(positions.dims, positions.rank)) return cudaErrorInvalidValue;
  a.targets = task.targets.data;
  a.dtype = task.targets.dtype;
  a.dense = task.dense;
  a.index = task.index;
  a.dense_rule = task.dense_rule;
  a.count = positions.count;
  a.per_block = std::max(kScanThreads * kScanPerThread, divide_up(positions.count, kScanBlocks));
  a.counts = task.counts;
  return FOCAL_LAUNCH((Grid{task.blocks, kScanThreads}), stream, scan_kernel, a);
}

cudaError_t settle_scale(const ScaleRule& rule, const Counts* counts, int64_t blocks, double* applied,
                         cudaStream_t stream) {
  return FOCAL_LAUNCH((Grid{1, kScanThreads}), stream, settle_kernel, rule, counts, blocks, applied);
}

cudaError_t finish(const FinishTask& task, const Task& of, cudaStream_t stream) {
  const FinishArguments a{
      task, of.tensor[kTargets].data, of.tensor[kTargets].dtype, of.dense, of.softmax, of.index, of.dense_rule};
  const auto threads = static_cast<unsigned>(std::clamp<int64_t>(round_up(task.blocks, kWarp), kWarp, kFinishThreads));
  return FOCAL_LAUNCH((Grid{1, threads}), stream, finish_kernel, a);
}

}  // namespace focal::cuda
