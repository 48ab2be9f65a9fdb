// Which kernel of rows_staged.h and rows_direct.h a task goes to, and how it is cut.
#include <algorithm>
#include <numeric>

#include "cuda/engines.h"
#include "cuda/plan.h"
#include "cuda/rows_direct.h"
#include "cuda/rows_staged.h"

#if !defined(FOCAL_SIMT)
#include <atomic>
#endif

namespace focal::cuda {
namespace {

constexpr int64_t kStagedClasses = 512;  // at most, per row
constexpr int64_t kStagedBytes = 4096;   // of a chunk, where a turn of all threads has fewer
constexpr int64_t kPartThreads = 128;    // of a block whose rows need fewer
constexpr int64_t kWarpsOfBlock = 16;    // of a row, so that a multiprocessor has room for more than one block
// Vectors of a thread, of rows that are whole vectors, and what others have in their place: as many as have registers.
constexpr int kFew = 4, kMany = 6;
constexpr int apart(int64_t bytes) { return bytes == 2 ? 4 : 5; }
constexpr int64_t kRowsOfBlock = 1 << 21;  // more than any block has: numbers of rows have 32 bits
constexpr int64_t kMostClasses = 1 << 30;  // places within a row have 32 bits

bool classes_are_neighbours(const Task& task) {
  for (Operand o : {kLogits, kGradient}) {
    if (task.tensor[o] && task.tensor[o].class_stride != 1 && task.classes != 1) return false;
  }
  return task.tensor[kLogits].dtype != DType::kFloat64 && task.classes <= kMostClasses;
}

// False: more dimensions than kernels take, or rows too far apart.
bool assign(const Task& task, const Positions& positions, RowRuns& at) {
  if (positions.rank > RowRuns::kDims || positions.count > 0x7fffffff - kRowsOfBlock) return false;
  const auto fill = [&](const Dim& dim, auto& strides) {
    bool fits = true;
    for (int o = 0; o < kOperands; ++o) {
      // The offsets of an unreduced loss or of its upstream, whichever there is, stand where the loss's do.
      const int64_t stride = dim.stride[o == kLoss ? each_of(task) : o];
      strides[o] = static_cast<std::remove_reference_t<decltype(strides[o])>>(stride);
      fits &= strides[o] == stride;
    }
    return fits;
  };
  const Dim none{1, {}};
  const int outer = positions.rank - 1;
  const Dim& inner = outer > 0 ? positions.dims[outer - 1] : none;
  at.rows = static_cast<int32_t>(positions.innermost().size);
  at.by_rows = FastDivisor(static_cast<uint32_t>(at.rows));
  at.runs = static_cast<int32_t>(positions.count / at.rows);
  at.inner_runs = static_cast<int32_t>(inner.size);
  fill(inner, at.stride[1]);
  fill(outer > 1 ? positions.dims[0] : none, at.stride[0]);
  return fill(positions.innermost(), at.pitch);
}

template <auto constant>
using Constant = std::integral_constant<decltype(constant), constant>;

// Whether an operand's rows lie next to each other, and its chunks, which are whole vectors, on their boundaries.
bool chunks_are_aligned(const Task& task, const Positions& positions, Operand operand) {
  const Tensor& tensor = task.tensor[operand];
  if (!tensor) return true;
  const int64_t vector = 16 / storage_bytes(tensor.dtype);
  const Dim& dim = positions.innermost();
  if (!lies_on_16_bytes(tensor.data) || (dim.stride[operand] != task.classes && dim.size != 1)) return false;
  for (int d = 0; d + 1 < positions.rank; ++d) {
    if (positions.dims[d].stride[operand] % vector != 0) return false;
  }
  return true;
}

// Whether every row of an operand is whole vectors on their boundaries.
bool rows_are_whole(const Task& task, const Positions& positions, Operand operand) {
  const Tensor& tensor = task.tensor[operand];
  if (!tensor) return true;
  const int64_t vector = 16 / storage_bytes(tensor.dtype);
  bool whole = lies_on_16_bytes(tensor.data) && task.classes % vector == 0;
  for (int d = 0; d < positions.rank; ++d) whole &= positions.dims[d].stride[operand] % vector == 0;
  return whole;
}

struct StagedKernel {
  Take take;
  int count;
};
constexpr StagedKernel kStaged[] = {
    {Take::kRow, 4},      {Take::kRow, 8},      {Take::kRow, 12},     {Take::kRow, 20},     {Take::kRow, 24},
    {Take::kRow, 32},     {Take::kClasses, 20}, {Take::kClasses, 24}, {Take::kClasses, 32}, {Take::kVectors, 8},
    {Take::kVectors, 16}, {Take::kVectors, 24}, {Take::kVectors, 32},
};

bool cut_staged(const Task& task, StagedRows<float>& a, StagedKernel& kernel, Grid& grid) {
  const Positions positions = ordered(task);
  const int64_t classes = task.classes, bytes = storage_bytes(task.tensor[kLogits].dtype), vector = 16 / bytes;
  if (classes > kStagedClasses || !is_plain(task) || !assign(task, positions, a.at)) return false;
  const bool whole = classes % vector == 0;

  // The lanes and registers that waste the fewest instructions: about 9 a class, and 100 and more a row.
  int64_t least_cost = 0;
  a.lanes = 0;
  for (const StagedKernel& candidate : kStaged) {
    if (whole != (candidate.take == Take::kVectors)) continue;
    const int64_t items = whole ? classes / vector : classes, room = whole ? candidate.count / vector : candidate.count;
    const int64_t least = staged_least(candidate.count, candidate.take, static_cast<int>(vector));
    for (int log2 = 0; log2 <= (candidate.take == Take::kRow ? 0 : 5); ++log2) {
      const int64_t lanes = int64_t(1) << log2;
      if (items / lanes < least || divide_up(items, lanes) > room) continue;
      const int64_t cost = lanes * (candidate.count * 9 + 100 + 16 * log2);
      if (a.lanes != 0 && cost >= least_cost) continue;
      least_cost = cost;
      kernel = candidate;
      a.lanes = static_cast<int32_t>(lanes);
      a.lanes_log2 = log2;
    }
  }
  if (a.lanes == 0) return false;

  const int64_t groups = kStagedThreads / a.lanes;
  int64_t turns = std::clamp<int64_t>(divide_up(kStagedBytes, groups * classes * bytes), 1, 8);
  while (groups * turns * classes % vector != 0) turns *= 2;
  a.chunk_rows = static_cast<int32_t>(groups * turns);
  a.in_vectors = chunks_are_aligned(task, positions, kLogits) && chunks_are_aligned(task, positions, kGradient);
  a.swizzle = whole ? static_cast<int32_t>(std::gcd(classes / vector, int64_t(8))) - 1 : 0;
  a.by_classes = FastDivisor(static_cast<uint32_t>(classes));
  // Several chunks, so that one is on its way while the one before is worked on, where there are blocks enough.
  const int64_t run_chunks = divide_up(a.at.rows, a.chunk_rows), chunks = run_chunks * a.at.runs;
  const int64_t steps = std::max(std::clamp<int64_t>(chunks / 2048, 1, 8), divide_up(chunks, kManyBlocks));
  a.steps = static_cast<int32_t>(std::min(steps, run_chunks));
  a.run_blocks = static_cast<int32_t>(divide_up(run_chunks, a.steps));
  grid = {int64_t(a.run_blocks) * a.at.runs, kStagedThreads, static_cast<size_t>(2 * a.chunk_rows * classes * bytes)};
  return true;
}

// Whether a cluster of blocks can be launched on the current device.
bool clusters_exist() {
#if defined(FOCAL_SIMT)
  return true;
#else
  static std::atomic<int8_t> known[64];  // by device: 0, or 1 + whether they do
  int device = 0, major = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device < 0) return false;
  if (device < 64 && known[device] != 0) return known[device] == 2;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess) return false;
  if (device < 64) known[device] = major >= 9 ? 2 : 1;
  return major >= 9;
#endif
}

