// How a task is cut for strided.h and soft.h.
#include <algorithm>

#include "cuda/engines.h"
#include "cuda/plan.h"
#include "cuda/soft.h"

namespace focal::cuda {
namespace {

// As many as leave each some four classes, to be held or swept.
int64_t lanes_of(int64_t classes) {
  int64_t lanes = 1;
  while (lanes < kWarp && lanes * 8 <= classes) lanes *= 2;
  return lanes;
}

template <class Real>
bool cut(const Task& task, StridedSoftmax<Real>& a, Grid& grid) {
  const Positions positions = ordered(task);
  if (!a.positions.assign(positions.dims, positions.rank)) return false;
  const Operand each = each_of(task);
  for (int d = 0; d < positions.rank; ++d) a.positions.strides[d][kLoss] = positions.dims[d].stride[each];
  for (int o = 0; o < kOperands; ++o) a.class_stride[o] = task.tensor[o].class_stride;
  a.count = positions.count;
  const int64_t between = std::abs(positions.innermost().stride[kLogits]);
  const bool classes_are_nearer =
      positions.innermost().size == 1 || std::abs(task.tensor[kLogits].class_stride) < between;
  // Several lanes for a position also where there are few of them.
  const bool shared = task.classes > 4 && (classes_are_nearer || positions.count < 4096);
  a.lanes = shared ? static_cast<int32_t>(task.soft() ? lanes_of(task.classes) : kWarp) : 1;
  const int64_t steps = divide_up(a.count, kStridedThreads / a.lanes);
  a.steps = static_cast<int32_t>(std::max<int64_t>(divide_up(steps, kManyBlocks), 1));
  grid = {divide_up(steps, a.steps), kStridedThreads};
  return true;
}

// Whether a lane can hold its classes, in steps of 32 bits.
template <class Real>
bool hold(const Task& task, SoftSoftmax<Real>& a) {
  for (Operand o : {kLogits, kTargets, kGradient}) {
    const int64_t bytes = task.tensor[o] ? a.lanes * a.class_stride[o] * storage_bytes(task.tensor[o].dtype) : 0;
    a.step[o] = static_cast<int32_t>(bytes);
    if (a.step[o] != bytes) return false;
  }
  return task.classes <= a.lanes * kHeldClasses;
}

template <class Storage, class Math>
cudaError_t run_as(const Task& task, cudaStream_t stream) {
  using Term = MarginTerm<Math>;
  using Real = typename Math::Real;
  Grid grid{0, 0};
  if (task.soft()) {
    SoftSoftmax<Real> a{};
    if (!cut(task, a, grid)) return cudaErrorInvalidValue;
    set_numbers(task, a);
    if constexpr (sizeof(Real) == 4) {
      if (hold(task, a)) return FOCAL_LAUNCH(grid, stream, (softmax_soft_held<Term, Storage>), a);
    }
    if (task.tensor[kGradient]) return FOCAL_LAUNCH(grid, stream, (softmax_soft<Term, Mode::kGradient, Storage>), a);
    return FOCAL_LAUNCH(grid, stream, (softmax_soft<Term, Mode::kLoss, Storage>), a);
  }
  StridedSoftmax<Real> a{};
  if (!cut(task, a, grid)) return cudaErrorInvalidValue;
  set_numbers(task, a);
  if (task.tensor[kGradient]) return FOCAL_LAUNCH(grid, stream, (softmax_strided<Term, Mode::kGradient, Storage>), a);
  return FOCAL_LAUNCH(grid, stream, (softmax_strided<Term, Mode::kLoss, Storage>), a);
}

}  // namespace

bool plan_strided(Task& task) {
  StridedSoftmax<float> a{};
  Grid grid{0, 0};
  const bool fits = cut(task, a, grid);
  task.engine = Engine::kStrided;
  task.blocks = grid.blocks;
  return fits;
}

cudaError_t run_strided(const Task& task, cudaStream_t stream) {
  switch (task.tensor[kLogits].dtype) {
    case DType::kFloat32: return run_as<float, BinaryMath<true>>(task, stream);
    case DType::kFloat16: return run_as<Half, BinaryMath<true>>(task, stream);
    case DType::kBFloat16: return run_as<BFloat16, BinaryMath<true>>(task, stream);
    default: return run_as<double, LibmMath<double>>(task, stream);
  }
}

}  // namespace focal::cuda
