// Softmax engines for targets that are no single class: dense ones, and labels with smoothing, y = (1 - s) [c = t] + s / C.
//   SoftColumns   a tile of positions side by side, as Columns
//   SoftRows      one position at a time, vectorised across its classes
//   passes        in the tile: the largest logit and its class, the exponentials and the sum of all others (so that no
//                 1 - p cancels), every class's loss, the gradient
//   sums          over many classes in stages: those of smoothed labels have terms so alike that they would all be rounded
//                 the same way
//   traffic       logits read once, dense targets once, gradient written once
//   order         as in the engines of class labels
// Compiled once per instruction set (FOCAL_CPU_ISA). Must not know: which loss the Term is, torch.
#pragma once

#include "cpu/column_tile.h"
#include "cpu/rows.h"

namespace focal::cpu::FOCAL_CPU_ISA {

// What targets and weights of classes come to, by class.
template <class Real>
struct SoftRule {
  Real kept, added;  // y = kept * target + added
  const Real *weights, *gammas;
  Real weight;
  bool dense;
  Real ignored;

  explicit SoftRule(const Task& task)
      : kept(static_cast<Real>(1 - task.smoothing)),
        added(static_cast<Real>(task.smoothing / static_cast<double>(task.classes))),
        weights(static_cast<const Real*>(task.positive_weights)),
        gammas(static_cast<const Real*>(task.gammas)),
        weight(static_cast<Real>(task.positive_weight)),
        dense(task.dense),
        ignored(static_cast<Real>(task.dense_rule.ignore_value)) {}
};

template <class Term>
class SoftColumns : ColumnTile<typename Term::Real> {
  using Math = typename Term::Math;
  using Real = typename Term::Real;
  using Tile = ColumnTile<Real>;
  using Tile::classes_, Tile::codes_, Tile::count_, Tile::task_, Tile::width_;

 public:
  explicit SoftColumns(const Task& task)
      : Tile(task, {&relative_, &e_},
             {&largest_, &top_, &others_, &inverse_, &log_sum_, &weight_, &slope_, &value_, &own_, &turn_, &target_,
              &second_, &third_, &fourth_, &stage_, &turn_stage_}),
        rule_(task) {}

  void chunk(int64_t index) {
    const double sum = this->for_tiles(index, [&] { return tile(); });
    if (task_.partial_sums) task_.partial_sums[index] = sum;
  }

 private:
  double tile() {
    read();
    exponentials();
    for (int p = 0; p < count_; ++p) value_[p] = own_[p] = turn_[p] = stage_[p] = turn_stage_[p] = 0;
    const auto settle_both = [&] { settle(stage_, value_), settle(turn_stage_, turn_); };
    this->by_classes([&](auto classes, int c) {
      constexpr int kClasses = decltype(classes)::value;
      if (c % kStage == 0) settle_both();
      if (rule_.gammas || task_.rule.gamma != 2) {
        // A loss with exponentials of its own leaves no registers for more.
        for (int i = c; i < c + kClasses; ++i) {
          const Real* gamma = rule_.gammas ? rule_.gammas + i : nullptr;
          Term::of_class(task_, gamma, [&](const auto& loss) { return shares<1>(at(loss, 0), i); });
        }
      } else {
        Term::of_class(task_, nullptr, [&](const auto& loss) { return shares<kClasses>(at(loss, 0), c); });
      }
    });
    settle_both();
    double sum = 0;
    for (int p = 0; p < count_; ++p) {
      value_[p] = codes_[p] == kIgnored ? Real(0) : weight_[p] * value_[p];
      sum += static_cast<double>(value_[p]);
    }
    if (task_.tensor[kLoss]) this->store_loss(value_);
    if (task_.tensor[kGradient]) gradient();
    return sum;
  }

  void read() {
    if (rule_.dense) {
      this->load_line(kTargets, target_);
      for (int p = 0; p < count_; ++p) codes_[p] = target_[p] == rule_.ignored ? kIgnored : 0;
    } else {
      this->load_labels();
    }
    for (int p = 0; p < count_; ++p) weight_[p] = 1;
    this->load_samples(weight_);
    this->load_logits(relative_);
    for (int p = 0; p < count_; ++p) {
      if (codes_[p] != kIgnored) continue;
      for (int c = 0; c < classes_; ++c) relative_[c * width_ + p] = 0;
    }
  }