// count: a thread's vectors, 0 for the kernel that sweeps a row twice.
bool cut_direct(const Task& task, DirectRows<float>& a, int& count, Grid& grid) {
  const Positions positions = ordered(task);
  if (!assign(task, positions, a.at)) return false;
  const int64_t vector = 16 / storage_bytes(task.tensor[kLogits].dtype);
  a.rows = static_cast<int32_t>(positions.count);
  a.cluster = 1;
  a.whole = rows_are_whole(task, positions, kLogits) && rows_are_whole(task, positions, kGradient);
  // Fewest instructions: about 10 a class, and 200 for each thread.
  const int64_t bytes = 16 / vector;
  int64_t warps = 0, least_cost = 0;
  for (const int vectors : {a.whole ? kFew : apart(bytes), a.whole ? kMany : apart(bytes)}) {
    const int64_t needed = divide_up(task.classes, kWarp * vectors * vector);
    const int64_t cost = needed * (vectors * vector * 10 + 200);
    if (warps != 0 && cost >= least_cost) continue;
    least_cost = cost;
    warps = needed;
    count = vectors;
  }
  if (clusters_exist()) {
    while (a.cluster < 8 && warps > kWarpsOfBlock * a.cluster) a.cluster *= 2;
  }
  warps = divide_up(warps, a.cluster);
  if (warps * kWarp > kDirectThreads) {
    count = 0;
    a.cluster = 1;
    warps = kSweptThreads / kWarp;
  }
  a.row_threads = static_cast<int32_t>(warps * kWarp);
  a.by_threads = FastDivisor(static_cast<uint32_t>(a.row_threads * a.cluster));
  const int64_t parts = count > 0 && a.cluster == 1 ? std::max<int64_t>(kPartThreads / a.row_threads, 1) : 1;
  const int64_t sets = divide_up(a.rows, parts);
  const int64_t steps = std::max<int64_t>(divide_up(sets, kManyBlocks / a.cluster), 1);
  a.steps = static_cast<int32_t>(steps);
  grid = {divide_up(sets, steps) * a.cluster, static_cast<unsigned>(parts * a.row_threads), 0,
          static_cast<unsigned>(a.cluster)};
  return true;
}

