// Storage types and their conversion to the computing type: fp16 and bf16 as bits, integers by value.
// Host and device, branch-free so that loops over them vectorise. Must not know: tensors, strides.
#pragma once

#include "math/policy.h"

namespace focal {

enum class DType : int {
  kFloat32,
  kFloat64,
  kFloat16,
  kBFloat16,
  kUInt8,
  kInt8,
  kInt16,
  kInt32,
  kInt64
};  // bool is kUInt8

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class Storage>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::kFloat32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::kFloat64;
};
template <>
struct DTypeOf<Half> {
  static constexpr DType value = DType::kFloat16;
};
template <>
struct DTypeOf<BFloat16> {
  static constexpr DType value = DType::kBFloat16;
};

template <class Real, class Storage>
FOCAL_INLINE Real to_real(Storage value) {
  return static_cast<Real>(value);
}

template <>
FOCAL_INLINE float to_real<float, BFloat16>(BFloat16 value) {
  return bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

template <>
FOCAL_INLINE float to_real<float, Half>(Half value) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
#else
  const uint32_t magnitude = value.bits & 0x7fffu;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  // Exponent bias 15 -> 127 by a multiplication with 2^112, which also makes fp16 subnormals normal.
  const float finite = bit_cast<float>(magnitude << 13) * bit_cast<float>(0x77800000u);
  const uint32_t bits = magnitude >= 0x7c00u ? (magnitude << 13) | 0x7f800000u : bit_cast<uint32_t>(finite);
  return bit_cast<float>(bits | sign);
#endif
}

template <>
FOCAL_INLINE double to_real<double, BFloat16>(BFloat16 value) {
  return to_real<float>(value);
}

template <>
FOCAL_INLINE double to_real<double, Half>(Half value) {
  return to_real<float>(value);
}

template <class Storage, class Real>
FOCAL_INLINE Storage from_real(Real value) {
  return static_cast<Storage>(value);
}

// Round to nearest, ties to even; a NaN stays a (quiet) NaN.
template <>
FOCAL_INLINE BFloat16 from_real<BFloat16, float>(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  BFloat16 result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
#else
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return {static_cast<uint16_t>(value == value ? rounded : 0x7fc0u)};
#endif
}

template <>
FOCAL_INLINE Half from_real<Half, float>(float value) {
#if defined(__CUDA_ARCH__)
  Half result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  return result;
#else
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t sign = (bits >> 16) & 0x8000u;
  // Normal fp16: rebias the exponent and round the 13 dropped bits. A carry may reach infinity, rightly.
  const uint32_t normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  // Subnormal fp16: adding 0.5 leaves the value in units of 2^-24 in the low mantissa bits, rounded.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x47800000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  return {static_cast<uint16_t>(half | sign)};
#endif
}

}  // namespace focal
