// Global memory: vectors of elements, read and written as one access, and their conversion to the computing type.
// Every access of a kernel goes through load and store, so that the emulation sees each (range and alignment).
// Must not know: what the elements mean.
#pragma once

#include "cuda/device.h"
#include "math/dtype.h"

namespace focal::cuda {

// Neighbouring elements, moved by one instruction where they are 2 to 16 bytes.
template <class T, int count>
struct alignas(sizeof(T) * count <= 16 ? sizeof(T) * count : 16) Vector {
  T item[count];
};

// Elements to numbers and back, two half types at a time: one instruction each way for what takes six in portable code.
template <class Real, class Storage, int count>
FOCAL_DEVICE void widen(const Vector<Storage, count>& from, Real (&to)[count]) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(Storage) == 2 && count % 2 == 0) {
#pragma unroll
    for (int i = 0; i < count; i += 2) {
      const uint32_t word = static_cast<uint32_t>(from.item[i].bits) | static_cast<uint32_t>(from.item[i + 1].bits)
                                                                           << 16;
      float low, high;
      if constexpr (DTypeOf<Storage>::value == DType::kBFloat16) {
        low = __uint_as_float(word << 16);
        high = __uint_as_float(word & 0xffff0000u);
      } else {
        asm("{.reg .f16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}"
            : "=f"(low), "=f"(high)
            : "r"(word));
      }
      to[i] = low;
      to[i + 1] = high;
    }
  } else
#endif
  {
#pragma unroll
    for (int i = 0; i < count; ++i) to[i] = to_real<Real>(from.item[i]);
  }
}

template <class Storage, class Real, int count>
FOCAL_DEVICE Vector<Storage, count> narrow(const Real (&from)[count]) {
  Vector<Storage, count> to;
#if defined(__CUDA_ARCH__)
  constexpr bool bfloat = DTypeOf<Storage>::value == DType::kBFloat16;
  if constexpr (sizeof(Storage) == 2 && count % 2 == 0 && (!bfloat || __CUDA_ARCH__ >= 800)) {
#pragma unroll
    for (int i = 0; i < count; i += 2) {
      uint32_t word;
      if constexpr (bfloat) {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(from[i + 1]), "f"(from[i]));
      } else {
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(from[i + 1]), "f"(from[i]));
      }
      to.item[i].bits = static_cast<uint16_t>(word);
      to.item[i + 1].bits = static_cast<uint16_t>(word >> 16);
    }
  } else
#endif
  {
#pragma unroll
    for (int i = 0; i < count; ++i) to.item[i] = from_real<Storage>(from[i]);
  }
  return to;
}

template <int bytes>
struct WordOf;
#if !defined(FOCAL_SIMT)
template <>
struct WordOf<16> {
  using type = uint4;
};
template <>
struct WordOf<8> {
  using type = uint2;
};
template <>
struct WordOf<4> {
  using type = unsigned;
};
template <>
struct WordOf<2> {
  using type = unsigned short;
};
template <>
struct WordOf<1> {
  using type = unsigned char;
};
#endif

enum class Cache { kKeep, kOnce };  // kOnce: read or written once, not worth a place in the caches

template <Cache cache = Cache::kKeep, class T>
FOCAL_DEVICE T load(const T* address) {
#if defined(FOCAL_SIMT)
  simt::check(address, sizeof(T), false);
  return *address;
#else
  using Word = typename WordOf<sizeof(T)>::type;
  const Word* word = reinterpret_cast<const Word*>(address);
  return bit_cast<T>(cache == Cache::kOnce ? __ldcs(word) : *word);
#endif
}

template <Cache cache = Cache::kKeep, class T>
FOCAL_DEVICE void store(T* address, T value) {
#if defined(FOCAL_SIMT)
  simt::check(address, sizeof(T), true);
  *address = value;
#else
  using Word = typename WordOf<sizeof(T)>::type;
  Word* word = reinterpret_cast<Word*>(address);
  if (cache == Cache::kOnce) {
    __stcs(word, bit_cast<Word>(value));
  } else {
    *word = bit_cast<Word>(value);
  }
#endif
}

// `count` neighbouring elements, by 16-byte accesses where `aligned` says that they lie on a 16-byte boundary.
template <Cache cache, int count, class T>
FOCAL_DEVICE Vector<T, count> load_vector(const T* address, bool aligned) {
  Vector<T, count> result;
  if (aligned) {
    constexpr int part = sizeof(T) * count <= 16 ? count : 16 / static_cast<int>(sizeof(T));
#pragma unroll
    for (int i = 0; i < count; i += part) {
      const auto piece = load<cache>(reinterpret_cast<const Vector<T, part>*>(address + i));
#pragma unroll
      for (int j = 0; j < part; ++j) result.item[i + j] = piece.item[j];
    }
  } else {
#pragma unroll
    for (int i = 0; i < count; ++i) result.item[i] = load(address + i);
  }
  return result;
}

template <Cache cache, int count, class T>
FOCAL_DEVICE void store_vector(T* address, const Vector<T, count>& value, bool aligned) {
  if (aligned) {
    constexpr int part = sizeof(T) * count <= 16 ? count : 16 / static_cast<int>(sizeof(T));
#pragma unroll
    for (int i = 0; i < count; i += part) {
      Vector<T, part> piece;
#pragma unroll
      for (int j = 0; j < part; ++j) piece.item[j] = value.item[i + j];
      store<cache>(reinterpret_cast<Vector<T, part>*>(address + i), piece);
    }
  } else {
#pragma unroll
    for (int i = 0; i < count; ++i) store(address + i, value.item[i]);
  }
}

// value / divisor and the rest without a division: exact for value < 2^32.
struct FastDivisor {
  uint32_t divisor = 1, magic = 0;

  FastDivisor() = default;
  explicit FastDivisor(uint32_t d) : divisor(d), magic(d > 1 ? static_cast<uint32_t>((uint64_t(1) << 32) / d) : 0) {}

  FOCAL_INLINE uint32_t quotient(uint32_t value) const {
    if (divisor == 1) return value;
#if defined(__CUDA_ARCH__)
    const uint32_t estimate = __umulhi(value, magic);
#else
    const uint32_t estimate = static_cast<uint32_t>((uint64_t(value) * magic) >> 32);
#endif
    return estimate + (value - estimate * divisor >= divisor);  // the estimate is at most one too small
  }
};

}  // namespace focal::cuda
