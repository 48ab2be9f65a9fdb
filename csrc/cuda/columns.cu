// Which kernel of columns.h a task goes to, and how it is cut.
#include "cuda/columns.h"

#include <algorithm>
#include <iterator>

#include "cuda/engines.h"
#include "cuda/plan.h"

namespace focal::cuda {
namespace {

// Classes a thread holds: the kernels there are. Those with all classes begin where the one before ends.
constexpr int kAlone[] = {2, 4, 8, 16, 19, 21, 32};
constexpr int kAloneUnaligned[] = {4, 8, 21, 32};
constexpr int kShared[] = {16, 32};

struct Cut {
  Columns<float> a;
  Grid grid{0, 0};
  int classes = 0, warps = 1;  // of a thread; that share positions, at most
  bool aligned = false;
};

template <class Storage>
bool cut(const Task& task, Cut& result) {
  const Positions positions = ordered(task);
  const Dim& dim = positions.innermost();
  const Operand each = each_of(task);
  for (Operand o : {kLogits, kGradient}) {
    if (task.tensor[o] && dim.stride[o] != 1 && dim.size != 1) return false;
  }
  Columns<float>& a = result.a;
  if (task.classes < 2 || dim.size < 16 || !a.outer.assign(positions.dims, positions.rank - 1)) return false;
  const int64_t classes = task.classes;
  if (classes <= 32) {
    result.classes = *std::lower_bound(std::begin(kAlone), std::end(kAlone), static_cast<int>(classes));
  } else {
    if (classes > kManyClasses * kWarpsOfMany) return false;
    // Narrow slices leave room for more positions; wide ones are for what they cannot hold.
    result.classes = classes <= kShared[0] * kColumnWarps   ? kShared[0]
                     : classes <= kShared[1] * kColumnWarps ? kShared[1]
                                                            : kManyClasses;
    result.warps = result.classes == kManyClasses ? kWarpsOfMany : kColumnWarps;
  }
  a.run = dim.size;
  for (int o = 0; o < kOperands; ++o) a.class_stride[o] = task.tensor[o].class_stride;
  for (int d = 0; d < a.outer.rank; ++d) a.outer.strides[d][kLoss] = positions.dims[d].stride[each];
  a.target_stride = dim.stride[kTargets];
  a.each_stride = dim.stride[each];
  a.sample_stride = dim.stride[kSampleWeight];
  int count = positions_of_thread<Storage>(result.classes, result.warps, true);
  result.aligned = dim.size % count == 0 && strides_divide(task, positions, kLogits, count) &&
                   strides_divide(task, positions, kGradient, count);
  if (!result.aligned) count = positions_of_thread<Storage>(result.classes, result.warps, false);
  if (result.warps == 1 && !result.aligned)
    result.classes =
        *std::lower_bound(std::begin(kAloneUnaligned), std::end(kAloneUnaligned), static_cast<int>(classes));
  // A thread's labels are 16 bytes or a divisor of them, or several times 16.
  const int64_t label_bytes = storage_bytes(task.tensor[kTargets].dtype),
                label_vector = std::min<int64_t>(16, count * label_bytes);
  a.targets_aligned = dim.stride[kTargets] == 1 && lies_on_16_bytes(task.tensor[kTargets].data);
  for (int d = 0; d < a.outer.rank; ++d)
    a.targets_aligned &= positions.dims[d].stride[kTargets] * label_bytes % label_vector == 0;
  int64_t threads = kWarp;  // that share the positions of a tile
  if (result.warps == 1) {
    const int64_t tiles = divide_up(a.run, kColumnThreads * count);
    threads = round_up(divide_up(divide_up(a.run, count), tiles), kWarp);
  }
  const int64_t tiles = divide_up(a.run, threads * count);
  if (tiles > 0x7fffffff) return false;
  a.tiles = static_cast<unsigned>(tiles);
  a.runs = positions.count / std::max<int64_t>(dim.size, 1);
  a.all_tiles = a.runs * tiles;
  const int64_t several = std::min<int64_t>(16 / classes, divide_up(a.all_tiles, kFewBlocks));
  a.steps = classes > kFewClasses ? 1 : static_cast<int32_t>(std::max(divide_up(a.all_tiles, kManyBlocks), several));
  result.grid = {divide_up(a.all_tiles, a.steps),
                 static_cast<unsigned>(result.warps > 1 ? kWarp * divide_up(classes, result.classes) : threads)};
  return true;
}

template <class Storage, int kClasses, int kLeast, int kWarps, bool aligned>
cudaError_t start(const Cut& cut, cudaStream_t stream) {
  using Term = MarginTerm<BinaryMath<true>>;  // once for all classes: precise whatever is read
  return FOCAL_LAUNCH(cut.grid, stream, (columns<Term, Storage, kClasses, kLeast, kWarps, aligned>), cut.a);
}

template <class Storage, bool aligned>
cudaError_t start(const Cut& cut, cudaStream_t stream) {
  if (cut.classes == kManyClasses) return start<Storage, kManyClasses, 1, kWarpsOfMany, false>(cut, stream);
  if (cut.warps > 1) {
    return cut.classes == 16 ? start<Storage, 16, 1, kColumnWarps, aligned>(cut, stream)
                             : start<Storage, 32, 1, kColumnWarps, aligned>(cut, stream);
  }
  if constexpr (aligned) {
    switch (cut.classes) {
      case 2: return start<Storage, 2, 2, 1, true>(cut, stream);
      case 4: return start<Storage, 4, 3, 1, true>(cut, stream);
      case 8: return start<Storage, 8, 5, 1, true>(cut, stream);
      case 16: return start<Storage, 16, 9, 1, true>(cut, stream);
      case 19: return start<Storage, 19, 17, 1, true>(cut, stream);
      case 21: return start<Storage, 21, 20, 1, true>(cut, stream);
      default: return start<Storage, 32, 22, 1, true>(cut, stream);
    }
  }
  switch (cut.classes) {
    case 4: return start<Storage, 4, 2, 1, false>(cut, stream);
    case 8: return start<Storage, 8, 5, 1, false>(cut, stream);
    case 21: return start<Storage, 21, 9, 1, false>(cut, stream);
    default: return start<Storage, 32, 22, 1, false>(cut, stream);
  }
}

template <class Storage>
cudaError_t run_as(const Task& task, cudaStream_t stream) {
  Cut cut;
  if (!focal::cuda::cut<Storage>(task, cut)) return cudaErrorInvalidValue;
  set_numbers(task, cut.a);
  return cut.aligned ? start<Storage, true>(cut, stream) : start<Storage, false>(cut, stream);
}

}  // namespace

bool plan_columns(Task& task) {
  Cut result;
  bool fits = false;
  switch (task.tensor[kLogits].dtype) {
    case DType::kFloat32: fits = cut<float>(task, result); break;
    case DType::kFloat16: fits = cut<Half>(task, result); break;
    case DType::kBFloat16: fits = cut<BFloat16>(task, result); break;
    default: break;
  }
  task.engine = Engine::kColumns;
  task.blocks = result.grid.blocks;
  return fits;
}

cudaError_t run_columns(const Task& task, cudaStream_t stream) {
  switch (task.tensor[kLogits].dtype) {
    case DType::kFloat32: return run_as<float>(task, stream);
    case DType::kFloat16: return run_as<Half>(task, stream);
    default: return run_as<BFloat16>(task, stream);
  }
}

}  // namespace focal::cuda
