// The engines to each other: plan chooses one of them, run starts it. Host only. Must not know: torch.
#pragma once

#include "cuda/task.h"

namespace focal::cuda {

// False: no kernel of the engine takes such a layout. Sets task.blocks.
bool plan_elementwise(Task& task);
cudaError_t run_elementwise(const Task& task, cudaStream_t stream);

}  // namespace focal::cuda
