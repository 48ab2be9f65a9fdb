// Softmax engine for strided classes and for short rows: a tile of positions side by side, vectorised across them.
//   tile      classes x tile_positions logits in L1, transposed on the way in where the classes are contiguous
//   passes    in the tile: maximum of the other classes, their exponentials and sum, the margin's loss, the gradient
//   traffic   logits read once, targets once, gradient written once
//   order     tiles in order, one double partial sum per chunk: the same bits for any number of threads
// Compiled once per instruction set (FOCAL_CPU_ISA). Must not know: which loss the Term is, torch.
#pragma once

#include "cpu/term.h"
#include "cpu/transpose.h"

namespace focal::cpu::FOCAL_CPU_ISA {

template <class Term>
class Columns {
  using Math = typename Term::Math;
  using Real = typename Term::Real;

 public:
  explicit Columns(const Task& task)
      : task_(task),
        want_(wanted(task)),
        width_(static_cast<int>(task.tile_positions)),
        classes_(static_cast<int>(task.classes)) {
    const size_t reals = static_cast<size_t>(classes_ + 7) * width_;
    Real* memory = static_cast<Real*>(scratch(reals * sizeof(Real) + (sizeof(Run) + sizeof(int32_t)) * width_));
    logits_ = memory;
    memory += static_cast<size_t>(classes_) * width_;
    for (Real** array : {&own_, &largest_, &total_, &margin_, &weight_, &slope_, &result_}) {
      *array = memory;
      memory += width_;
    }
    runs_ = reinterpret_cast<Run*>(memory);
    codes_ = reinterpret_cast<int32_t*>(runs_ + width_);
  }

  void chunk(int64_t index) {
    const int64_t first = index * task_.tiles_per_chunk;
    const int64_t last = first + task_.tiles_per_chunk < task_.tiles ? first + task_.tiles_per_chunk : task_.tiles;
    Cursor cursor(task_.positions, first * task_.tile_positions);
    double sum_of_losses = 0;
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t left = task_.positions.count - tile * task_.tile_positions;
      count_ = left < width_ ? static_cast<int>(left) : width_;
      run_count_ = 0;
      for (int done = 0; done < count_; done += static_cast<int>(runs_[run_count_++].length))
        runs_[run_count_] = cursor.next(count_ - done);
      read();
      margins();
      if (task_.tensor[kGradient]) slopes();
      sum_of_losses += Term::hard(task_, [&](const auto& loss) {
        return map(want_, Weighted<std::decay_t<decltype(loss)>>{loss, margin_, weight_, slope_}, result_, count_);
      });
      if (task_.tensor[kLoss]) {
        for_runs(kLoss, [&](int p, int64_t offset, int64_t stride, int n) {
          store_run(task_.tensor[kLoss], offset, stride, result_ + p, Uniform<Real>{1}, n);
        });
      }
      if (task_.tensor[kGradient]) gradient();
    }
    if (task_.partial_sums) task_.partial_sums[index] = sum_of_losses;
  }

 private:
  // Calls visit(position in the tile, offset, stride, length) for every run.
  template <class Visit>
  void for_runs(Operand operand, const Visit& visit) const {
    const int64_t stride = task_.positions.innermost().stride[operand];
    int position = 0;
    for (int r = 0; r < run_count_; ++r) {
      const int length = static_cast<int>(runs_[r].length);
      visit(position, runs_[r].offset[operand], stride, length);
      position += length;
    }
  }

  // Contiguous classes of fp32, enough for a block: transposed in registers.
  bool short_rows(const Tensor& tensor) const {
    return tensor.class_stride == 1 && classes_ >= kBlock && tensor.dtype == DType::kFloat32;
  }

  // Logits into the tile; the target's own logit is taken out and leaves -inf, so that only the others remain.
  void read() {
    for_runs(kTargets, [&](int p, int64_t offset, int64_t stride, int n) {
      load_codes(codes_ + p, task_.tensor[kTargets], task_.index, offset, stride, n);
    });
    const Tensor& logits = task_.tensor[kLogits];
    for_runs(kLogits, [&](int p, int64_t offset, int64_t stride, int n) {
      if (short_rows(logits)) {
        if constexpr (std::is_same_v<Real, float>) {
          rows_to_tile(static_cast<const float*>(logits.data) + offset, stride, logits_ + p, width_, classes_, n);
        }
        return;
      }
      for (int c = 0; c < classes_; ++c) {
        if (c + kAhead < classes_) prefetch_run<false>(logits, offset + (c + kAhead) * logits.class_stride, stride, n);
        load_run(logits_ + c * width_ + p, logits, offset + c * logits.class_stride, stride, n);
      }
    });
    const Real* alpha = static_cast<const Real*>(task_.alpha);
    for (int p = 0; p < count_; ++p) {
      if (codes_[p] == kIgnored) {
        // Whatever stands there, NaN included, becomes an ordinary row of weight 0.
        for (int c = 0; c < classes_; ++c) logits_[c * width_ + p] = 0;
        own_[p] = weight_[p] = 0;
      } else {
        Real& own = logits_[codes_[p] * width_ + p];
        own_[p] = own;
        own = -std::numeric_limits<Real>::infinity();
        weight_[p] = alpha ? alpha[codes_[p]] : static_cast<Real>(task_.positive_weight);
      }
    }
  }

