// The elementary functions the loss is made of, as policies: exp of a non-positive argument, log1p on [0, 1], log.
// Logarithms are in units of kUnit nats, exp takes its argument in them, and to_units brings a logit there: a machine
// whose exp and log are base 2 need not convert back and forth (kPerNat: units in a nat). kDivides: a division costs less than another exp.
// Host and device. Must not know: the loss, tensors, threads.
// Error bounds are tested over every binade by tests/test_math.py and tests/cpp/test_math.cpp.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__CUDACC__)
#define FOCAL_INLINE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
// always_inline, not a hint: the bodies must be compiled for the instruction set of the wrapper that calls them.
#define FOCAL_INLINE inline __attribute__((always_inline))
#else
#define FOCAL_INLINE inline
#endif

#define FOCAL_RESTRICT __restrict__

namespace focal {

template <class To, class From>
FOCAL_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs types of one size");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

template <class Real>
FOCAL_INLINE Real absolute(Real x) {
  return std::fabs(x);
}

// max(x, 0) that keeps -inf -> 0; a NaN gives 0 (its other uses keep the NaN alive).
template <class Real>
FOCAL_INLINE Real positive_part(Real x) {
#if defined(__CUDA_ARCH__)
  return fmax(x, Real(0));  // one instruction; the comparison would be two
#else
  return x > Real(0) ? x : Real(0);
#endif
}

// The C library: float64 on the CPU, and whatever a host-side test wants.
template <class Real_>
struct LibmMath {
  using Real = Real_;
  static constexpr Real kUnit = 1, kPerNat = 1;
  static constexpr bool kDivides = true;
  static FOCAL_INLINE Real to_units(Real x) { return x; }
  static FOCAL_INLINE Real between(Real x, Real from) { return x - from; }
  static FOCAL_INLINE Real exp(Real x) { return std::exp(x); }
  static FOCAL_INLINE Real log1p(Real x) { return std::log1p(x); }
  static FOCAL_INLINE Real log(Real x) { return std::log(x); }
};

// Branch-free float32 polynomials that a compiler turns into vector code of any width.
//   exp    x <= 0                 relative error <= 2e-7 + 2e-8 |x| (7e-8 |x| without FMA); 0 below -87.7
//   log1p  0 <= x <= 1            relative error <= 4e-7
//   log    x normal, +-0 -> -inf  error <= 1.2e-7 max(|log x|, |x - 1|); inf and NaN pass through
struct PolyMath {
  using Real = float;
  static constexpr Real kUnit = 1, kPerNat = 1;
  static constexpr bool kDivides = true;
  static FOCAL_INLINE float to_units(float x) { return x; }

  // 2^n 2^r with n an integer and |r| <= 1/2.
  static FOCAL_INLINE float exp(float x) {
    constexpr float kLog2e = 1.442695041f;
    constexpr float kLowest = -88.02f;     // rounds to n = -127, whose scale below is exactly 0
    constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, left in the low mantissa bits
    const float clamped = x < kLowest ? kLowest : x;
    const float shifted = clamped * kLog2e + kRound;
    const float r = clamped * kLog2e - (shifted - kRound);
    float p = 1.326469986e-03f;
    p = p * r + 9.671533908e-03f;
    p = p * r + 5.550734001e-02f;
    p = p * r + 2.402224176e-01f;
    p = p * r + 6.931469774e-01f;
    p = p * r + 1.0f;
    return p * bit_cast<float>((bit_cast<uint32_t>(shifted) << 23) + 0x3f800000u);
  }

  static FOCAL_INLINE float log1p(float x) {
    float q = -8.778955529e-03f;
    q = q * x + 4.498664190e-02f;
    q = q * x - 1.090229101e-01f;
    q = q * x + 1.784720816e-01f;
    q = q * x - 2.453686614e-01f;
    q = q * x + 3.328406381e-01f;
    q = q * x - 4.999818035e-01f;
    return q * (x * x) + x;
  }

