// Which engine takes a task.
#include "cuda/engines.h"

namespace focal::cuda {

bool plan(Task& task) {
  task.engine = Engine::kElementwise;
  return plan_elementwise(task);
}

cudaError_t run(const Task& task, cudaStream_t stream) { return run_elementwise(task, stream); }

}  // namespace focal::cuda
