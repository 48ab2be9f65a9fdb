// Which kernel of elementwise.h a task goes to, and how it is cut.
#include "cuda/elementwise.h"

#include <algorithm>
#include <numeric>

#include "cuda/engines.h"
#include "cuda/plan.h"

namespace focal::cuda {
namespace {

// Of a block: fewer would not pay for its beginning and end.
constexpr int64_t kLeastSteps = 2;

int64_t vector_of(const Task& task) { return 16 / storage_bytes(task.tensor[kLogits].dtype); }

bool operands_have_class_stride(const Task& task, int64_t stride) {
  for (Operand o : {kLogits, kGradient, each_of(task)}) {
    if (task.tensor[o] && task.tensor[o].class_stride != stride) return false;
  }
  return true;
}

bool operands_are_runs(const Task& task, const Dim& innermost) {
  for (Operand o : {kLogits, kGradient, each_of(task)}) {
    if (task.tensor[o] && innermost.stride[o] != 1 && innermost.size != 1) return false;
  }
  return true;
}

template <class Real>
bool as_rows(const Task& task, RowsOfElements<Real>& a, Grid& grid) {
  const Positions positions = ordered(task);
  if (task.dense || positions.rank > 1 || !operands_have_class_stride(task, 1)) return false;
  const int64_t vector = vector_of(task), classes = task.classes;
  const Dim& dim = positions.innermost();
  const bool whole = classes % vector == 0;
  for (Operand o : {kLogits, kGradient}) {
    if (!task.tensor[o]) continue;
    if (!lies_on_16_bytes(task.tensor[o].data)) return false;
    if (whole ? dim.stride[o] % vector != 0 && dim.size != 1 : dim.stride[o] != classes && dim.size != 1) return false;
  }
  const Operand each = each_of(task);
  if (!whole && task.tensor[each] && dim.stride[each] != classes && dim.size != 1) return false;
  a.rows = dim.size;
  for (int o = 0; o < kOperands; ++o) a.pitch[o] = dim.size == 1 ? classes : dim.stride[o];
  a.pitch[kTargets] = dim.stride[kTargets];
  a.pitch[kLoss] = dim.size == 1 ? classes : dim.stride[each];
  a.group_rows = static_cast<int32_t>(vector / std::gcd(vector, classes));
  const int64_t vectors = a.group_rows * classes / vector;
  if (vectors > (1 << 30)) return false;
  a.group_vectors = static_cast<int32_t>(vectors);
  a.column_blocks = static_cast<int32_t>(divide_up(vectors, kElementThreads));
  a.step_groups = 1;
  int64_t threads = round_up(divide_up(vectors, a.column_blocks), 32);
  // As many groups side by side as keep most threads busy.
  for (int64_t groups = 1; groups * vectors <= kElementThreads; ++groups) {
    const int64_t wanted = round_up(groups * vectors, 32);
    if (groups * vectors * threads >= a.step_groups * vectors * wanted) {
      a.step_groups = static_cast<int32_t>(groups);
      threads = wanted;
    }
  }
  const int64_t steps = divide_up(divide_up(a.rows, a.group_rows), a.step_groups);
  a.steps = static_cast<int32_t>(std::max<int64_t>(divide_up(steps * a.column_blocks, kManyBlocks), kLeastSteps));
  grid = {divide_up(steps, a.steps) * a.column_blocks, static_cast<unsigned>(threads)};
  a.label_bytes = static_cast<int32_t>(storage_bytes(task.tensor[kTargets].dtype));
  for (Operand o : {kLogits, kGradient, kTargets}) {
    const int64_t step = a.pitch[o] * a.group_rows * a.step_groups * storage_bytes(task.tensor[o].dtype);
    if (std::abs(step) > 0x7fffffff) return false;
    a.step[o] = static_cast<int32_t>(step);
  }
  return true;
}

template <class Real>
bool as_planes(const Task& task, PlanesOfElements<Real>& a, Grid& grid) {
  const Positions positions = ordered(task);
  const Dim& dim = positions.innermost();
  if (task.dense || dim.size < 16 || !operands_are_runs(task, dim)) return false;
  if (!a.outer.assign(positions.dims, positions.rank - 1)) return false;
  const int64_t vector = vector_of(task), outer = positions.count / std::max<int64_t>(dim.size, 1);
  a.run = dim.size;
  for (int o = 0; o < kOperands; ++o) a.class_stride[o] = task.tensor[o].class_stride;
  a.class_stride[kLoss] = task.tensor[each_of(task)].class_stride;
  for (int d = 0; d < a.outer.rank; ++d) a.outer.strides[d][kLoss] = positions.dims[d].stride[each_of(task)];
  a.target_stride = dim.stride[kTargets];
  a.aligned = strides_divide(task, positions, kLogits, vector) && strides_divide(task, positions, kGradient, vector);
  a.tiles = static_cast<int32_t>(divide_up(a.run, kElementThreads * vector));
  const int64_t threads = round_up(divide_up(divide_up(a.run, vector), a.tiles), 32);
  const int64_t blocks = outer * a.tiles;
  const int64_t parts =
      std::clamp<int64_t>(kManyBlocks / 2 / std::max<int64_t>(blocks, 1), 1, divide_up(task.classes, 4));
  a.part_classes = static_cast<int32_t>(divide_up(task.classes, parts));
  a.parts = static_cast<int32_t>(divide_up(task.classes, a.part_classes));
  grid = {blocks * a.parts, static_cast<unsigned>(threads)};
  return grid.blocks <= 0x7fffffff;
}

template <class Real>
bool as_dense(const Task& task, DenseElements<Real>& a, Grid& grid) {
  const Positions positions = ordered(task);
  if (!task.dense || task.classes != 1 || positions.rank > 1) return false;
  const Dim& dim = positions.innermost();
  if (!operands_are_runs(task, dim) || (dim.stride[kTargets] != 1 && dim.size != 1)) return false;
  for (Operand o : {kLogits, kGradient}) {
    if (task.tensor[o] && !lies_on_16_bytes(task.tensor[o].data)) return false;
  }
  a.count = dim.size;
  a.targets_aligned = lies_on_16_bytes(task.tensor[kTargets].data);
  const int64_t steps = divide_up(a.count, kElementThreads * vector_of(task));
  a.steps = static_cast<int32_t>(std::max<int64_t>(divide_up(steps, kManyBlocks), kLeastSteps));
  grid = {divide_up(steps, a.steps), kElementThreads};
  return true;
}

template <class Real>
bool as_strided(const Task& task, StridedElements<Real>& a, Grid& grid) {
  Positions all = ordered(task);
  a.class_dim = -1;
  a.dense = task.dense;
  a.scores = static_cast<const Real*>(task.tensor[kScores].data);
  a.lowest_target = static_cast<Real>(task.smoothing / 2);
  a.count = all.count * task.classes;
  if (task.classes > 1) {
    Dim dim{task.classes, {}};
    for (int o = 0; o < kOperands; ++o) dim.stride[o] = task.tensor[o].class_stride;
    int at = all.rank;
    for (; at > 0 && std::abs(all.dims[at - 1].stride[kLogits]) < std::abs(dim.stride[kLogits]); --at)
      all.dims[at] = all.dims[at - 1];
    all.dims[at] = dim;
    ++all.rank;
    a.class_dim = at;
  }
  if (!a.all.assign(all.dims, all.rank)) return false;
  const int64_t steps = divide_up(a.count, kElementThreads);
  a.steps = static_cast<int32_t>(std::max<int64_t>(divide_up(steps, kManyBlocks), kLeastSteps));
  grid = {divide_up(steps, a.steps), kElementThreads};
  return true;
}

// Calls use(arguments, grid, kernel launcher tag) with the first kind of memory that fits.
template <class Real, class Use>
bool choose(const Task& task, const Use& use) {
  Grid grid{0, 0};
  const bool plain = is_plain(task);
  if constexpr (std::is_same_v<Real, float>) {
    DenseElements<Real> dense{};
    RowsOfElements<Real> rows{};
    PlanesOfElements<Real> planes{};
    if (plain && as_dense(task, dense, grid)) return use(dense, grid), true;
    if (plain && task.classes > 1 && as_rows(task, rows, grid)) return use(rows, grid), true;
    if (plain && as_planes(task, planes, grid)) return use(planes, grid), true;
    if (plain && as_rows(task, rows, grid)) return use(rows, grid), true;
  }
  StridedElements<Real> strided{};
  if (as_strided(task, strided, grid)) return use(strided, grid), true;
  return false;
}

template <class Term, Mode mode, class Storage, class Real>
cudaError_t start(const RowsOfElements<Real>& a, const Grid& grid, cudaStream_t stream) {
  return FOCAL_LAUNCH(grid, stream, (elementwise_rows<Term, mode, Storage>), a);
}
template <class Term, Mode mode, class Storage, class Real>
cudaError_t start(const PlanesOfElements<Real>& a, const Grid& grid, cudaStream_t stream) {
  return FOCAL_LAUNCH(grid, stream, (elementwise_planes<Term, mode, Storage>), a);
}
template <class Term, Mode mode, class Storage, class Real>
cudaError_t start(const DenseElements<Real>& a, const Grid& grid, cudaStream_t stream) {
  return FOCAL_LAUNCH(grid, stream, (elementwise_dense<Term, mode, Storage>), a);
}
template <class Term, Mode mode, class Storage, class Real>
cudaError_t start(const StridedElements<Real>& a, const Grid& grid, cudaStream_t stream) {
  return FOCAL_LAUNCH(grid, stream, (elementwise_strided<Term, mode, Storage>), a);
}

template <class Storage, class Math>
cudaError_t run_as(const Task& task, cudaStream_t stream) {
  using Real = typename Math::Real;
  cudaError_t error = cudaErrorInvalidValue;
  choose<Real>(task, [&](auto& a, const Grid& grid) {
    set_numbers<Real>(task, a);
    const auto with = [&](auto term) {
      using Term = decltype(term);
      error = a.gradient ? start<Term, Mode::kGradient, Storage>(a, grid, stream)
                         : start<Term, Mode::kLoss, Storage>(a, grid, stream);
    };
    if constexpr (std::is_base_of_v<StridedElements<Real>, std::decay_t<decltype(a)>>) {
      with(TargetTerm<Math>{});
    } else {
      task.rule.gamma == 2 && !task.device_gamma ? with(FocalTerm<Math, Exponent::kTwo>{})
                                                 : with(FocalTerm<Math, Exponent::kAny>{});
    }
  });
  return error;
}

}  // namespace

bool plan_elementwise(Task& task) {
  task.engine = Engine::kElementwise;
  const auto note = [&](const auto&, const Grid& grid) { task.blocks = grid.blocks; };
  return task.tensor[kLogits].dtype == DType::kFloat64 ? choose<double>(task, note) : choose<float>(task, note);
}

cudaError_t run_elementwise(const Task& task, cudaStream_t stream) {
  switch (task.tensor[kLogits].dtype) {
    case DType::kFloat32: return run_as<float, BinaryMath<true>>(task, stream);
    case DType::kFloat16: return run_as<Half, BinaryMath<false>>(task, stream);
    case DType::kBFloat16: return run_as<BFloat16, BinaryMath<false>>(task, stream);
    default: return run_as<double, LibmMath<double>>(task, stream);
  }
}

}  // namespace focal::cuda
