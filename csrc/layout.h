// Where elements lie: positions (every dimension of the logits but the class) as a list of dimensions with one stride
// per operand, collapsed where memory allows, and a cursor that walks them in runs along the innermost one.
// Host only. Must not know: what the operands mean to a loss, torch.
#pragma once

#include <cstdint>

#include "math/dtype.h"

namespace focal {

enum Operand : int { kLogits, kGradient, kTargets, kLoss, kUpstream, kSampleWeight, kScores, kOperands };

constexpr int kMaxRank = 64;  // torch's own limit

struct Dim {
  int64_t size;
  int64_t stride[kOperands];  // in elements; 0 where an operand is absent or broadcast
};

struct Positions {
  int rank = 0;
  int64_t count = 1;
  Dim dims[kMaxRank];  // outermost first; the last one is the innermost

  void append(const Dim& dim) {
    count *= dim.size;
    if (dim.size != 1) dims[rank++] = dim;
  }

  // Orders the dimensions by the operand's stride, largest first, so that runs go along its memory. Stable.
  void order_by(Operand operand) {
    for (int i = 1; i < rank; ++i) {
      const Dim dim = dims[i];
      int j = i;
      for (; j > 0 && magnitude(dims[j - 1].stride[operand]) < magnitude(dim.stride[operand]); --j)
        dims[j] = dims[j - 1];
      dims[j] = dim;
    }
  }

  // Merges neighbouring dimensions that every operand walks with one stride.
  void collapse() {
    int last = 0;
    for (int i = 1; i < rank; ++i) {
      bool together = true;
      for (int o = 0; o < kOperands; ++o) together &= dims[last].stride[o] == dims[i].stride[o] * dims[i].size;
      if (together) {
        const int64_t size = dims[last].size * dims[i].size;
        dims[last] = dims[i];
        dims[last].size = size;
      } else {
        dims[++last] = dims[i];
      }
    }
    if (rank > 0) rank = last + 1;
  }

  // After this the innermost dimension exists, however few there were.
  void require_innermost() {
    if (rank == 0) dims[rank++] = Dim{1, {}};
  }

  const Dim& innermost() const { return dims[rank - 1]; }

 private:
  static int64_t magnitude(int64_t stride) { return stride < 0 ? -stride : stride; }
};

// A stretch of positions along the innermost dimension: offsets of its first one, per operand, in elements.
struct Run {
  int64_t offset[kOperands];
  int64_t length;
};

class Cursor {
 public:
  Cursor(const Positions& positions, int64_t start) : positions_(positions) {
    for (int o = 0; o < kOperands; ++o) offset_[o] = 0;
    for (int d = positions.rank - 1; d >= 0; --d) {
      const Dim& dim = positions.dims[d];
      index_[d] = start % dim.size;
      start /= dim.size;
      for (int o = 0; o < kOperands; ++o) offset_[o] += index_[d] * dim.stride[o];
    }
  }

  Run next(int64_t at_most) {
    const int inner = positions_.rank - 1;
    const Dim& dim = positions_.dims[inner];
    Run run;
    run.length = dim.size - index_[inner] < at_most ? dim.size - index_[inner] : at_most;
    for (int o = 0; o < kOperands; ++o) run.offset[o] = offset_[o];
    advance(inner, run.length);
    return run;
  }

 private:
  void advance(int d, int64_t steps) {
    for (;; --d, steps = 1) {
      const Dim& dim = positions_.dims[d];
      index_[d] += steps;
      for (int o = 0; o < kOperands; ++o) offset_[o] += steps * dim.stride[o];
      if (index_[d] < dim.size || d == 0) return;
      for (int o = 0; o < kOperands; ++o) offset_[o] -= dim.size * dim.stride[o];
      index_[d] = 0;
    }
  }

  const Positions& positions_;
  int64_t index_[kMaxRank];
  int64_t offset_[kOperands];
};

}  // namespace focal
