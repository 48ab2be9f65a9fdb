// The passes over losses that find the k largest and write their gradient; selection.h says what each does.
// Traffic: the losses are read once by each pass; keep() writes the gradient besides.
// Order: a sum is taken in eight lanes whatever the instruction set, so its bits are the same for each.
// Compiled once per instruction set (FOCAL_CPU_ISA). Must not know: which passes are made, threads, torch.
#pragma once

#include "cpu/selection.h"

namespace focal::cpu::FOCAL_CPU_ISA {

template <class Real>
Split split(const Real* FOCAL_RESTRICT losses, int64_t n, Key<Real> low, Key<Real> high,
            Real* FOCAL_RESTRICT collected) {
  constexpr int kBlock = 64, kLanes = 8;
  alignas(64) Real above[kBlock];
  alignas(64) uint8_t within[kBlock];
  double sums[kLanes] = {};
  Split found;
  const auto block = [&](const Real* in, int count) __attribute__((always_inline)) {
    int over = 0, inside = 0;
#pragma omp simd reduction(+ : over)
    for (int i = 0; i < count; ++i) {
      const Key<Real> key = key_of(in[i]);
      over += key > high;
      above[i] = key > high ? in[i] : Real(0);
    }
#pragma omp simd reduction(+ : inside)
    for (int i = 0; i < count; ++i) {
      const Key<Real> key = key_of(in[i]);
      within[i] = (key >= low) & (key <= high);
      inside += within[i];
    }
    for (int i = count; i < kBlock; ++i) above[i] = 0, within[i] = 0;
    if (collected && inside > 0) {
      // A bit for each element, from eight bytes at a time: few are set, and each costs a turn.
      uint64_t mask = 0;
      for (int i = 0; i < kBlock; i += 8) {
        uint64_t bytes;
        memcpy(&bytes, within + i, 8);
        mask |= (bytes * 0x0102040810204080u >> 56) << i;
      }
      for (Real* out = collected + found.within; mask; mask &= mask - 1) *out++ = in[__builtin_ctzll(mask)];
    }
    found.above += over;
    found.within += inside;
    for (int i = 0; i < kBlock; i += kLanes) {
#pragma omp simd
      for (int lane = 0; lane < kLanes; ++lane) sums[lane] += static_cast<double>(above[i + lane]);
    }
  };
  int64_t done = 0;
  for (; done + kBlock <= n; done += kBlock) block(losses + done, kBlock);
  if (done < n) block(losses + done, static_cast<int>(n - done));
  for (double sum : sums) found.sum += sum;
  return found;
}

template <class Real>
void tally(const Real* losses, int64_t n, Key<Real> low, int shift, DigitCounts& counts) {
  using Unsigned = typename Order<Real>::Unsigned;
  const auto count = [&](int table, Real loss) __attribute__((always_inline)) {
    const Unsigned digit = static_cast<Unsigned>(key_of(loss) - low) >> shift;
    ++counts.tables[table][digit < kDigits ? digit : kDigits];
  };
  int64_t i = 0;
  for (; i + DigitCounts::kTables <= n; i += DigitCounts::kTables) {
    for (int t = 0; t < DigitCounts::kTables; ++t) count(t, losses[i + t]);
  }
  for (; i < n; ++i) count(0, losses[i]);
}

template <class Real>
void keep(const Real* losses, Real* gradient, int64_t n, Key<Real> above, Real value) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) gradient[i] = key_of(losses[i]) > above ? value : Real(0);
}

}  // namespace focal::cpu::FOCAL_CPU_ISA
