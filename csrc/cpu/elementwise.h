// Sigmoid engine: every element of the logits is its own binary problem.
//   tile      tile_positions x tile_classes elements as flat arrays in L1: margin, weight, then loss and gradient
//   lines     along the classes where they are contiguous (a line per position), else along the positions (a line per class)
//   targets   class index: all elements are taken as negatives, the rare positive of a line of classes is patched after;
//             lines of positions compare. dense: any type, soft values through Term::soft
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
        by_class_(task.tensor[kLogits].class_stride == 1 && task.classes > 1),
        positions_(static_cast<int>(task.tile_positions)),
        capacity_(positions_ * static_cast<int>(task.tile_classes)) {
    Real* memory =
        static_cast<Real*>(scratch((8 * sizeof(Real) + sizeof(int32_t)) * capacity_ + sizeof(Run) * positions_));
    for (Real** array : {&margin_, &weight_, &value_, &deriv_, &target_, &upstream_, &positive_, &negative_}) {
      *array = memory;
      memory += capacity_;
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
      if (task_.dense) {
        read_dense();
      } else if (by_class_) {
        read_index_by_class();
      } else {
        read_index_by_position();
      }
      evaluate();
      if (task_.partial_sums) total += sum(value_, count_);
      if (task_.tensor[kLoss]) write(kLoss, value_, Real(1));
      if (task_.tensor[kGradient]) write(kGradient, deriv_, static_cast<Real>(task_.gradient_scale));
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
    prepare_weights();
  }

  // The weights of a positive and of a negative at every element of the tile; they change with its shape only.
  void prepare_weights() {
    if (weights_class_ == class_begin_ && weights_positions_ == positions_) return;
    weights_class_ = class_begin_;
    weights_positions_ = positions_;
    const Real* alpha = static_cast<const Real*>(task_.alpha);
    for (int p = 0; p < positions_; ++p) {
      for (int c = 0; c < classes_; ++c) {
        const int k = by_class_ ? p * classes_ + c : c * positions_ + p;
        positive_[k] = alpha ? alpha[class_begin_ + c] : static_cast<Real>(task_.positive_weight);
        negative_[k] = alpha ? Real(1) - alpha[class_begin_ + c] : static_cast<Real>(task_.negative_weight);
      }
    }
  }

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
        visit(position * classes_, offset, int64_t(1), length * classes_);  // whole rows that touch: one flat line
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

  void write(Operand operand, const Real* in, Real factor) const {
    const Tensor& tensor = task_.tensor[operand];
    for_lines(operand, [&](int k, int64_t offset, int64_t stride, int n) {
      store_run(tensor, offset, stride, in + k, Uniform<Real>{factor}, n);
    });
  }

  void load_position_codes() {
    const int64_t stride = task_.positions.innermost().stride[kTargets];
    int position = 0;
    for (int r = 0; r < run_count_; ++r) {
      const int length = static_cast<int>(runs_[r].length);
      load_codes(codes_ + position, task_.tensor[kTargets], task_.index, runs_[r].offset[kTargets], stride, length);
      position += length;
    }
  }

  void read_index_by_class() {
    load(kLogits, margin_);
    load_position_codes();
    Real* FOCAL_RESTRICT margin = margin_;
    Real* FOCAL_RESTRICT weight = weight_;
    const Real* FOCAL_RESTRICT negative = negative_;
#pragma omp simd
    for (int k = 0; k < count_; ++k) {
      margin[k] = -margin[k];
      weight[k] = negative[k];
    }
    for (int p = 0; p < positions_; ++p) {
      const int64_t c = codes_[p] - class_begin_;
      if (codes_[p] == kIgnored) {
        for (int k = p * classes_; k < (p + 1) * classes_; ++k) margin[k] = weight[k] = 0;
      } else if (codes_[p] >= 0 && c >= 0 && c < classes_) {
        const int k = p * classes_ + static_cast<int>(c);
        margin[k] = -margin[k];
        weight[k] = positive_[k];
      }
    }
  }

  void read_index_by_position() {
    load(kLogits, margin_);
    load_position_codes();
    for (int c = 0; c < classes_; ++c) {
      const int32_t label = static_cast<int32_t>(class_begin_ + c);
      const int32_t* FOCAL_RESTRICT codes = codes_;
      Real* FOCAL_RESTRICT margin = margin_ + c * positions_;
      Real* FOCAL_RESTRICT weight = weight_ + c * positions_;
      const Real positive = positive_[c * positions_], negative = negative_[c * positions_];
#pragma omp simd
      for (int p = 0; p < positions_; ++p) {
        const bool used = codes[p] != kIgnored, hit = codes[p] == label;
        margin[p] = used ? (hit ? margin[p] : -margin[p]) : Real(0);
        weight[p] = used ? (hit ? positive : negative) : Real(0);
      }
    }
  }

  // A soft target's margin entry is its logit; its weight is linear between the two.
  void read_dense() {
    load(kLogits, margin_);
    load(kTargets, target_);
    const Real ignore = static_cast<Real>(task_.dense_rule.ignore_value);
    Real* FOCAL_RESTRICT margin = margin_;
    Real* FOCAL_RESTRICT weight = weight_;
    Real* FOCAL_RESTRICT target = target_;
    const Real* FOCAL_RESTRICT positive = positive_;
    const Real* FOCAL_RESTRICT negative = negative_;
    int soft = 0, invalid = 0, ignored = 0;
#pragma omp simd reduction(+ : soft, invalid, ignored)
    for (int k = 0; k < count_; ++k) {
      const bool used = target[k] != ignore;
      const Real t = used ? target[k] : Real(0);
      const Real x = used ? margin[k] : Real(0);
      ignored += !used;
      invalid += !(t >= Real(0) && t <= Real(1));
      soft += t > Real(0) && t < Real(1);
      target[k] = t;
      margin[k] = t > Real(0) ? x : -x;
      weight[k] = used ? t * positive[k] + (Real(1) - t) * negative[k] : Real(0);
    }
    soft_ = soft > 0;
    found_.ignored += ignored;
    found_.invalid |= invalid > 0;
  }

  // value = weight x loss, deriv = weight x d loss / d logit (x upstream).
  void evaluate() {
    Real* value = task_.partial_sums || task_.tensor[kLoss] ? value_ : nullptr;
    Real* deriv = task_.tensor[kGradient] ? deriv_ : nullptr;
    Term::hard(task_, margin_, value, deriv, count_);
    if (task_.dense && soft_) Term::soft(task_, margin_, target_, value, deriv, count_);
    if (value) multiply(value, weight_);
    if (!deriv) return;
    multiply(deriv, weight_);
    turn_signs();
    if (task_.tensor[kUpstream]) {
      load(kUpstream, upstream_);
      multiply(deriv, upstream_);
      clear_ignored();
    }
  }

  void multiply(Real* FOCAL_RESTRICT out, const Real* FOCAL_RESTRICT by) const {
#pragma omp simd
    for (int k = 0; k < count_; ++k) out[k] *= by[k];
  }

  // d margin / d logit is -1 for a negative.
  void turn_signs() {
    Real* FOCAL_RESTRICT deriv = deriv_;
    if (task_.dense) {
      const Real* FOCAL_RESTRICT target = target_;
#pragma omp simd
      for (int k = 0; k < count_; ++k) deriv[k] = target[k] > Real(0) ? deriv[k] : -deriv[k];
    } else if (by_class_) {
#pragma omp simd
      for (int k = 0; k < count_; ++k) deriv[k] = -deriv[k];
      for (int p = 0; p < positions_; ++p) {
        const int64_t c = codes_[p] - class_begin_;
        if (codes_[p] >= 0 && c >= 0 && c < classes_) deriv[p * classes_ + c] *= Real(-1);
      }
    } else {
      for (int c = 0; c < classes_; ++c) {
        const int32_t label = static_cast<int32_t>(class_begin_ + c);
        const int32_t* FOCAL_RESTRICT codes = codes_;
#pragma omp simd
        for (int p = 0; p < positions_; ++p) {
          const int k = c * positions_ + p;
          deriv[k] = codes[p] == label ? deriv[k] : -deriv[k];
        }
      }
    }
  }

  // An upstream gradient of inf or NaN at an ignored element must not reach the gradient as 0 * inf.
  void clear_ignored() {
    Real* FOCAL_RESTRICT deriv = deriv_;
    if (task_.dense) {
      const Real* FOCAL_RESTRICT weight = weight_;
#pragma omp simd
      for (int k = 0; k < count_; ++k) deriv[k] = weight[k] == Real(0) ? Real(0) : deriv[k];
      return;
    }
    for (int p = 0; p < positions_; ++p) {
      if (codes_[p] != kIgnored) continue;
      for (int c = 0; c < classes_; ++c) deriv[by_class_ ? p * classes_ + c : c * positions_ + p] = 0;
    }
  }

  const Task& task_;
  const bool by_class_;
  int positions_;
  const int capacity_;
  int classes_ = 0, count_ = 0, run_count_ = 0;
  int64_t class_begin_ = 0;
  int64_t weights_class_ = -1;
  int weights_positions_ = -1;
  bool soft_ = false;
  DenseFindings found_;
  Real *margin_, *weight_, *value_, *deriv_, *target_, *upstream_, *positive_, *negative_;
  Run* runs_;
  int32_t* codes_;
};

}  // namespace focal::cpu::FOCAL_CPU_ISA
