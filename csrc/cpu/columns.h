// Softmax engine for strided classes and for short rows: a tile of positions side by side, vectorised across them.
//   tile      classes x tile_positions logits in L1, transposed on the way in where the classes are contiguous
//   passes    in the tile: maximum of the other classes, their exponentials and sum, the margin's loss, the gradient
//   traffic   logits read once, targets once, gradient written once
//   order     tiles in order, one double partial sum per chunk: the same bits for any number of threads
// Compiled once per instruction set (FOCAL_CPU_ISA). Must not know: which loss the Term is, torch.
#pragma once

#include "cpu/column_tile.h"
#include "cpu/term.h"

namespace focal::cpu::FOCAL_CPU_ISA {

template <class Term>
class Columns : ColumnTile<typename Term::Real> {
  using Math = typename Term::Math;
  using Real = typename Term::Real;
  using Tile = ColumnTile<Real>;
  using Tile::classes_, Tile::codes_, Tile::count_, Tile::task_, Tile::width_;

 public:
  explicit Columns(const Task& task)
      : Tile(task, {&logits_}, {&own_, &largest_, &total_, &margin_, &weight_, &slope_, &result_, &sample_, &gamma_}),
        want_(wanted(task)) {}

  void chunk(int64_t index) {
    const double sum_of_losses = this->for_tiles(index, [&] { return tile(); });
    if (task_.partial_sums) task_.partial_sums[index] = sum_of_losses;
  }

 private:
  double tile() {
    read();
    margins();
    if (task_.tensor[kGradient]) this->load_slopes(slope_, weight_);
    const double sum = Term::hard(task_, task_.gammas ? gamma_ : nullptr, [&](const auto& loss) {
      return map(want_, Weighted<std::decay_t<decltype(loss)>>{loss, margin_, weight_, slope_}, result_, count_);
    });
    if (task_.tensor[kLoss]) this->store_loss(result_);
    if (task_.tensor[kGradient]) gradient();
    return sum;
  }

  // Logits into the tile; the target's own logit is taken out and leaves -inf, so that only the others remain.
  void read() {
    this->load_labels();
    this->load_samples(sample_);
    this->load_logits(logits_);
    const Real *weights = static_cast<const Real*>(task_.positive_weights),
               *gammas = static_cast<const Real*>(task_.gammas);
    const bool samples = static_cast<bool>(task_.tensor[kSampleWeight]);
    for (int p = 0; p < count_; ++p) {
      if (codes_[p] == kIgnored) {
        // Whatever stands there, NaN included, becomes an ordinary row of weight 0.
        for (int c = 0; c < classes_; ++c) logits_[c * width_ + p] = 0;
        own_[p] = weight_[p] = gamma_[p] = 0;
      } else {
        Real& own = logits_[codes_[p] * width_ + p];
        own_[p] = own;
        own = -std::numeric_limits<Real>::infinity();
        weight_[p] = weights ? weights[codes_[p]] : static_cast<Real>(task_.positive_weight);
        if (samples) weight_[p] *= sample_[p];
        if (gammas) gamma_[p] = gammas[codes_[p]];
      }
    }
  }

  void margins() {
    Real* FOCAL_RESTRICT largest = largest_;
    Real* FOCAL_RESTRICT total = total_;
    const Real lowest = -std::numeric_limits<Real>::infinity();
#pragma omp simd
    for (int p = 0; p < count_; ++p) largest[p] = lowest;
    this->by_classes([&](auto classes, int c) { add_maximum<decltype(classes)::value>(c); });
    // All others -inf (masked classes): shift by 0 instead, so that -inf - -inf does not arise.
#pragma omp simd
    for (int p = 0; p < count_; ++p) {
      largest[p] = largest[p] == lowest ? Real(0) : largest[p];
      total[p] = 0;
    }
    this->by_classes([&](auto classes, int c) { add_exponentials<decltype(classes)::value>(c); });
    Real* FOCAL_RESTRICT margin = margin_;
    const Real* FOCAL_RESTRICT own = own_;
#pragma omp simd
    for (int p = 0; p < count_; ++p) margin[p] = (own[p] - largest[p]) - Math::log(total[p]);
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

  // d loss / d x_t = slope, d loss / d x_j = -slope e_j / total. Entering the target as e_t = -total makes both one product.
  void gradient() {
    Real* FOCAL_RESTRICT factor = result_;
    const Real* FOCAL_RESTRICT total = total_;
#pragma omp simd
    for (int p = 0; p < count_; ++p) factor[p] = total[p] == Real(0) ? Real(0) : -factor[p] / total[p];
    for (int p = 0; p < count_; ++p) {
      if (codes_[p] != kIgnored) logits_[codes_[p] * width_ + p] = -total[p];
    }
    this->store_gradient(logits_, factor);
  }

  const Want want_;
  Real *logits_, *own_, *largest_, *total_, *margin_, *weight_, *slope_, *result_, *sample_, *gamma_;
};

}  // namespace focal::cpu::FOCAL_CPU_ISA
