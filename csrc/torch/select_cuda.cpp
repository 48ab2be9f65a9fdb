// The operators of the hardest losses on CUDA devices: tensors to launches. No synchronisation, as in cuda.cpp.
#include "cuda/select.h"
#include "torch/device.h"
#include "torch/hardest.h"

namespace focal::glue {
namespace {

std::tuple<Tensor, Tensor> hardest(Tensor losses, Tensor counted, double keep_ratio, double threshold) {
  const OnDeviceOf device(losses);
  require_same_device(losses, counted);
  cuda::SelectTask task;
  task.rule = hardest_rule(losses, counted, keep_ratio, threshold);
  task.losses = losses.data_ptr();
  task.dtype = dtype_of(losses);
  task.n = losses.numel();
  task.counted = counted.data_ptr();
  task.counted_dtype = dtype_of(counted);
  const size_t bytes = cuda::workspace_bytes(task);
  Workspace workspace(bytes, losses);
  Tensor mean = empty_scalar(losses.scalar_type(), losses), kept = empty_kept(losses);
  Reach reach;
  for (const Tensor* input : {&losses, &counted}) reach.read(*input);
  for (const Tensor* output :
       {&static_cast<const Tensor&>(mean), &static_cast<const Tensor&>(kept), &workspace.memory()})
    reach.write(*output, true);
  task.mean = mean.data_ptr();
  task.kept = static_cast<Kept*>(kept.data_ptr());
  task.workspace = workspace.take<char>(static_cast<int64_t>(bytes));
  check_launch(cuda::select_hardest(task, device.stream()));
  return {mean, kept};
}

void hardest_backward(Tensor upstream, Tensor losses, Tensor kept, Tensor grad_losses) {
  const OnDeviceOf device(losses);
  check_hardest_backward(upstream, losses, kept, grad_losses);
  for (const Tensor* other : {&upstream, &kept, &grad_losses}) require_same_device(losses, *other);
  Reach reach;
  for (const Tensor* input : {&upstream, &losses, &kept}) reach.read(*input);
  reach.write(grad_losses, grad_losses.data_ptr() != losses.data_ptr());
  check_launch(cuda::hardest_gradient(losses.data_ptr(), grad_losses.data_ptr(), dtype_of(losses), losses.numel(),
                                      static_cast<const Kept*>(kept.data_ptr()), upstream.data_ptr(), device.stream()));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(focal_cuda, FOCAL_DISPATCH_KEY, library) {
  library.impl("hardest", TORCH_BOX(&hardest));
  library.impl("hardest_backward", TORCH_BOX(&hardest_backward));
}

}  // namespace focal::glue
