// Which engine takes a task.
#include "cuda/engines.h"

namespace focal::cuda {

bool plan(Task& task) {
  if (!task.softmax) return plan_elementwise(task);
  if (task.soft()) return plan_strided(task);
  return plan_rows(task) || plan_columns(task) || plan_strided(task);
}

cudaError_t run(const Task& task, cudaStream_t stream) {
  switch (task.engine) {
    case Engine::kElementwise: return run_elementwise(task, stream);
    case Engine::kColumns: return run_columns(task, stream);
    case Engine::kRows: return run_rows(task, stream);
    case Engine::kStrided: return run_strided(task, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace focal::cuda
