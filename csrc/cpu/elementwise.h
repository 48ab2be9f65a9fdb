// Sigmoid engine: every element of the logits is its own binary problem.
//   tile      tile_positions x tile_classes elements, flat, in the L1 cache
//   lines     along the classes where they are contiguous (a line per position), else along the positions (one per class)
//   targets   class index along the classes: a tile is negatives throughout, read and written where it lies, and the rare
//             positives are taken out and put in by themselves. Everything else is a tile of dense targets; one with a
//             soft value takes the loss of logits and targets, as does every tile of a loss that is none of margins.
//   traffic   logits read once, targets once per class block, gradient written once
//   order     tiles in order, one double partial sum per chunk: the same bits for any number of threads
// Compiled once per instruction set (FOCAL_CPU_ISA). Must not know: which loss the Term is, torch.
#pragma once

#include "cpu/runs.h"
#include "cpu/term.h"

namespace focal::cpu::FOCAL_CPU_ISA {

template <class Term>
class Elementwise {
  using Real = typename Term::Real;

 public:
  explicit Elementwise(const Task& task)
      : task_(task),
        want_(wanted(task)),
        result_(task.tensor[kLoss] ? kLoss : kGradient),
        by_class_(task.tensor[kLogits].class_stride == 1 && task.classes > 1),
        upstream_each_(task.tensor[kUpstream] && !task.kept),
        by_rows_(by_class_ && !task.gammas && !upstream_each_ &&
                 !(task.tensor[kSampleWeight] && task.tensor[kSampleWeight].class_stride != 0)),
        by_target_(!is_of_margin(task.rule.loss) || task.smoothing > 0),
        alike_(!task.positive_weights && !upstream_each_ && !task.tensor[kSampleWeight]),
        lowest_target_(static_cast<Real>(task.smoothing / 2)),
        share_(task.rule.loss),
        positions_(static_cast<int>(task.tile_positions)) {
    const int capacity = positions_ * static_cast<int>(task.tile_classes);
    Real* memory = static_cast<Real*>(scratch((11 * sizeof(Real) + sizeof(int32_t)) * capacity +
                                              (sizeof(Positive) + sizeof(Run)) * (positions_ + 1)));
    for (Real** array :
         {&logit_, &target_, &out_, &score_, &upstream_, &sample_, &positive_, &negative_, &lowest_, &gamma_, &own_}) {
      *array = memory;
      memory += capacity;
    }
    const Real positive = static_cast<Real>(task.positive_weight), negative = static_cast<Real>(task.negative_weight);
    // No tile has more elements than the task: a small one does not fill what it will not read.
    const int64_t elements = task.positions.count * task.tile_classes;
    const int filled = elements < capacity ? static_cast<int>(elements) : capacity;
    for (int k = 0; k < filled; ++k) {
      upstream_[k] = sample_[k] = 1;
      positive_[k] = positive;
      negative_[k] = negative;
    }
    mix_lowest(filled);
    places_ = reinterpret_cast<Positive*>(memory);
    runs_ = aligned<Run>(places_ + positions_);
    codes_ = reinterpret_cast<int32_t*>(runs_ + positions_);
  }

  // Tiles are numbered class block by class block within a block of positions.
  void chunk(int64_t index) {
    const int64_t first = index * task_.tiles_per_chunk;
    const int64_t last = first + task_.tiles_per_chunk < task_.tiles ? first + task_.tiles_per_chunk : task_.tiles;
    double total = 0;
    found_ = {};
    for (int64_t tile = first; tile < last; ++tile) {
      locate(tile);
      Real* direct = want_ == Want::kSum || task_.kept ? out_ : where(result_);
      Real* out = direct ? direct : out_;
      total += evaluate(out);
      if (task_.kept) drop_others(out);
      if (!direct || task_.kept) write(result_, out);
    }
    if (task_.partial_sums) task_.partial_sums[index] = total;
    if (task_.findings) task_.findings[index] = found_;
  }

 private:
  struct Positive {
    int at;
    Real target, sample, logit;
  };