  void exponentials() {
    const Real lowest = -std::numeric_limits<Real>::infinity();
    Real *FOCAL_RESTRICT largest = largest_, *FOCAL_RESTRICT top = top_;
    for (int p = 0; p < count_; ++p) largest[p] = lowest, top[p] = 0;
    this->by_classes([&](auto classes, int c) { add_top<decltype(classes)::value>(c); });
    Real* FOCAL_RESTRICT others = others_;
    for (int p = 0; p < count_; ++p) {
      largest[p] = largest[p] == lowest ? Real(0) : largest[p];
      others[p] = stage_[p] = 0;
    }
    this->by_classes([&](auto classes, int c) {
      if (c % kStage == 0) settle(stage_, others_);
      add_exponentials<decltype(classes)::value>(c);
    });
    settle(stage_, others_);
    Real *FOCAL_RESTRICT inverse = inverse_, *FOCAL_RESTRICT log_sum = log_sum_;
#pragma omp simd
    for (int p = 0; p < count_; ++p) {
      inverse[p] = Real(1) / (Real(1) + others[p]);
      log_sum[p] = log_of_sum<Math>(others[p]);
    }
  }

  static constexpr int kStage = 64;  // classes, a multiple of what by_classes takes at a time

  void settle(Real* FOCAL_RESTRICT stage, Real* FOCAL_RESTRICT total) const {
#pragma omp simd
    for (int p = 0; p < count_; ++p) {
      total[p] += stage[p];
      stage[p] = 0;
    }
  }

  template <int classes>
  void add_top(int c) {
    const Real* FOCAL_RESTRICT x = relative_ + c * width_;
    Real *FOCAL_RESTRICT largest = largest_, *FOCAL_RESTRICT top = top_;
    const int width = width_;
#pragma omp simd
    for (int p = 0; p < count_; ++p) {
      Real most = largest[p], at = top[p];
      for (int i = 0; i < classes; ++i) {
        const Real candidate = x[i * width + p];
        at = candidate > most ? static_cast<Real>(c + i) : at;
        most = candidate > most ? candidate : most;
      }
      largest[p] = most;
      top[p] = at;
    }
  }

  template <int classes>
  void add_exponentials(int c) {
    Real *FOCAL_RESTRICT x = relative_ + c * width_, *FOCAL_RESTRICT e = e_ + c * width_;
    Real* FOCAL_RESTRICT others = stage_;
    const Real *FOCAL_RESTRICT largest = largest_, *FOCAL_RESTRICT top = top_;
    const int width = width_;
#pragma omp simd
    for (int p = 0; p < count_; ++p) {
      Real sum = 0;
      for (int i = 0; i < classes; ++i) {
        const Real relative = x[i * width + p] - largest[p], exponential = Math::exp(relative);
        x[i * width + p] = relative;
        e[i * width + p] = exponential;
        sum += top[p] == static_cast<Real>(c + i) ? Real(0) : exponential;
      }
      others[p] += sum;
    }
  }

  // Adds the classes' losses to the positions' values and leaves w deriv in place of their relative logits.
  template <int classes, class Loss>
  int shares(const Loss& loss, int c) {
    return rule_.dense ? shares<classes, true>(loss, c) : shares<classes, false>(loss, c);
  }

