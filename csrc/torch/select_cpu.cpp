// The operators of the hardest losses on the CPU: tensors to pointers, chunks to threads.
#include <cstring>

#include "cpu/selection.h"
#include "torch/hardest.h"
#include "torch/host.h"

namespace focal::glue {
namespace {

const cpu::ForChunks kThreads = [](int64_t chunks, const std::function<void(int64_t, int64_t)>& body) {
  for_chunks(chunks, body);
};

// Body(Real{}) for the losses' type.
template <class Body>
auto by_dtype(const Tensor& losses, const Body& body) {
  return losses.scalar_type() == ScalarType::Double ? body(double{}) : body(float{});
}

template <class Real>
Real* data_of(const Tensor& tensor) {
  return static_cast<Real*>(tensor.data_ptr());
}

std::tuple<Tensor, Tensor> hardest(Tensor losses, Tensor counted, double keep_ratio, double threshold) {
  const HardestRule rule = hardest_rule(losses, counted, keep_ratio, threshold);
  const double n = counted.scalar_type() == ScalarType::Double ? *data_of<double>(counted)
                                                               : static_cast<double>(*data_of<int64_t>(counted));
  Tensor mean = empty_scalar(losses.scalar_type(), losses), kept = empty_kept(losses);
  by_dtype(losses, [&](auto zero) {
    using Real = decltype(zero);
    const cpu::Hardest found = cpu::select_hardest(data_of<const Real>(losses), losses.numel(), n, rule, kThreads);
    *data_of<Real>(mean) = static_cast<Real>(found.mean);
    std::memcpy(kept.data_ptr(), &found.kept, sizeof found.kept);
  });
  return {mean, kept};
}

void hardest_backward(Tensor upstream, Tensor losses, Tensor kept, Tensor grad_losses) {
  check_hardest_backward(upstream, losses, kept, grad_losses);
  if (grad_losses.data_ptr() != losses.data_ptr()) expect_first_touch(grad_losses);
  Kept which;
  std::memcpy(&which, kept.data_ptr(), sizeof which);
  by_dtype(losses, [&](auto zero) {
    using Real = decltype(zero);
    cpu::hardest_gradient(data_of<const Real>(losses), data_of<Real>(grad_losses), losses.numel(), which,
                          static_cast<double>(*data_of<Real>(upstream)), kThreads);
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(focal_cuda, CPU, library) {
  library.impl("hardest", TORCH_BOX(&hardest));
  library.impl("hardest_backward", TORCH_BOX(&hardest_backward));
}

}  // namespace focal::glue