  void locate(int64_t tile) {
    const int64_t blocks = task_.class_blocks();
    const int64_t position = tile / blocks * task_.tile_positions;
    class_begin_ = tile % blocks * task_.tile_classes;
    const int64_t classes_left = task_.classes - class_begin_;
    classes_ = static_cast<int>(classes_left < task_.tile_classes ? classes_left : task_.tile_classes);
    const int64_t left = task_.positions.count - position;
    positions_ = static_cast<int>(left < task_.tile_positions ? left : task_.tile_positions);
    count_ = positions_ * classes_;
    Cursor cursor(task_.positions, position);
    run_count_ = 0;
    for (int64_t done = 0; done < positions_; done += runs_[run_count_++].length)
      runs_[run_count_] = cursor.next(positions_ - done);
    if (task_.positive_weights || task_.gammas) prepare_numbers();
  }

  // What classes have of their own at every element of the tile; it changes with the tile's shape only.
  void prepare_numbers() {
    if (weights_class_ == class_begin_ && weights_positions_ == positions_) return;
    weights_class_ = class_begin_;
    weights_positions_ = positions_;
    const auto spread = [&](const void* of_classes, Real* to) {
      if (!of_classes) return;
      const Real* from = static_cast<const Real*>(of_classes) + class_begin_;
      for (int p = 0; p < positions_; ++p) {
        for (int c = 0; c < classes_; ++c) to[by_class_ ? p * classes_ + c : c * positions_ + p] = from[c];
      }
    };
    spread(task_.positive_weights, positive_);
    spread(task_.negative_weights, negative_);
    spread(task_.gammas, gamma_);
    mix_lowest(count_);
  }

  // The weight of a negative, whose target smoothing may have raised above 0.
  void mix_lowest(int count) {
    const Real share = share_(lowest_target_);
    for (int k = 0; k < count; ++k) lowest_[k] = share * positive_[k] + (Real(1) - share) * negative_[k];
  }

  const Real* gammas() const { return task_.gammas ? gamma_ : nullptr; }

  // Calls visit(flat index in the tile, offset, stride, length) for every line of the operand.
  template <class Visit>
  void for_lines(Operand operand, const Visit& visit) const {
    const int64_t class_stride = task_.tensor[operand].class_stride;
    const int64_t inner = task_.positions.innermost().stride[operand];
    const int64_t base = class_begin_ * class_stride;
    int position = 0;
    for (int r = 0; r < run_count_; ++r) {
      const int64_t offset = runs_[r].offset[operand] + base;
      const int length = static_cast<int>(runs_[r].length);
      if (by_class_ && class_stride == 1 && inner == classes_ && classes_ == task_.classes) {
        visit(position * classes_, offset, int64_t{1}, length * classes_);  // whole rows that touch: one flat line
      } else if (by_class_) {
        for (int p = 0; p < length; ++p) visit((position + p) * classes_, offset + p * inner, class_stride, classes_);
      } else {
        for (int c = 0; c < classes_; ++c) visit(c * positions_ + position, offset + c * class_stride, inner, length);
      }
      position += length;
    }
  }

  void load(Operand operand, Real* out) const {
    const Tensor& tensor = task_.tensor[operand];
    for_lines(operand,
              [&](int k, int64_t offset, int64_t stride, int n) { load_run(out + k, tensor, offset, stride, n); });
  }

  // The gradients of all but the hardest become 0. Elements alike but for that take the path of those that are.
  void drop_others(Real* out) const {
    for_lines(kUpstream, [&](int k, int64_t offset, int64_t stride, int n) {
      const Real* loss = static_cast<const Real*>(task_.tensor[kUpstream].data) + offset;
      for_kept<Real>(*task_.kept, offset, stride, n, [&](int begin, int end, Key<Real> above) {
        if (stride == 1) {
#pragma omp simd
          for (int i = begin; i < end; ++i) out[k + i] = key_of(loss[i]) > above ? out[k + i] : Real(0);
        } else {
          for (int i = begin; i < end; ++i) {
            if (key_of(loss[i * stride]) <= above) out[k + i] = 0;
          }
        }
      });
    });
  }

  void write(Operand operand, const Real* in) const {
    const Tensor& tensor = task_.tensor[operand];
    for_lines(operand, [&](int k, int64_t offset, int64_t stride, int n) {
      store_run(tensor, offset, stride, in + k, Uniform<Real>{1}, n);
    });
  }

