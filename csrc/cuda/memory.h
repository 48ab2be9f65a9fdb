// Global memory: vectors of elements, read and written as one access, and their conversion to the computing type.
// Every access of a kernel goes through load and store, so that the emulation sees each (range and alignment).
// Must not know: what the elements mean.
#pragma once

#include <type_traits>

#include "cuda/device.h"
#include "math/dtype.h"

namespace focal::cuda {

// Neighbouring elements, 4 to 16 bytes or several times 16, held as words: items of their own would cost an instruction
// each wherever a vector passes.
template <class T, int count>
struct alignas(sizeof(T) * count <= 16 ? sizeof(T) * count : 16) Vector {
  static_assert(sizeof(T) * count % 4 == 0, "a vector is made of words");
  static constexpr int kWords = static_cast<int>(sizeof(T)) * count / 4;
  uint32_t word[kWords];

  FOCAL_DEVICE T get(int i) const {
    if constexpr (sizeof(T) == 8) {
      return bit_cast<T>(static_cast<uint64_t>(word[2 * i]) | static_cast<uint64_t>(word[2 * i + 1]) << 32);
    } else if constexpr (sizeof(T) == 4) {
      return bit_cast<T>(word[i]);
    } else if constexpr (sizeof(T) == 2) {
      return bit_cast<T>(static_cast<uint16_t>(word[i / 2] >> 16 * (i % 2)));
    } else {
      return bit_cast<T>(static_cast<uint8_t>(word[i / 4] >> 8 * (i % 4)));
    }
  }

  // Into a vector that began as {}: bits are added.
  FOCAL_DEVICE void put(int i, T value) {
    if constexpr (sizeof(T) == 8) {
      const uint64_t bits = bit_cast<uint64_t>(value);
      word[2 * i] = static_cast<uint32_t>(bits);
      word[2 * i + 1] = static_cast<uint32_t>(bits >> 32);
    } else if constexpr (sizeof(T) == 4) {
      word[i] = bit_cast<uint32_t>(value);
    } else if constexpr (sizeof(T) == 2) {
      word[i / 2] |= static_cast<uint32_t>(bit_cast<uint16_t>(value)) << 16 * (i % 2);
    } else {
      word[i / 4] |= static_cast<uint32_t>(bit_cast<uint8_t>(value)) << 8 * (i % 4);
    }
  }
};

// Elements to numbers and back, two half types at a time: one instruction for each where portable code takes six.
template <class Real, class Storage, int count>
FOCAL_DEVICE void widen(const Vector<Storage, count>& from, Real (&to)[count]) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<Storage, BFloat16>) {
#pragma unroll
    for (int i = 0; i < count; ++i)
      to[i] = __uint_as_float(i % 2 == 0 ? from.word[i / 2] << 16 : from.word[i / 2] & 0xffff0000u);
  } else if constexpr (std::is_same_v<Storage, Half>) {
#pragma unroll
    for (int i = 0; i < count; i += 2) {
      float low, high;
      asm("{.reg .f16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}"
          : "=f"(low), "=f"(high)
          : "r"(from.word[i / 2]));
      to[i] = low;
      to[i + 1] = high;
    }
  } else
#endif
  {
#pragma unroll
    for (int i = 0; i < count; ++i) to[i] = to_real<Real>(from.get(i));
  }
}

template <class Storage, class Real, int count>
FOCAL_DEVICE Vector<Storage, count> narrow(const Real (&from)[count]) {
  Vector<Storage, count> to{};
#if defined(__CUDA_ARCH__)
  constexpr bool bfloat = std::is_same_v<Storage, BFloat16>;
  if constexpr (sizeof(Storage) == 2 && __CUDA_ARCH__ >= 800) {
#pragma unroll
    for (int i = 0; i < count; i += 2) {
      if constexpr (bfloat) {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(to.word[i / 2]) : "f"(from[i + 1]), "f"(from[i]));
      } else {
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(to.word[i / 2]) : "f"(from[i + 1]), "f"(from[i]));
      }
    }
  } else
#endif
  {
#pragma unroll
    for (int i = 0; i < count; ++i) to.put(i, from_real<Storage>(from[i]));
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

// `count` neighbouring elements by accesses of 16 bytes, where `aligned` says that they lie on such a boundary.
template <Cache cache, int count, class T>
FOCAL_DEVICE Vector<T, count> load_vector(const T* address, bool aligned = true) {
  using Whole = Vector<T, count>;
  Whole result{};
  if (aligned) {
    constexpr int words = Whole::kWords < 4 ? Whole::kWords : 4;
    using Part = Vector<uint32_t, words>;
#pragma unroll
    for (int w = 0; w < Whole::kWords; w += words) {
      const Part part = load<cache>(reinterpret_cast<const Part*>(address) + w / words);
#pragma unroll
      for (int j = 0; j < words; ++j) result.word[w + j] = part.word[j];
    }
  } else {
#pragma unroll
    for (int i = 0; i < count; ++i) result.put(i, load(address + i));
  }
  return result;
}

template <Cache cache, int count, class T>
FOCAL_DEVICE void store_vector(T* address, const Vector<T, count>& value) {
  using Whole = Vector<T, count>;
  constexpr int words = Whole::kWords < 4 ? Whole::kWords : 4;
  using Part = Vector<uint32_t, words>;
#pragma unroll
  for (int w = 0; w < Whole::kWords; w += words) {
    Part part;
#pragma unroll
    for (int j = 0; j < words; ++j) part.word[j] = value.word[w + j];
    store<cache>(reinterpret_cast<Part*>(address) + w / words, part);
  }
}

// `step` times `bytes` further on: a product of 32 bits by 32, which is one instruction with its sum.
template <class T>
FOCAL_DEVICE T* moved(T* pointer, int step, int32_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return reinterpret_cast<T*>(reinterpret_cast<Byte*>(pointer) + static_cast<int64_t>(step) * bytes);
}

// The same pointer to global memory, of which the compiler no longer knows how it was made, so that it keeps it through
// a loop instead of making it again in every turn.
template <class T>
FOCAL_DEVICE T* keep(T* pointer) {
#if defined(__CUDA_ARCH__)
  asm volatile("" : "+l"(pointer));
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

// The same number, but what is computed from it is not taken for what was computed from the other before.
FOCAL_DEVICE int32_t apart(int32_t value) {
#if defined(__CUDA_ARCH__)
  asm("" : "+r"(value));
#endif
  return value;
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