  // log(1 + f) for f in [sqrt(1/2) - 1, sqrt(2) - 1].
  static FOCAL_INLINE float log_core(float f) {
    float q = 8.734770144e-02f;
    q = q * f - 1.431581827e-01f;
    q = q * f + 1.492145606e-01f;
    q = q * f - 1.656964308e-01f;
    q = q * f + 1.996169910e-01f;
    q = q * f - 2.500177888e-01f;
    q = q * f + 3.333395886e-01f;
    q = q * f - 4.999999146e-01f;
    return q * (f * f) + f;
  }

  static FOCAL_INLINE float log(float x) {
    const uint32_t bits = bit_cast<uint32_t>(x);
    const int32_t exponent =
        static_cast<int32_t>(bits - 0x3f3504f3u) >> 23;  // so that the mantissa is in [sqrt(1/2), sqrt(2))
    const float mantissa = bit_cast<float>(bits - (static_cast<uint32_t>(exponent) << 23));
    const float n = static_cast<float>(exponent);
    const float y = n * 0.693359375f + (log_core(mantissa - 1.0f) - n * 2.12194440e-4f);
    const float inf = std::numeric_limits<float>::infinity();
    return x == 0.0f ? -inf : (x < inf ? y : x);
  }
};

// Base 2 on the special function units of a GPU, which have exp2, log2 and a reciprocal: each one issue slot.
//   exp    x <= 0                 relative error 2^-22 + 4e-8 |x|; 0 below -126
//   log1p  0 <= x <= 1            relative error 4e-7 (precise), 1.3e-5 and 4.1e-6 nats (not: two terms fewer)
//   log    x normal, 0 -> -inf    error 2^-22 of a unit near 1, else relative 2^-22
// log2(1 + e) on the units would lose small e altogether, so log1p stays a polynomial. Where half types are read, the
// shorter one keeps every loss and gradient within 2e-5 for gamma <= 5: minimax, weighted by 1 + 2 log1p and by half as
// much again towards 0, where exp has its largest error.
template <bool precise>
struct BinaryMath {
  using Real = float;
  static constexpr float kUnit = 0.693147181f, kPerNat = 1.442695041f;
  static constexpr bool kDivides = false;
  static FOCAL_INLINE float to_units(float x) {
#if defined(__CUDA_ARCH__)
    float y;  // opaque, or the compiler multiplies once for x and once for -x
    asm("mul.rn.f32 %0, %1, 0f3FB8AA3B;" : "=f"(y) : "f"(x));
    return y;
#else
    return x * kPerNat;
#endif
  }

  // A logit less another one, in units.
  static FOCAL_INLINE float between(float x, float from) { return (x - from) * kPerNat; }
  // The same by one instruction, for a `from` that is given in units and below kNear: its rounding is in everything that
  // is taken relative to it, and cancels.
  static constexpr float kNear = 16384;
  static FOCAL_INLINE float between_units(float x, float from) { return std::fma(x, kPerNat, -from); }

  static FOCAL_INLINE float exp(float x) {
#if defined(__CUDA_ARCH__)
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return x < -126.0f ? 0.0f : std::exp2(x);
#endif
  }

  static FOCAL_INLINE float log1p(float x) { return x * log1p_over(x); }

  // log1p(x) / x
  static FOCAL_INLINE float log1p_over(float x) {
    if (!precise) {
      float q = -3.268817e-02f;
      q = q * x + 1.4156772e-01f;
      q = q * x - 2.9903618e-01f;
      q = q * x + 4.6771842e-01f;
      q = q * x - 7.2024935e-01f;
      return q * x + 1.4426818f;
    }
    float q = -1.2319475e-02f;
    q = q * x + 6.36079e-02f;
    q = q * x - 1.5535189e-01f;
    q = q * x + 2.5600973e-01f;
    q = q * x - 3.5339484e-01f;
    q = q * x + 4.800637e-01f;
    q = q * x - 7.213101e-01f;
    return q * x + 1.4426948f;
  }

  static FOCAL_INLINE float log(float x) {
#if defined(__CUDA_ARCH__)
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return std::log2(x);
#endif
  }
};

// 1 / x, to one unit in the last place on a GPU, where a subnormal x gives inf.
template <class Math>
FOCAL_INLINE typename Math::Real reciprocal(typename Math::Real x) {
#if defined(__CUDA_ARCH__)
  if constexpr (!Math::kDivides) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
  }
#endif
  return typename Math::Real(1) / x;
}

}  // namespace focal
