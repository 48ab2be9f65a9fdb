// A tile of positions side by side, a line of them for each class, in the L1 cache; short rows of contiguous classes are
// transposed on the way. Compiled once per instruction set (FOCAL_CPU_ISA). Must not know: any loss.
#pragma once

#include "cpu/runs.h"
#include "cpu/transpose.h"

namespace focal::cpu::FOCAL_CPU_ISA {

template <class Real>
class ColumnTile {
 protected:
  // `tiles` arrays of the tile's size, `lines` of one number for each position.
  ColumnTile(const Task& task, std::initializer_list<Real**> tiles, std::initializer_list<Real**> lines)
      : task_(task), width_(static_cast<int>(task.tile_positions)), classes_(static_cast<int>(task.classes)) {
    const size_t width = static_cast<size_t>(width_), size = width * classes_;
    const size_t reals = tiles.size() * size + lines.size() * width;
    Real* memory = static_cast<Real*>(scratch(reals * sizeof(Real) + (sizeof(Run) + sizeof(int32_t)) * (width + 1)));
    for (Real** tile : tiles) *tile = memory, memory += size;
    for (Real** line : lines) *line = memory, memory += width;
    runs_ = aligned<Run>(memory);
    codes_ = reinterpret_cast<int32_t*>(runs_ + width);
  }

  // Calls tile() for every tile of a chunk; returns the sum of what it returns.
  template <class Tile>
  double for_tiles(int64_t chunk, const Tile& tile) {
    const int64_t first = chunk * task_.tiles_per_chunk;
    const int64_t last = first + task_.tiles_per_chunk < task_.tiles ? first + task_.tiles_per_chunk : task_.tiles;
    Cursor cursor(task_.positions, first * task_.tile_positions);
    double sum = 0;
    for (int64_t t = first; t < last; ++t) {
      const int64_t left = task_.positions.count - t * task_.tile_positions;
      count_ = left < width_ ? static_cast<int>(left) : width_;
      run_count_ = 0;
      for (int done = 0; done < count_; done += static_cast<int>(runs_[run_count_++].length))
        runs_[run_count_] = cursor.next(count_ - done);
      sum += tile();
    }
    return sum;
  }

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

  // A number for each position; of class c where the operand has classes.
  void load_line(Operand operand, Real* line, int64_t c = 0) const {
    const Tensor& tensor = task_.tensor[operand];
    for_runs(operand, [&](int p, int64_t offset, int64_t stride, int n) {
      load_run(line + p, tensor, offset + c * tensor.class_stride, stride, n);
    });
  }

  void load_labels() {
    for_runs(kTargets, [&](int p, int64_t offset, int64_t stride, int n) {
      load_codes(codes_ + p, task_.tensor[kTargets], task_.index, offset, stride, n);
    });
  }

  void load_logits(Real* to) const {
    const Tensor& logits = task_.tensor[kLogits];
    for_runs(kLogits, [&](int p, int64_t offset, int64_t stride, int n) {
      if (short_rows(logits)) {
        if constexpr (std::is_same_v<Real, float>) {
          rows_to_tile(static_cast<const float*>(logits.data) + offset, stride, to + p, width_, classes_, n);
        }
        return;
      }
      for (int c = 0; c < classes_; ++c) {
        if (c + kAhead < classes_) prefetch_run(logits, offset + (c + kAhead) * logits.class_stride, stride, n);
        load_run(to + c * width_ + p, logits, offset + c * logits.class_stride, stride, n);
      }
    });
  }

  void store_loss(const Real* line) const {
    for_runs(kLoss, [&](int p, int64_t offset, int64_t stride, int n) {
      store_run(task_.tensor[kLoss], offset, stride, line + p, Uniform<Real>{1}, n);
    });
  }

  // tile[c][p] * factor[p]
  void store_gradient(const Real* tile, const Real* factor) const {
    const Tensor& out = task_.tensor[kGradient];
    for_runs(kGradient, [&](int p, int64_t offset, int64_t stride, int n) {
      if (short_rows(out)) {
        if constexpr (std::is_same_v<Real, float>) {
          tile_to_rows(tile + p, width_, factor + p, static_cast<float*>(out.data) + offset, stride, classes_, n);
        }
        return;
      }
      for (int c = 0; c < classes_; ++c) {
        store_run(out, offset + c * out.class_stride, stride, tile + c * width_ + p, factor + p, n);
      }
    });
  }

  // upstream x scale of each position; an ignored one's is 0 whatever its upstream is.
  void load_slopes(Real* slope, const Real* weight) const {
    const bool upstream = static_cast<bool>(task_.tensor[kUpstream]);
    if (upstream) {
      for_runs(kUpstream, [&](int p, int64_t offset, int64_t stride, int n) {
        load_upstream(task_, slope + p, offset, stride, n);
      });
    }
    const Real scale = static_cast<Real>(task_.gradient_scale);
    for (int p = 0; p < count_; ++p) {
      const Real above = upstream ? slope[p] * scale : scale;
      slope[p] = codes_[p] == kIgnored ? Real(0) : weight[p] * above;
    }
  }

  // A position whose sample has a weight of 0 is as good as ignored. What is counted was counted before.
  void load_samples(Real* sample) {
    if (!task_.tensor[kSampleWeight]) return;
    load_line(kSampleWeight, sample);
    for (int p = 0; p < count_; ++p) codes_[p] = sample[p] == Real(0) ? kIgnored : codes_[p];
  }

  // Four classes at a time, so that the running maximum or sum is loaded and stored once for four: the passes are bound
  // by stores (0.69 -> 0.50 ns per element in cache, C = 19).
  template <class Pass>
  void by_classes(const Pass& pass) const {
    int c = 0;
    for (; c + 4 <= classes_; c += 4) pass(std::integral_constant<int, 4>{}, c);
    for (; c < classes_; ++c) pass(std::integral_constant<int, 1>{}, c);
  }

  const Task& task_;
  const int width_;
  const int classes_;
  int count_ = 0;
  int32_t* codes_;

 private:
  static constexpr int kAhead = 4;

  // Contiguous classes of fp32, enough for a block: transposed in registers.
  bool short_rows(const Tensor& tensor) const {
    return tensor.class_stride == 1 && classes_ >= kBlock && tensor.dtype == DType::kFloat32;
  }

  int run_count_ = 0;
  Run* runs_;
};

}  // namespace focal::cpu::FOCAL_CPU_ISA
