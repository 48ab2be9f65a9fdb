// Positions and cursors against plain nested loops.
#include <vector>

#include "check.h"
#include "layout.h"

using namespace focal;

namespace {

Dim dim(int64_t size, int64_t logits, int64_t targets) {
  Dim d{size, {}};
  d.stride[kLogits] = logits;
  d.stride[kTargets] = targets;
  return d;
}

void test_collapse() {
  Positions together;
  together.append(dim(4, 6, 6));
  together.append(dim(1, 99, 99));  // size 1: its strides mean nothing
  together.append(dim(3, 2, 2));
  together.append(dim(2, 1, 1));
  together.collapse();
  CHECK(together.rank == 1 && together.count == 24 && together.dims[0].size == 24 &&
        together.dims[0].stride[kLogits] == 1);

  Positions apart;
  apart.append(dim(4, 6, 12));
  apart.append(dim(3, 2, 2));
  apart.collapse();
  CHECK(apart.rank == 2);

  Positions transposed;
  transposed.append(dim(5, 1, 7));
  transposed.append(dim(7, 5, 1));
  transposed.order_by(kLogits);
  CHECK(transposed.dims[0].size == 7 && transposed.dims[1].stride[kLogits] == 1 &&
        transposed.dims[1].stride[kTargets] == 7);

  Positions none;
  none.require_innermost();
  CHECK(none.rank == 1 && none.count == 1 && none.innermost().size == 1);
}

void test_cursor() {
  Positions positions;
  positions.append(dim(3, 100, -7));
  positions.append(dim(4, 11, 0));
  positions.append(dim(5, 2, 1));
  std::vector<int64_t> logits, targets;
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 4; ++j) {
      for (int k = 0; k < 5; ++k) {
        logits.push_back(100 * i + 11 * j + 2 * k);
        targets.push_back(-7 * i + k);
      }
    }
  }
  for (int64_t start = 0; start < 60; ++start) {
    for (int64_t step : {1, 2, 3, 5, 8}) {
      Cursor cursor(positions, start);
      bool same = true;
      for (int64_t at = start; at < 60;) {
        const Run run = cursor.next(step < 60 - at ? step : 60 - at);
        for (int64_t i = 0; i < run.length; ++i) {
          same &= run.offset[kLogits] + 2 * i == logits[at + i] && run.offset[kTargets] + i == targets[at + i];
        }
        at += run.length;
      }
      CHECK(same);
    }
  }
}

// Offsets past 2^32, which no test machine's memory needs to hold.
void test_large_offsets() {
  Positions positions;
  positions.append(dim(int64_t{1} << 20, int64_t{1} << 16, 1));
  positions.append(dim(int64_t{1} << 14, 1, 0));
  Cursor cursor(positions, (int64_t{1} << 34) - 3);
  const Run run = cursor.next(10);
  CHECK(run.length == 3);
  CHECK(run.offset[kLogits] == ((int64_t{1} << 20) - 1) * (int64_t{1} << 16) + (int64_t{1} << 14) - 3);
}

}  // namespace

int main() {
  test_collapse();
  test_cursor();
  test_large_offsets();
  return check::report();
}
