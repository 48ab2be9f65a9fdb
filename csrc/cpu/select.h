// The passes over losses that find the k largest and write their gradient; selection.h says what each does.
// Traffic: the losses are read once by each pass; keep() writes the gradient besides.
// Order: a sum is taken in eight lanes whatever the instruction set, so its bits are the same for each.
// Compiled once per instruction set (FOCAL_CPU_ISA). Must not know: which passes are made, threads, torch.
#pragma once

#include "cpu/selection.h"

namespace focal::cpu::FOCAL_CPU_ISA {

constexpr int kSelectBlock = 64;

// Copies those of n <= kSelectBlock losses that have keys from `low` to `high` to neighbouring places, and says how many
// they are; a vector may be written behind them. Nothing foresees which: without branches, as AVX-512 does it, a pass over
// [8e6] fp32 that collects one in fifty takes 2.2 ms, else 4.4, and 2.0 if it collects nothing (one thread).
#if defined(FOCAL_CPU_AVX512)
FOCAL_INLINE int collect(const float* in, int n, int32_t low, int32_t high, float* out) {
  int done = 0;
  for (int i = 0; i < n; i += 16) {
    const auto there = static_cast<__mmask16>(n - i < 16 ? (1u << (n - i)) - 1 : 0xffffu);
    const __m512i bits = _mm512_maskz_loadu_epi32(there, in + i);
    const __m512i key =
        _mm512_maskz_min_epi32(there, _mm512_and_epi32(bits, _mm512_set1_epi32(Order<float>::kMagnitude)),
                               _mm512_set1_epi32(Order<float>::kNaN));
    const __mmask16 chosen = _mm512_mask_cmple_epi32_mask(
        _mm512_mask_cmpge_epi32_mask(there, key, _mm512_set1_epi32(low)), key, _mm512_set1_epi32(high));
    _mm512_storeu_epi32(out + done, _mm512_maskz_compress_epi32(chosen, bits));
    done += __builtin_popcount(chosen);
  }
  return done;
}
FOCAL_INLINE int collect(const double* in, int n, int64_t low, int64_t high, double* out) {
  int done = 0;
  for (int i = 0; i < n; i += 8) {
    const auto there = static_cast<__mmask8>(n - i < 8 ? (1u << (n - i)) - 1 : 0xffu);
    const __m512i bits = _mm512_maskz_loadu_epi64(there, in + i);
    const __m512i key =
        _mm512_maskz_min_epi64(there, _mm512_and_epi64(bits, _mm512_set1_epi64(Order<double>::kMagnitude)),
                               _mm512_set1_epi64(Order<double>::kNaN));
    const __mmask8 chosen = _mm512_mask_cmple_epi64_mask(
        _mm512_mask_cmpge_epi64_mask(there, key, _mm512_set1_epi64(low)), key, _mm512_set1_epi64(high));
    _mm512_storeu_epi64(out + done, _mm512_maskz_compress_epi64(chosen, bits));
    done += __builtin_popcount(chosen);
  }
  return done;
}
#else
template <class Real>
FOCAL_INLINE int collect(const Real* in, int n, Key<Real> low, Key<Real> high, Real* out) {
  alignas(64) uint8_t chosen[kSelectBlock];
  int count = 0;
#pragma omp simd reduction(+ : count)
  for (int i = 0; i < n; ++i) {
    const Key<Real> key = key_of(in[i]);
    chosen[i] = (key >= low) & (key <= high);
    count += chosen[i];
  }
  if (count == 0) return 0;
  for (int i = n; i < kSelectBlock; ++i) chosen[i] = 0;
  uint64_t mask = 0;  // a bit for each, from eight bytes at a time
  for (int i = 0; i < kSelectBlock; i += 8) {
    uint64_t bytes;
    memcpy(&bytes, chosen + i, 8);
    mask |= (bytes * 0x0102040810204080u >> 56) << i;
  }
  for (; mask; mask &= mask - 1) *out++ = in[__builtin_ctzll(mask)];
  return count;
}
#endif

template <class Real>
FOCAL_INLINE int count_within(const Real* in, int n, Key<Real> low, Key<Real> high) {
  int count = 0;
#pragma omp simd reduction(+ : count)
  for (int i = 0; i < n; ++i) count += (key_of(in[i]) >= low) & (key_of(in[i]) <= high);
  return count;
}

template <class Real>
Split split(const Real* FOCAL_RESTRICT losses, int64_t n, Key<Real> low, Key<Real> high,
            Real* FOCAL_RESTRICT collected) {
  constexpr int kLanes = 8;
  alignas(64) Real above[kSelectBlock];
  double sums[kLanes] = {};
  Split found;
  const auto block = [&](const Real* in, int count) __attribute__((always_inline)) {
    int over = 0;
#pragma omp simd reduction(+ : over)
    for (int i = 0; i < count; ++i) {
      const Key<Real> key = key_of(in[i]);
      over += key > high;
      above[i] = key > high ? in[i] : Real(0);
    }
    for (int i = count; i < kSelectBlock; ++i) above[i] = 0;
    found.above += over;
    found.within +=
        collected ? collect(in, count, low, high, collected + found.within) : count_within(in, count, low, high);
    for (int i = 0; i < kSelectBlock; i += kLanes) {
#pragma omp simd
      for (int lane = 0; lane < kLanes; ++lane) sums[lane] += static_cast<double>(above[i + lane]);
    }
  };
  int64_t done = 0;
  for (; done + kSelectBlock <= n; done += kSelectBlock) block(losses + done, kSelectBlock);
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