  // Where the tile lies in memory, if it lies there flat, in the computing type and for ordinary stores; or null.
  Real* where(Operand operand) const {
    const Tensor& tensor = task_.tensor[operand];
    const int64_t inner = task_.positions.innermost().stride[operand];
    const bool rows_touch = positions_ == 1 || (inner == classes_ && classes_ == task_.classes);
    const bool flat =
        by_class_ ? tensor.class_stride == 1 && rows_touch : classes_ == 1 && (inner == 1 || positions_ == 1);
    if (!flat || tensor.stream || run_count_ > 1 || tensor.dtype != DTypeOf<Real>::value) return nullptr;
    return static_cast<Real*>(tensor.data) + runs_[0].offset[operand] + class_begin_ * tensor.class_stride;
  }

  void load_position_codes() {
    const int64_t stride = task_.positions.innermost().stride[kTargets];
    int position = 0;
    for (int r = 0; r < run_count_; ++r) {
      const int length = static_cast<int>(runs_[r].length);
      load_codes(codes_ + position, task_.tensor[kTargets], task_.index, runs_[r].offset[kTargets], stride, length);
      position += length;
    }
    if (task_.tensor[kScores]) load_positions(kScores, score_);
  }

  // One number for each position.
  void load_positions(Operand operand, Real* out) const {
    const int64_t stride = task_.positions.innermost().stride[operand];
    for (int r = 0; r < run_count_; ++r) {
      const int length = static_cast<int>(runs_[r].length);
      load_run(out, task_.tensor[operand], runs_[r].offset[operand], stride, length);
      out += length;
    }
  }

  // Where in a tile with lines of classes the positive of position p stands, or -1.
  int hit(int p) const {
    const int64_t c = codes_[p] - class_begin_;
    return codes_[p] >= 0 && c >= 0 && c < classes_ ? p * classes_ + static_cast<int>(c) : -1;
  }

  // Rows of negatives that differ in the row's sample and the class's weight alone: stretches without a positive go in one
  // pass each; a row with a positive and an ignored one by itself.
  double negatives(Real* out) {
    load_position_codes();
    if (task_.tensor[kSampleWeight]) weigh_rows();
    int positives = 0;
    for (int p = 0; p < positions_; ++p) positives += hit(p) >= 0;
    // Where they are no exception.
    if ((by_target_ && positives * 8 > positions_) || task_.tensor[kScores]) return own_negatives(out);
    const Real* logit = where(kLogits);
    if (!logit || logit == out) {
      load(kLogits, logit_);
      logit = logit_;
    }
    if (by_target_) return Term::soft(task_, [&](const auto& loss) { return stretches<true>(loss, logit, out); });
    return Term::hard(task_, [&](const auto& loss) { return stretches<false>(loss, logit, out); });
  }

  // A row whose sample has a weight of 0 is as good as ignored. What is counted was counted before.
  void weigh_rows() {
    load_positions(kSampleWeight, sample_);
    for (int p = 0; p < positions_; ++p) {
      if (sample_[p] == Real(0)) codes_[p] = kIgnored;
      const Real* FOCAL_RESTRICT weight = lowest_ + p * classes_;
      Real* FOCAL_RESTRICT own = own_ + p * classes_;
      const Real sample = sample_[p];
#pragma omp simd
      for (int c = 0; c < classes_; ++c) own[c] = sample * weight[c];
    }
  }

  template <bool soft, class Loss>
  double stretches(const Loss& loss, const Real* logit, Real* out) {
    double total = 0;
    int first = 0;
    for (int p = 0; p <= positions_; ++p) {
      if (p < positions_ && codes_[p] != kIgnored && hit(p) < 0) continue;
      total += stretch<soft>(loss, logit, out, first * classes_, p * classes_);
      first = p + 1;
      if (p == positions_) break;
      if (codes_[p] != kIgnored) {
        total += positive_row<soft>(loss, logit, out, p);
      } else if (want_ != Want::kSum) {
        for (int k = p * classes_; k < (p + 1) * classes_; ++k) out[k] = 0;
      }
    }
    return total;
  }

  template <bool soft, class Loss>
  double stretch(const Loss& loss, const Real* logit, Real* out, int begin, int end) const {
    if (begin == end) return 0;
    const Real scale = static_cast<Real>(task_.gradient_scale);
    const auto pass = [&](auto weight) __attribute__((always_inline)) {
      const Negatives<Loss, soft, decltype(weight)> element{loss, logit + begin, weight, lowest_target_, scale};
      return map(want_, element, out + begin, end - begin);
    };
    if (task_.tensor[kSampleWeight]) return pass(static_cast<const Real*>(own_ + begin));
    if (task_.positive_weights) return pass(static_cast<const Real*>(lowest_ + begin));
    return pass(Uniform<Real>{lowest_[0]});
  }

