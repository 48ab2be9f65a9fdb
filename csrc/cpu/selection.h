// The k hardest of n losses on the CPU: their mean, and which they are. Plain data; selection.cpp decides on the passes,
// select.h makes them. Must not know: torch, the instruction set.
#pragma once

#include <functional>

#include "hardest.h"
#include "math/dtype.h"

namespace focal::cpu {

// What one pass finds between two keys, and above both.
struct Split {
  int64_t above = 0, within = 0;
  double sum = 0;  // of those above
};

// How often each digit of a key occurs. Four tables in turn: a counter that was just written takes a while to be read
// again, and losses are often alike.
constexpr int kDigitBits = 11, kDigits = 1 << kDigitBits;
struct DigitCounts {
  static constexpr int kTables = 4;
  int64_t tables[kTables][kDigits + 1] = {};  // the last: keys without a digit
};

constexpr int64_t kCollectedRoom = 16;

template <class Real>
struct SelectKernels {
  // Losses with keys above `high` are counted and summed; those from `low` to `high` are counted and, unless `collected`
  // is null, copied there in their order, with room for kCollectedRoom more behind the last.
  Split (*split)(const Real* losses, int64_t n, Key<Real> low, Key<Real> high, Real* collected);
  // Counts (key - low) >> shift, where that is a digit.
  void (*tally)(const Real* losses, int64_t n, Key<Real> low, int shift, DigitCounts& counts);
  // gradient = key > above ? value : 0. It may lie over the losses.
  void (*keep)(const Real* losses, Real* gradient, int64_t n, Key<Real> above, Real value);
};

// Runs body(first, last) for stretches of [0, chunks), one or more threads.
using ForChunks = std::function<void(int64_t chunks, const std::function<void(int64_t first, int64_t last)>& body)>;

struct Hardest {
  double mean = 0;
  Kept kept{};
};

// counted: how many of the losses count. The same bits for any number of threads.
template <class Real>
Hardest select_hardest(const Real* losses, int64_t n, double counted, const HardestRule& rule,
                       const ForChunks& for_chunks);

// gradient = upstream / k where a loss is kept, else 0. It may lie over the losses.
template <class Real>
void hardest_gradient(const Real* losses, Real* gradient, int64_t n, const Kept& kept, double upstream,
                      const ForChunks& for_chunks);

}  // namespace focal::cpu