  template <int classes, bool dense, class Loss>
  int shares(const Loss loss, int c) {
    Real* FOCAL_RESTRICT x = relative_ + c * width_;
    Real *FOCAL_RESTRICT value = stage_, *FOCAL_RESTRICT own = own_, *FOCAL_RESTRICT turn = turn_stage_;
    const Real *FOCAL_RESTRICT e = e_ + c * width_, *FOCAL_RESTRICT target = target_, *FOCAL_RESTRICT top = top_;
    const Real *FOCAL_RESTRICT others = others_, *FOCAL_RESTRICT inverse = inverse_, *FOCAL_RESTRICT log_sum = log_sum_;
    const int32_t* FOCAL_RESTRICT codes = codes_;
    const int width = width_;
    Real kept[classes], added[classes];
    for (int i = 0; i < classes; ++i) {
      const Real weight = rule_.weights ? rule_.weights[c + i] : rule_.weight;
      kept[i] = rule_.kept * weight;
      added[i] = rule_.added * weight;
      if (dense) this->load_line(kTargets, target_ + i * width_, c + i);
    }
#pragma omp simd
    for (int p = 0; p < count_; ++p) {
      const bool ignored = codes[p] == kIgnored;
      Real of_value = 0, of_own = own[p], of_turn = 0;
      for (int i = 0; i < classes; ++i) {
        const int k = i * width + p;
        const bool on_top = top[p] == static_cast<Real>(c + i);
        const ClassShare<Real> share(on_top, e[k], x[k], others[p], inverse[p], log_sum[p]);
        const ValueDeriv<Real> result = loss(share.p, share.q, share.ce);
        const Real given = dense ? target[k] : codes[p] == c + i ? Real(1) : Real(0);
        const Real weight = ignored ? Real(0) : kept[i] * given + added[i];
        // A class that is masked by -inf has an infinite loss and may well have a target of 0.
        of_value += weight == Real(0) ? Real(0) : weight * result.value;
        const Real slope = weight * result.deriv;
        x[k] = slope;
        of_own = on_top ? slope : of_own;
        of_turn += on_top ? Real(0) : slope;
      }
      value[p] += of_value;
      own[p] = of_own;
      turn[p] += of_turn;
    }
    return 0;
  }

  void gradient() {
    this->load_slopes(slope_, weight_);
    for (int p = 0; p < count_; ++p) {
      const Real own = own_[p], turn = turn_[p];
      own_[p] = slope_at_top(own, turn, others_[p], inverse_[p]);
      turn_[p] = (own + turn) * inverse_[p];
    }
    for (int c = 0; c < classes_; ++c) {
      Real* FOCAL_RESTRICT x = relative_ + c * width_;
      const Real *FOCAL_RESTRICT e = e_ + c * width_, *FOCAL_RESTRICT turn = turn_;
#pragma omp simd
      for (int p = 0; p < count_; ++p) x[p] -= e[p] * turn[p];
    }
    for (int p = 0; p < count_; ++p) relative_[static_cast<int>(top_[p]) * width_ + p] = own_[p];
    this->store_gradient(relative_, slope_);
  }

  const SoftRule<Real> rule_;
  Real *relative_, *e_, *largest_, *top_, *others_, *inverse_, *log_sum_, *weight_, *slope_, *value_, *own_, *turn_;
  Real *target_, *second_, *third_, *fourth_;  // neighbours: the targets of four classes
  Real *stage_, *turn_stage_;
};

template <class Term>
class SoftRows {
  using Math = typename Term::Math;
  using Real = typename Term::Real;

 public:
  explicit SoftRows(const Task& task) : task_(task), rule_(task), classes_(static_cast<int>(task.classes)) {
    relative_ = static_cast<Real*>(scratch(3 * sizeof(Real) * static_cast<size_t>(classes_)));
    e_ = relative_ + classes_;
    target_ = e_ + classes_;
  }

  void chunk(int64_t index) {
    for_rows<Real>(task_, index, run_, [&] { return row(); });
  }

 private:
  // One number of the position.
  Real number(Operand operand, Real otherwise) const {
    Real value = otherwise;
    if (task_.tensor[operand]) load_run(&value, task_.tensor[operand], run_.offset[operand], 1, 1);
    return value;
  }

  Real row() {
    int32_t label = 0;
    if (!rule_.dense) load_codes(&label, task_.tensor[kTargets], task_.index, run_.offset[kTargets], 1, 1);
    const Real sample = number(kSampleWeight, Real(1));
    const bool ignored = rule_.dense ? number(kTargets, Real(0)) == rule_.ignored : label == kIgnored;
    const Tensor& out = task_.tensor[kGradient];
    if (ignored || sample == Real(0)) {
      for (int c = 0; c < classes_; ++c) relative_[c] = 0;
      if (out) store_run(out, run_.offset[kGradient], out.class_stride, relative_, Uniform<Real>{1}, classes_);
      return 0;
    }
    read(label);
    exponentials();
    const Real value = Term::of_class(task_, rule_.gammas, [&](const auto& loss) { return shares(loss); });
    if (out) {
      Real upstream = 1;
      if (task_.tensor[kUpstream]) load_upstream(task_, &upstream, run_.offset[kUpstream], 1, 1);
      const Real slope = sample * upstream * static_cast<Real>(task_.gradient_scale);
      store_run(out, run_.offset[kGradient], out.class_stride, relative_, Uniform<Real>{slope}, classes_);
    }
    return sample * value;
  }