  template <bool soft, class Loss>
  double positive_row(const Loss& loss, const Real* logit, Real* out, int p) {
    const int k = hit(p), begin = p * classes_, end = begin + classes_;
    const Real own = logit[k];
    double others = 0;
    if constexpr (soft) {
      others = stretch<soft>(loss, logit, out, begin, k) + stretch<soft>(loss, logit, out, k + 1, end);
    } else {
      // Taken out by a logit of -inf, whose loss as a negative is 0: one pass instead of two short ones.
      for (int i = begin; i < end; ++i) logit_[i] = i == k ? -std::numeric_limits<Real>::infinity() : logit[i];
      others = stretch<soft>(loss, logit_, out, begin, end);
    }
    return others + put_positive<soft>(loss, out, {k, smoothed(Real(1)), row_sample(p), own});
  }

  Real row_sample(int p) const { return task_.tensor[kSampleWeight] ? sample_[p] : Real(1); }

  // A target as label smoothing leaves it.
  Real smoothed(Real target) const { return lowest_target_ + (Real(1) - 2 * lowest_target_) * target; }

  // The one positive's result, which takes its place in out; returns its value.
  template <bool soft, class Loss>
  double put_positive(const Loss& loss, Real* out, const Positive& own) const {
    const Real share = share_(own.target);
    const Real weight = own.sample * (share * positive_[own.at] + (Real(1) - share) * negative_[own.at]);
    ValueDeriv<Real> result;
    if constexpr (soft) {
      result = at(loss, own.at)(own.logit, own.target);
    } else {
      result = at(loss, own.at)(own.logit);
    }
    const Real slope = weight * static_cast<Real>(task_.gradient_scale) * upstream_[own.at];
    if (want_ != Want::kSum) out[own.at] = want_ == Want::kSumAndValues ? weight * result.value : slope * result.deriv;
    return static_cast<double>(weight * result.value);
  }

  // Rows of negatives that differ: ignored rows and positives are taken out by a sample weight of 0, and positives put in
  // by themselves.
  double own_negatives(Real* out) {
    load_position_codes();
    const Real* logit = where(kLogits);
    if (!logit || logit == out) load(kLogits, logit_), logit = logit_;
    if (upstream_each_) load(kUpstream, upstream_);
    if (task_.tensor[kSampleWeight]) {
      load(kSampleWeight, sample_);
    } else {
      for (int k = 0; k < count_; ++k) sample_[k] = 1;
    }
    int positives = 0;
    for (int p = 0; p < positions_; ++p) {
      const int k = hit(p);
      if (codes_[p] == kIgnored) {
        for (int i = p * classes_; i < (p + 1) * classes_; ++i) sample_[i] = 0;
      } else if (k >= 0 && sample_[k] != Real(0)) {
        const Real target = task_.tensor[kScores] ? score_[p] : Real(1);
        places_[positives++] = {k, smoothed(target), sample_[k], logit[k]};
        sample_[k] = 0;
      }
    }
    const Real scale = static_cast<Real>(task_.gradient_scale);
    const auto with = [&](auto soft, const auto& loss) {
      using Loss = std::decay_t<decltype(loss)>;
      double total =
          map(want_, OwnNegatives<Loss, soft.value>{loss, logit, lowest_, sample_, upstream_, lowest_target_, scale},
              out, count_);
      for (int i = 0; i < positives; ++i) total += put_positive<soft.value>(loss, out, places_[i]);
      return total;
    };
    if (by_target_) return Term::soft(task_, gammas(), [&](const auto& loss) { return with(std::true_type(), loss); });
    return Term::hard(task_, gammas(), [&](const auto& loss) { return with(std::false_type(), loss); });
  }

  double evaluate(Real* out) {
    if (task_.dense) return dense_tile(out);
    if (!by_class_) return planes(out);
    return by_rows_ ? negatives(out) : own_negatives(out);
  }

  double dense_tile(Real* out) {
    const Real ignored = static_cast<Real>(task_.dense_rule.ignore_value);
    const Real* target = where(kTargets);
    if (!target) load(kTargets, target_), target = target_;
    return dense_tile(out, target, ignored, inspect_targets(target, ignored));
  }

