// Sigmoid engine: every element of the logits is its own binary problem.
//   tile      tile_positions x tile_classes elements, flat, in the L1 cache
//   lines     along the classes where they are contiguous (a line per position), else along the positions (one per class)
//   targets   class index along the classes with one weight for all negatives: a tile is negatives throughout, read and
//             written where it lies; in the rare row with a positive, that one is taken out (a logit of -inf has loss 0).
//             Everything else becomes a tile of dense targets; one with a soft value takes the loss of logits and targets,
//             as does every tile of a loss that is none of margins.
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
        by_target_(!is_of_margin(task.rule.loss) || task.smoothing > 0),
        negatives_alike_(!task.dense && by_class_ && !task.positive_weights && !task.gammas &&
                         !task.tensor[kUpstream] && !task.tensor[kSampleWeight]),
        lowest_target_(static_cast<Real>(task.smoothing / 2)),
        share_(task.rule.loss),
        positions_(static_cast<int>(task.tile_positions)) {
    const int capacity = positions_ * static_cast<int>(task.tile_classes);
    Real* memory =
        static_cast<Real*>(scratch((13 * sizeof(Real) + sizeof(int32_t)) * capacity + sizeof(Run) * positions_));
    for (Real** array : {&logit_, &target_, &margin_, &used_target_, &weight_, &slope_, &upstream_, &out_, &positive_,
                         &negative_, &gamma_, &sample_, &score_}) {
      *array = memory;
      memory += capacity;
    }
    runs_ = reinterpret_cast<Run*>(memory);
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
      Real* direct = want_ == Want::kSum ? out_ : where(result_);
      Real* out = direct ? direct : out_;
      total += negatives_alike_ ? negatives(out) : anything(out);
      if (!direct) write(result_, out);
    }
    if (task_.partial_sums) task_.partial_sums[index] = total;
    if (task_.findings) task_.findings[index] = found_;
  }

 private:
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
      if (task_.tensor[kScores]) {
        load_run(score_ + position, task_.tensor[kScores], runs_[r].offset[kScores],
                 task_.positions.innermost().stride[kScores], length);
      }
      position += length;
    }
  }

  // Where in a tile with lines of classes the positive of position p stands, or -1.
  int hit(int p) const {
    const int64_t c = codes_[p] - class_begin_;
    return codes_[p] >= 0 && c >= 0 && c < classes_ ? p * classes_ + static_cast<int>(c) : -1;
  }

  // Stretches of rows that are negative throughout go in one pass each; a row with a positive and an ignored one by itself.
  // No logit has a loss of 0 for every loss by target, so there a positive makes a tile of dense targets.
  double negatives(Real* out) {
    load_position_codes();
    if (by_target_) {
      for (int p = 0; p < positions_; ++p) {
        if (codes_[p] == kIgnored || hit(p) >= 0) return index_tile(out);
      }
      const Real* logit = where(kLogits);
      if (!logit || logit == out) load(kLogits, logit_), logit = logit_;
      return Term::soft(task_, [&](const auto& loss) {
        const Uniform<Real> target{lowest_target_}, weight{weight_of(lowest_target_)};
        const Uniform<Real> slope{weight.value * static_cast<Real>(task_.gradient_scale)};
        return map(want_, Targeted<std::decay_t<decltype(loss)>, Uniform<Real>>{loss, logit, target, weight, slope},
                   out, count_);
      });
    }
    const Real* logit = where(kLogits);
    if (!logit || logit == out) {
      load(kLogits, logit_);
      logit = logit_;
    }
    return Term::hard(task_, [&](const auto& loss) {
      double total = 0;
      int first = 0;
      for (int p = 0; p <= positions_; ++p) {
        if (p < positions_ && codes_[p] != kIgnored && hit(p) < 0) continue;
        total += negative_stretch(loss, logit, out, first * classes_, (p - first) * classes_);
        first = p + 1;
        if (p == positions_) break;
        if (codes_[p] != kIgnored) {
          total += positive_row(loss, logit, out, p);
        } else if (want_ != Want::kSum) {
          for (int k = p * classes_; k < (p + 1) * classes_; ++k) out[k] = 0;
        }
      }
      return total;
    });
  }

  template <class Loss>
  double negative_stretch(const Loss& loss, const Real* logit, Real* out, int begin, int n) const {
    if (n == 0) return 0;
    const Real weight = static_cast<Real>(task_.negative_weight), scale = static_cast<Real>(task_.gradient_scale);
    return map(want_, Negatives<Loss>{loss, logit + begin, weight, -weight * scale}, out + begin, n);
  }

  template <class Loss>
  double positive_row(const Loss& loss, const Real* logit, Real* out, int p) {
    for (int k = p * classes_; k < (p + 1) * classes_; ++k) logit_[k] = logit[k];
    const int k = hit(p);
    const Real own = logit_[k];
    logit_[k] = -std::numeric_limits<Real>::infinity();
    const double others = negative_stretch(loss, logit_, out, p * classes_, classes_);
    const ValueDeriv<Real> result = loss(own);
    const Real weight = static_cast<Real>(task_.positive_weight), scale = static_cast<Real>(task_.gradient_scale);
    if (want_ != Want::kSum) out[k] = want_ == Want::kValues ? weight * result.value : weight * scale * result.deriv;
    return others + static_cast<double>(weight * result.value);
  }

  Real weight_of(Real target) const {
    const Real share = share_(target);
    return share * static_cast<Real>(task_.positive_weight) +
           (Real(1) - share) * static_cast<Real>(task_.negative_weight);
  }

  double anything(Real* out) {
    if (!task_.dense) {
      load_position_codes();
      return index_tile(out);
    }
    const Real ignored = static_cast<Real>(task_.dense_rule.ignore_value);
    const Real* target = where(kTargets);
    if (!target) load(kTargets, target_), target = target_;
    return dense_tile(out, target, ignored, inspect_targets(target, ignored));
  }

  double index_tile(Real* out) {
    constexpr Real kOut = -1;
    spread_codes(kOut);
    return dense_tile(out, target_, kOut, static_cast<bool>(task_.tensor[kScores]));
  }

  double dense_tile(Real* out, const Real* target, Real ignored, bool soft) {
    soft |= by_target_;
    const Real* logit = where(kLogits);
    if (!logit) load(kLogits, logit_), logit = logit_;
    const auto with_samples = [&](auto positive, auto negative, auto sample) {
      soft ? weigh<true>(logit, target, positive, negative, sample, ignored)
           : weigh<false>(logit, target, positive, negative, sample, ignored);
    };
    const auto with_weights = [&](auto positive, auto negative) {
      if (!task_.tensor[kSampleWeight]) return with_samples(positive, negative, Uniform<Real>{1});
      load(kSampleWeight, sample_);
      with_samples(positive, negative, static_cast<const Real*>(sample_));
    };
    if (task_.positive_weights) {
      with_weights(static_cast<const Real*>(positive_), static_cast<const Real*>(negative_));
    } else {
      with_weights(Uniform<Real>{static_cast<Real>(task_.positive_weight)},
                   Uniform<Real>{static_cast<Real>(task_.negative_weight)});
    }
    apply_upstream();
    if (soft) {
      return Term::soft(task_, gammas(), [&](const auto& loss) {
        using Element = Targeted<std::decay_t<decltype(loss)>, const Real * FOCAL_RESTRICT>;
        return map(want_, Element{loss, margin_, used_target_, weight_, slope_}, out, count_);
      });
    }
    return Term::hard(task_, gammas(), [&](const auto& loss) {
      return map(want_, Weighted<std::decay_t<decltype(loss)>>{loss, margin_, weight_, slope_}, out, count_);
    });
  }

  // Class index targets of the tile as dense ones: 1 or the score, 0 or ignored.
  void spread_codes(Real ignored) {
    Real* FOCAL_RESTRICT target = target_;
    if (by_class_) {
      for (int p = 0; p < positions_; ++p) {
        const Real fill = codes_[p] == kIgnored ? ignored : Real(0);
        for (int k = p * classes_; k < (p + 1) * classes_; ++k) target[k] = fill;
        if (hit(p) >= 0) target[hit(p)] = task_.tensor[kScores] ? score_[p] : Real(1);
      }
      return;
    }
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

  // Fills in margins (of soft targets: logits), weights and slopes. An element that is ignored or whose sample has a weight
  // of 0 becomes an ordinary one of weight and slope 0, whatever its logit and its upstream gradient are.
  template <bool soft, class Weights, class Samples>
  void weigh(const Real* FOCAL_RESTRICT logit, const Real* FOCAL_RESTRICT target, Weights positive, Weights negative,
             Samples sample, Real ignored) {
    Real *FOCAL_RESTRICT margin = margin_, *FOCAL_RESTRICT used_target = used_target_;
    Real *FOCAL_RESTRICT weight = weight_, *FOCAL_RESTRICT slope = slope_;
    const Real scale = static_cast<Real>(task_.gradient_scale);
    const Real lowest = lowest_target_, spread = Real(1) - 2 * lowest_target_;
    const Share<Real> share_of = share_;
    const int count = count_;
#pragma omp simd
    for (int k = 0; k < count; ++k) {
      const bool used = target[k] != ignored && sample[k] != Real(0);
      const Real given = used ? target[k] : Real(0);
      const Real t = soft ? lowest + spread * given : given;
      const Real x = used ? logit[k] : Real(0);
      const Real share = soft ? share_of(t) : t;
      const Real w = used ? sample[k] * (share * positive[k] + (Real(1) - share) * negative[k]) : Real(0);
      const Real sign = soft || t > Real(0) ? Real(1) : Real(-1);
      if (soft) used_target[k] = t;
      margin[k] = sign * x;
      weight[k] = w;
      slope[k] = scale * sign * w;
    }
  }

  void apply_upstream() {
    if (!task_.tensor[kUpstream]) return;
    load(kUpstream, upstream_);
    const Real *FOCAL_RESTRICT upstream = upstream_, *FOCAL_RESTRICT weight = weight_;
    Real* FOCAL_RESTRICT slope = slope_;
#pragma omp simd
    for (int k = 0; k < count_; ++k) slope[k] = weight[k] == Real(0) ? Real(0) : slope[k] * upstream[k];
  }

  const Task& task_;
  const Want want_;
  const Operand result_;
  const bool by_class_, by_target_, negatives_alike_;
  const Real lowest_target_;  // a negative's
  const Share<Real> share_;
  int positions_;
  int classes_ = 0, count_ = 0, run_count_ = 0;
  int64_t class_begin_ = 0;
  int64_t weights_class_ = -1;
  int weights_positions_ = -1;
  DenseFindings found_;
  Real *logit_, *target_, *margin_, *used_target_, *weight_, *slope_, *upstream_, *out_, *positive_, *negative_,
      *gamma_, *sample_, *score_;
  Run* runs_;
  int32_t* codes_;
};

}  // namespace focal::cpu::FOCAL_CPU_ISA