  // Logits, and targets with the classes' weights.
  void read(int32_t label) {
    const Tensor &logits = task_.tensor[kLogits], &targets = task_.tensor[kTargets];
    load_run(relative_, logits, run_.offset[kLogits], logits.class_stride, classes_);
    if (rule_.dense) {
      load_run(target_, targets, run_.offset[kTargets], targets.class_stride, classes_);
      for (int c = 0; c < classes_; ++c) target_[c] = rule_.kept * target_[c] + rule_.added;
    } else {
      for (int c = 0; c < classes_; ++c) target_[c] = rule_.added;
      target_[label] += rule_.kept;
    }
    for (int c = 0; c < classes_; ++c) target_[c] *= rule_.weights ? rule_.weights[c] : rule_.weight;
  }

  void exponentials() {
    const Real lowest = -std::numeric_limits<Real>::infinity();
    const Real* FOCAL_RESTRICT x = relative_;
    Real largest = lowest;
#pragma omp simd reduction(max : largest)
    for (int c = 0; c < classes_; ++c) largest = x[c] > largest ? x[c] : largest;
    top_ = 0;
    while (top_ + 1 < classes_ && x[top_] != largest) ++top_;
    const Real shift = largest == lowest ? Real(0) : largest;
    others_ = 0;
    for (int c = 0; c < classes_; c += kStage) others_ += add_exponentials(c, shift);
  }

  static constexpr int kStage = 512;
  int length(int c) const { return classes_ - c < kStage ? classes_ - c : kStage; }

  Real add_exponentials(int begin, Real shift) {
    Real *FOCAL_RESTRICT x = relative_ + begin, *FOCAL_RESTRICT e = e_ + begin;
    const int top = top_ - begin, n = length(begin);
    Real others = 0;
#pragma omp simd reduction(+ : others)
    for (int c = 0; c < n; ++c) {
      const Real relative = x[c] - shift, exponential = Math::exp(relative);
      x[c] = relative;
      e[c] = exponential;
      others += c == top ? Real(0) : exponential;
    }
    return others;
  }

  // The position's loss; leaves the gradient for an upstream of 1 in place of the relative logits.
  template <class Loss>
  Real shares(const Loss& loss) {
    const Real inverse = Real(1) / (Real(1) + others_), log_sum = log_of_sum<Math>(others_);
    Real value = 0, own = 0, turn = 0;
    for (int c = 0; c < classes_; c += kStage) {
      const Share share = add_shares(loss, c, inverse, log_sum);
      value += share.value;
      own += share.own;
      turn += share.turn;
    }
    const Real all = (own + turn) * inverse;
    Real* FOCAL_RESTRICT x = relative_;
    const Real* FOCAL_RESTRICT e = e_;
#pragma omp simd
    for (int c = 0; c < classes_; ++c) x[c] -= e[c] * all;
    x[top_] = slope_at_top(own, turn, others_, inverse);
    return value;
  }

  struct Share {
    Real value, own, turn;
  };

  template <class Loss>
  Share add_shares(const Loss& loss, int begin, Real inverse, Real log_sum) {
    Real* FOCAL_RESTRICT x = relative_ + begin;
    const Real *FOCAL_RESTRICT e = e_ + begin, *FOCAL_RESTRICT target = target_ + begin;
    const Real others = others_;
    const int top = top_ - begin, n = length(begin);
    Real value = 0, own = 0, turn = 0;
#pragma omp simd reduction(+ : value, own, turn)
    for (int c = 0; c < n; ++c) {
      const ClassShare<Real> share(c == top, e[c], x[c], others, inverse, log_sum);
      const ValueDeriv<Real> result = at(loss, begin + c)(share.p, share.q, share.ce);
      value += target[c] == Real(0) ? Real(0) : target[c] * result.value;
      x[c] = target[c] * result.deriv;
      own += c == top ? x[c] : Real(0);
      turn += c == top ? Real(0) : x[c];
    }
    return {value, own, turn};
  }

  const Task& task_;
  const SoftRule<Real> rule_;
  const int classes_;
  int top_ = 0;
  Real others_ = 0;
  Real *relative_, *e_, *target_;
  Run run_{};
};

}  // namespace focal::cpu::FOCAL_CPU_ISA