  // Labels of positions, classes being lines of them.
  double planes(Real* out) {
    constexpr Real kOut = -1;
    load_position_codes();
    spread_codes(kOut);
    return dense_tile(out, target_, kOut, static_cast<bool>(task_.tensor[kScores]));
  }

  double dense_tile(Real* out, const Real* target, Real ignored, bool soft) {
    const Real* logit = where(kLogits);
    if (!logit) load(kLogits, logit_), logit = logit_;
    if (task_.tensor[kSampleWeight]) load(kSampleWeight, sample_);
    if (upstream_each_) load(kUpstream, upstream_);
    if (soft || by_target_) {
      return Term::soft(task_, gammas(),
                        [&](const auto& loss) { return dense_pass<true>(loss, logit, target, ignored, out); });
    }
    return Term::hard(task_, gammas(),
                      [&](const auto& loss) { return dense_pass<false>(loss, logit, target, ignored, out); });
  }

  template <bool soft, class Loss>
  double dense_pass(const Loss& loss, const Real* logit, const Real* target, Real ignored, Real* out) const {
    const Real scale = static_cast<Real>(task_.gradient_scale);
    // Only where arithmetic does not hide it is a load of what is the same for all worth a loop without it.
    if constexpr (kVectorised<Real> && is_focal<Loss>) {
      if (alike_) {
        const Uniform<Real> one{1}, positive{static_cast<Real>(task_.positive_weight)},
            negative{static_cast<Real>(task_.negative_weight)};
        const Dense<Loss, soft, Uniform<Real>> element{loss, logit,   target, positive,       negative, one,
                                                       one,  ignored, scale,  lowest_target_, share_};
        return map(want_, element, out, count_);
      }
    }
    const Dense<Loss, soft, const Real*> element{loss,      logit,   target, positive_,      negative_, sample_,
                                                 upstream_, ignored, scale,  lowest_target_, share_};
    return map(want_, element, out, count_);
  }

  // Class index targets of the tile as dense ones: 1 or the score, 0 or ignored.
  void spread_codes(Real ignored) {
    Real* FOCAL_RESTRICT target = target_;
    const int32_t* FOCAL_RESTRICT codes = codes_;
    for (int c = 0; c < classes_; ++c) {
      const int32_t label = static_cast<int32_t>(class_begin_ + c);
#pragma omp simd
      for (int p = 0; p < positions_; ++p) {
        target[c * positions_ + p] = codes[p] == kIgnored ? ignored : codes[p] == label ? Real(1) : Real(0);
      }
    }
    if (!task_.tensor[kScores]) return;
    for (int p = 0; p < positions_; ++p) {
      const int64_t c = codes_[p] - class_begin_;
      if (codes_[p] >= 0 && c >= 0 && c < classes_) target[c * positions_ + p] = score_[p];
    }
  }

  // Notes ignored and invalid targets; true if one is soft.
  bool inspect_targets(const Real* FOCAL_RESTRICT target, Real ignored_value) {
    int soft = 0, invalid = 0, ignored = 0;
#pragma omp simd reduction(+ : soft, invalid, ignored)
    for (int k = 0; k < count_; ++k) {
      const Real t = target[k];
      const bool used = t != ignored_value;
      ignored += !used;
      invalid += used && !(t >= Real(0) && t <= Real(1));
      soft += used && t > Real(0) && t < Real(1);
    }
    found_.ignored += ignored;
    found_.invalid |= invalid > 0 || (task_.dense_rule.binary && soft > 0);
    return soft > 0;
  }

  const Task& task_;
  const Want want_;
  const Operand result_;
  // Lines along the classes; an upstream of its own for each element; elements that differ in their rows and classes
  // alone; a loss of logits and targets; all elements of one weight, but for their targets.
  const bool by_class_, upstream_each_, by_rows_, by_target_, alike_;
  const Real lowest_target_;  // a negative's
  const Share<Real> share_;
  int positions_;
  int classes_ = 0, count_ = 0, run_count_ = 0;
  int64_t class_begin_ = 0;
  int64_t weights_class_ = -1;
  int weights_positions_ = -1;
  DenseFindings found_;
  // Of the tile's elements: used as scratch; and what is the same for all, or else loaded or spread.
  Real *logit_, *target_, *out_, *score_, *upstream_, *sample_, *positive_, *negative_, *lowest_, *gamma_, *own_;
  Positive* places_;
  Run* runs_;
  int32_t* codes_;
};

}  // namespace focal::cpu::FOCAL_CPU_ISA
