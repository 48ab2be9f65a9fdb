// The Python module focal_cuda._C: importing it registers the operators. It tells how it was built and gives tests a way
// to the elementary functions and to the loss of a margin. No operator goes through it.
#undef TORCH_TARGET_VERSION  // torch 2.11 keeps its pybind11 from whoever sets it, though none of torch is used here
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "cpu/kernels.h"

#ifndef FOCAL_CUDA_VERSION
#error "setup.py defines FOCAL_CUDA_VERSION and its siblings"
#endif

namespace py = pybind11;

namespace {

// A writable, contiguous, one-dimensional buffer of n numbers of type Real.
template <class Real>
Real* numbers(const py::buffer_info& info, py::ssize_t n) {
  if (info.ndim != 1 || info.size != n || info.itemsize != sizeof(Real) ||
      info.format != py::format_descriptor<Real>::format() ||
      (n > 1 && info.strides[0] != static_cast<py::ssize_t>(sizeof(Real)))) {
    throw std::invalid_argument("expected contiguous one-dimensional buffers of one length and one floating type");
  }
  return static_cast<Real*>(info.ptr);
}

void elementary(const std::string& function, const py::buffer& in, const py::buffer& out) {
  if (function != "exp" && function != "log1p" && function != "log") {
    throw std::invalid_argument("expected function to be exp, log1p or log, got " + function);
  }
  const py::buffer_info from = in.request(), to = out.request(true);
  focal::cpu::kernels().elementary_float32(function.c_str(), numbers<float>(from, from.size),
                                           numbers<float>(to, from.size), from.size);
}

py::dict build_info() {
  py::dict info;
  const std::string cuda = FOCAL_CUDA_CUDA_VERSION;
  info["version"] = FOCAL_CUDA_VERSION;
  info["with_cuda"] = !cuda.empty();
  info["cuda_version"] = cuda.empty() ? py::object(py::none()) : py::object(py::str(cuda));
  info["cuda_architectures"] = FOCAL_CUDA_CUDA_ARCHITECTURES;
  info["built_with_torch"] = FOCAL_CUDA_BUILT_WITH_TORCH;
  info["torch_target"] = "2.11";
  info["compiler"] = __VERSION__;
  info["compiler_flags"] = FOCAL_CUDA_CXX_FLAGS;
  info["nvcc_flags"] = FOCAL_CUDA_NVCC_FLAGS;
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "Build information and test probes of focal_cuda; importing it registers torch.ops.focal_cuda.";
  module.def("build_info", &build_info, "How this extension was built.");
  module.def("cpu_capability", [] { return focal::cpu::kernels().isa; }, "The instruction set in use: base, v3 or v4.");
  module.def("elementary", &elementary, py::arg("function"), py::arg("values"), py::arg("out"),
             "Applies exp (values <= 0), log1p (0 <= values <= 1) or log to float32 values, as the engines do.");
}