  void margins() {
    Real* FOCAL_RESTRICT largest = largest_;
    Real* FOCAL_RESTRICT total = total_;
    const Real lowest = -std::numeric_limits<Real>::infinity();
#pragma omp simd
    for (int p = 0; p < count_; ++p) largest[p] = lowest;
    by_classes([&](auto classes, int c) { add_maximum<decltype(classes)::value>(c); });
    // All others -inf (masked classes): shift by 0 instead, so that -inf - -inf does not arise.
#pragma omp simd
    for (int p = 0; p < count_; ++p) {
      largest[p] = largest[p] == lowest ? Real(0) : largest[p];
      total[p] = 0;
    }
    by_classes([&](auto classes, int c) { add_exponentials<decltype(classes)::value>(c); });
    Real* FOCAL_RESTRICT margin = margin_;
    const Real* FOCAL_RESTRICT own = own_;
#pragma omp simd
    for (int p = 0; p < count_; ++p) margin[p] = (own[p] - largest[p]) - Math::log(total[p]);
  }

  // Four classes at a time, so that the running maximum or sum is loaded and stored once for four: the passes are bound
  // by stores (0.69 -> 0.50 ns per element in cache, C = 19).
  template <class Pass>
  void by_classes(const Pass& pass) const {
    int c = 0;
    for (; c + 4 <= classes_; c += 4) pass(std::integral_constant<int, 4>{}, c);
    for (; c < classes_; ++c) pass(std::integral_constant<int, 1>{}, c);
  }

  template <int classes>
  void add_maximum(int c) {
    const Real* FOCAL_RESTRICT x = logits_ + c * width_;
    Real* FOCAL_RESTRICT largest = largest_;
    const int width = width_;
#pragma omp simd
    for (int p = 0; p < count_; ++p) {
      Real most = largest[p];
      for (int i = 0; i < classes; ++i) most = x[i * width + p] > most ? x[i * width + p] : most;
      largest[p] = most;
    }
  }

  template <int classes>
  void add_exponentials(int c) {
    Real* FOCAL_RESTRICT x = logits_ + c * width_;
    const Real* FOCAL_RESTRICT largest = largest_;
    Real* FOCAL_RESTRICT total = total_;
    const int width = width_;
#pragma omp simd
    for (int p = 0; p < count_; ++p) {
      Real sum = 0;
      for (int i = 0; i < classes; ++i) {
        const Real e = Math::exp(x[i * width + p] - largest[p]);
        x[i * width + p] = e;
        sum += e;
      }
      total[p] += sum;
    }
  }

  // weight x upstream; an ignored position's is 0 whatever its upstream is.
  void slopes() {
    const bool upstream = static_cast<bool>(task_.tensor[kUpstream]);
    if (upstream) {
      for_runs(kUpstream, [&](int p, int64_t offset, int64_t stride, int n) {
        load_run(slope_ + p, task_.tensor[kUpstream], offset, stride, n);
      });
    }
    const Real scale = static_cast<Real>(task_.gradient_scale);
    for (int p = 0; p < count_; ++p) {
      const Real above = upstream ? slope_[p] * scale : scale;
      slope_[p] = codes_[p] == kIgnored ? Real(0) : weight_[p] * above;
    }
  }

  // d loss / d x_t = slope, d loss / d x_j = -slope e_j / total. Entering the target as e_t = -total makes both one product.
  void gradient() {
    Real* FOCAL_RESTRICT factor = result_;
    const Real* FOCAL_RESTRICT total = total_;
#pragma omp simd
    for (int p = 0; p < count_; ++p) factor[p] = total[p] == Real(0) ? Real(0) : -factor[p] / total[p];
    for (int p = 0; p < count_; ++p) {
      if (codes_[p] != kIgnored) logits_[codes_[p] * width_ + p] = -total[p];
    }
    const Tensor& out = task_.tensor[kGradient];
    for_runs(kGradient, [&](int p, int64_t offset, int64_t stride, int n) {
      if (short_rows(out)) {
        if constexpr (std::is_same_v<Real, float>) {
          tile_to_rows(logits_ + p, width_, factor + p, static_cast<float*>(out.data) + offset, stride, classes_, n);
        }
        return;
      }
      for (int c = 0; c < classes_; ++c) {
        store_run(out, offset + c * out.class_stride, stride, logits_ + c * width_ + p,
                  static_cast<const Real*>(factor + p), n);
      }
    });
  }

  static constexpr int kAhead = 4;

  const Task& task_;
  const Want want_;
  const int width_;
  const int classes_;
  int count_ = 0, run_count_ = 0;
  Real *logits_, *own_, *largest_, *total_, *margin_, *weight_, *slope_, *result_;
  Run* runs_;
  int32_t* codes_;
};

}  // namespace focal::cpu::FOCAL_CPU_ISA