// The registers of a lane's classes leave none for more than the plain loss.
template <class Storage>
cudaError_t start(const StagedRows<float>& a, const StagedKernel& kernel, const Grid& grid, cudaStream_t stream) {
  using Term = FocalTerm<BinaryMath<sizeof(Storage) == 4>, Exponent::kTwoOrAny>;
  cudaError_t error = cudaErrorInvalidValue;
  const auto try_one = [&](auto take, auto count) {
    if (kernel.take == take.value && kernel.count == count.value)
      error = FOCAL_LAUNCH(grid, stream, (rows_staged<Term, Storage, count.value, take.value>), a);
  };
  const auto try_each = [&](auto take, auto... counts) { (try_one(take, counts), ...); };
  try_each(Constant<Take::kRow>(), Constant<4>(), Constant<8>(), Constant<12>(), Constant<20>(), Constant<24>(),
           Constant<32>());
  try_each(Constant<Take::kClasses>(), Constant<20>(), Constant<24>(), Constant<32>());
  try_each(Constant<Take::kVectors>(), Constant<8>(), Constant<16>(), Constant<24>(), Constant<32>());
  return error;
}

template <class Storage>
cudaError_t start(const DirectRows<float>& a, int vectors, const Grid& grid, cudaStream_t stream) {
  using Term = MarginTerm<BinaryMath<sizeof(Storage) == 4>>;
  constexpr int kApart = apart(sizeof(Storage));
  if (vectors == 0) {
    if (a.whole) return FOCAL_LAUNCH(grid, stream, (rows_swept<Term, Storage, true>), a);
    return FOCAL_LAUNCH(grid, stream, (rows_swept<Term, Storage, false>), a);
  }
  if (!a.whole) return FOCAL_LAUNCH(grid, stream, (rows_direct<Term, Storage, kApart, false>), a);
  if (vectors == kFew) return FOCAL_LAUNCH(grid, stream, (rows_direct<Term, Storage, kFew, true>), a);
  return FOCAL_LAUNCH(grid, stream, (rows_direct<Term, Storage, kMany, true>), a);
}

// Calls use(arguments, kernel, grid) with the cut of the first kind of kernel that takes the task.
template <class Use>
bool choose(const Task& task, const Use& use) {
  if (!classes_are_neighbours(task)) return false;
  Grid grid{0, 0};
  StagedRows<float> staged{};
  StagedKernel kernel{};
  if (cut_staged(task, staged, kernel, grid)) return use(staged, kernel, grid), true;
  DirectRows<float> direct{};
  int count = 0;
  if (cut_direct(task, direct, count, grid)) return use(direct, count, grid), true;
  return false;
}

template <class Storage>
cudaError_t run_as(const Task& task, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  choose(task, [&](auto& a, const auto& kernel, const Grid& grid) {
    set_numbers(task, a);
    error = start<Storage>(a, kernel, grid, stream);
  });
  return error;
}

}  // namespace

bool plan_rows(Task& task) {
  return choose(task, [&](const auto&, const auto&, const Grid& grid) {
    task.engine = Engine::kRows;
    task.blocks = grid.blocks;
  });
}

cudaError_t run_rows(const Task& task, cudaStream_t stream) {
  switch (task.tensor[kLogits].dtype) {
    case DType::kFloat32: return run_as<float>(task, stream);
    case DType::kFloat16: return run_as<Half>(task, stream);
    case DType::kBFloat16: return run_as<BFloat16>(task, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace focal::cuda
