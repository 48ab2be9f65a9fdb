// The engines to each other: plan.cu chooses one of them and starts it. Host only. Must not know: torch.
#pragma once

#include "cuda/task.h"

namespace focal::cuda {

// False: no kernel of the engine takes such a layout, or another is better at it. They set task.engine and task.blocks.
bool plan_elementwise(Task& task);
bool plan_columns(Task& task);
bool plan_rows(Task& task);
bool plan_strided(Task& task);

cudaError_t run_elementwise(const Task& task, cudaStream_t stream);
cudaError_t run_columns(const Task& task, cudaStream_t stream);
cudaError_t run_rows(const Task& task, cudaStream_t stream);
cudaError_t run_strided(const Task& task, cudaStream_t stream);

}  // namespace focal::cuda
