// The engines compiled for one instruction set. The including file defines FOCAL_CPU_ISA (a namespace of its own, so that
// no two instruction sets ever share a function) and sets the target before it includes this. float64 calls the C library
// for every element and gains nothing from a wider set: it is compiled in kernels_base.cpp alone (FOCAL_CPU_FLOAT64).
#include "cpu/columns.h"
#include "cpu/elementwise.h"
#include "cpu/rows.h"
#include "cpu/scan.h"
#include "cpu/select.h"
#include "cpu/soft.h"

namespace focal::cpu::FOCAL_CPU_ISA {

void* scratch(size_t bytes) { return cpu::thread_scratch(bytes); }

template <class Term, template <class> class Engine>
void run_engine(const Task& task, int64_t first, int64_t last) {
  Engine<Term> engine(task);
  for (int64_t i = first; i < last; ++i) engine.chunk(i);
}

template <class Math>
void run(const Task& task, int64_t first, int64_t last) {
  using Term = FocalTerm<Math>;
  switch (task.engine) {
    case Engine::kElementwise: run_engine<Term, Elementwise>(task, first, last); break;
    case Engine::kColumns: run_engine<Term, Columns>(task, first, last); break;
    case Engine::kRows: run_engine<Term, Rows>(task, first, last); break;
    case Engine::kSoftColumns: run_engine<Term, SoftColumns>(task, first, last); break;
    case Engine::kSoftRows: run_engine<Term, SoftRows>(task, first, last); break;
  }
  if (task.tensor[kGradient].stream) finish_streams();
}

void scan(const ScanTask& task, int64_t first, int64_t last) {
  for (int64_t i = first; i < last; ++i) scan_chunk(task, i);
}

void elementary(const char* function, const float* in, float* out, int64_t n) {
  switch (function[0] == 'e' ? 0 : function[3] == '1' ? 1 : 2) {
    case 0:
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) out[i] = PolyMath::exp(in[i]);
      return;
    case 1:
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) out[i] = PolyMath::log1p(in[i]);
      return;
    default:
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) out[i] = PolyMath::log(in[i]);
  }
}

template <class Math, class Real = typename Math::Real>
void margin(double gamma, const Real* in, Real* value, Real* deriv, int64_t n) {
  Task task;
  task.rule.gamma = gamma;
  constexpr int kOnes = 256;
  Real ones[kOnes];
  for (Real& one : ones) one = 1;
  for (int64_t i = 0; i < n; i += kOnes) {
    const int count = n - i < kOnes ? static_cast<int>(n - i) : kOnes;
    FocalTerm<Math>::hard(task, [&](const auto& loss) {
      const Weighted<std::decay_t<decltype(loss)>> element{loss, in + i, ones, ones};
      map(Want::kSumAndValues, element, value + i, count);
      return map(Want::kSlopes, element, deriv + i, count);
    });
  }
}

template <class Real>
constexpr SelectKernels<Real> kSelect = {split<Real>, tally<Real>, keep<Real>};

}  // namespace focal::cpu::FOCAL_CPU_ISA

namespace focal::cpu::base {
void run_float64(const Task& task, int64_t first, int64_t last);
void margin_float64(double gamma, const double* margin, double* value, double* deriv, int64_t n);
#if defined(FOCAL_CPU_FLOAT64)
void run_float64(const Task& task, int64_t first, int64_t last) { run<LibmMath<double>>(task, first, last); }
void margin_float64(double gamma, const double* in, double* value, double* deriv, int64_t n) {
  margin<LibmMath<double>>(gamma, in, value, deriv, n);
}
#endif
}  // namespace focal::cpu::base

namespace focal::cpu::FOCAL_CPU_ISA {

extern const Kernels table;
const Kernels table = {FOCAL_CPU_ISA_NAME, run<PolyMath>,        base::run_float64, scan,           elementary,
                       margin<PolyMath>,   base::margin_float64, kSelect<float>,    kSelect<double>};

}  // namespace focal::cpu::FOCAL_CPU_ISA
