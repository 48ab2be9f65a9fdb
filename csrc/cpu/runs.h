// Loads and stores of runs: n elements at one stride, converted between their storage type and the computing type.
// Compiled once per instruction set (FOCAL_CPU_ISA). Must not know: the loss, what targets mean.
#pragma once

#include "cpu/task.h"

namespace focal::cpu::FOCAL_CPU_ISA {

// One value where an array of them could stand.
template <class Real>
struct Uniform {
  Real value;
  FOCAL_INLINE Real operator[](int) const { return value; }
};

template <class Real, class Storage>
void load_as(Real* FOCAL_RESTRICT out, const Storage* FOCAL_RESTRICT in, int64_t stride, int n) {
  if (stride == 1) {
#pragma omp simd
    for (int i = 0; i < n; ++i) out[i] = to_real<Real>(in[i]);
  } else if (stride == 0) {
    const Real same = to_real<Real>(*in);
    for (int i = 0; i < n; ++i) out[i] = same;
  } else {
    for (int i = 0; i < n; ++i) out[i] = to_real<Real>(in[i * stride]);
  }
}

// float64 tensors are computed in double, everything else in float; dense targets may be of any type for both.
template <class Real>
void load_run(Real* out, const Tensor& tensor, int64_t offset, int64_t stride, int n) {
  const void* data = tensor.data;
  switch (tensor.dtype) {
    case DType::kFloat32: return load_as(out, static_cast<const float*>(data) + offset, stride, n);
    case DType::kFloat64: return load_as(out, static_cast<const double*>(data) + offset, stride, n);
    case DType::kFloat16: return load_as(out, static_cast<const Half*>(data) + offset, stride, n);
    case DType::kBFloat16: return load_as(out, static_cast<const BFloat16*>(data) + offset, stride, n);
    case DType::kUInt8: return load_as(out, static_cast<const uint8_t*>(data) + offset, stride, n);
    case DType::kInt8: return load_as(out, static_cast<const int8_t*>(data) + offset, stride, n);
    case DType::kInt16: return load_as(out, static_cast<const int16_t*>(data) + offset, stride, n);
    case DType::kInt32: return load_as(out, static_cast<const int32_t*>(data) + offset, stride, n);
    case DType::kInt64: return load_as(out, static_cast<const int64_t*>(data) + offset, stride, n);
  }
}

// Calls visit(begin, end, above) for the stretches of n losses of which those with a key above `above` are kept.
template <class Real, class Visit>
void for_kept(const Kept& kept, int64_t offset, int64_t stride, int n, const Visit& visit) {
  const auto key = static_cast<Key<Real>>(kept.key);
  const int equal = static_cast<int>(keeps_equal(kept.last, offset, stride, n));
  visit(0, equal, key - 1);
  visit(equal, n, key);
}

// Upstream gradients of an unreduced loss; with task.kept 1 and 0, from the losses that lie there instead.
template <class Real>
void load_upstream(const Task& task, Real* out, int64_t offset, int64_t stride, int n) {
  load_run(out, task.tensor[kUpstream], offset, stride, n);
  if (!task.kept) return;
  for_kept<Real>(*task.kept, offset, stride, n, [&](int begin, int end, Key<Real> above) {
#pragma omp simd
    for (int i = begin; i < end; ++i) out[i] = key_of(out[i]) > above ? Real(1) : Real(0);
  });
}

inline int64_t bytes_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
    case DType::kInt64: return 8;
    case DType::kFloat32:
    case DType::kInt32: return 4;
    case DType::kUInt8:
    case DType::kInt8: return 1;
    default: return 2;
  }
}

// Asks for a contiguous run that is soon read. It may lie beyond the tensor: a prefetch never faults.
inline void prefetch_run(const Tensor& tensor, int64_t offset, int64_t stride, int64_t n) {
  if (stride != 1) return;
  const int64_t bytes = bytes_of(tensor.dtype);
  const char* data = static_cast<const char*>(tensor.data) + offset * bytes;
  for (int64_t i = 0; i < n * bytes; i += 64) __builtin_prefetch(data + i);
  asm volatile("");  // gcc takes a function of nothing but prefetches for one without effect and drops its calls
}

template <class Storage, class Real, class Factor>
void store_as(Storage* FOCAL_RESTRICT out, const Real* FOCAL_RESTRICT in, Factor factor, int64_t stride, int n) {
  if (stride == 1) {
#pragma omp simd
    for (int i = 0; i < n; ++i) out[i] = from_real<Storage>(in[i] * factor[i]);
  } else {
    for (int i = 0; i < n; ++i) out[i * stride] = from_real<Storage>(in[i] * factor[i]);
  }
}

#if defined(__SSE__)
#if defined(FOCAL_CPU_AVX512)
using Wide = __m512;
FOCAL_INLINE void stream_wide(float* out, Wide values) { _mm512_stream_ps(out, values); }
#elif defined(FOCAL_CPU_AVX)
using Wide = __m256;
FOCAL_INLINE void stream_wide(float* out, Wide values) { _mm256_stream_ps(out, values); }
#else
using Wide = __m128;
FOCAL_INLINE void stream_wide(float* out, Wide values) { _mm_stream_ps(out, values); }
#endif

FOCAL_INLINE Wide wide(const float* in, int i) {
  Wide values;
  memcpy(&values, in + i, sizeof(Wide));
  return values;
}
FOCAL_INLINE Wide wide(Uniform<float> in, int) { return Wide{} + in.value; }

// out[i] = in[i] * factor[i] past the caches, without reading the lines first as a store that misses would. Copying in
// the pattern of columns.h, 80 MB by 19 streams, one thread: 11.5 ms with ordinary stores, 5.7 with these.
template <class Factor>
void stream_run(float* out, const float* in, Factor factor, int n) {
  constexpr int kWide = sizeof(Wide) / sizeof(float);
  int i = 0;
  for (; i < n && reinterpret_cast<uintptr_t>(out + i) % sizeof(Wide) != 0; ++i) out[i] = in[i] * factor[i];
  for (; i + kWide <= n; i += kWide) stream_wide(out + i, wide(in, i) * wide(factor, i));
  for (; i < n; ++i) out[i] = in[i] * factor[i];
}

// Streamed stores are ordered with nothing; this puts them before all that follows.
inline void finish_streams() { _mm_sfence(); }
#else
template <class Factor>
void stream_run(float* out, const float* in, Factor factor, int n) {
  store_as(out, in, factor, 1, n);
}
inline void finish_streams() {}
#endif

// Stores in[i] * factor[i]. Losses and gradients are of the computing type or, gradients only, of a half type.
template <class Factor>
void store_run(const Tensor& tensor, int64_t offset, int64_t stride, const float* in, Factor factor, int n) {
  switch (tensor.dtype) {
    case DType::kFloat16: return store_as(static_cast<Half*>(tensor.data) + offset, in, factor, stride, n);
    case DType::kBFloat16: return store_as(static_cast<BFloat16*>(tensor.data) + offset, in, factor, stride, n);
    default:
      if (tensor.stream && stride == 1) return stream_run(static_cast<float*>(tensor.data) + offset, in, factor, n);
      return store_as(static_cast<float*>(tensor.data) + offset, in, factor, stride, n);
  }
}

template <class Factor>
void store_run(const Tensor& tensor, int64_t offset, int64_t stride, const double* in, Factor factor, int n) {
  store_as(static_cast<double*>(tensor.data) + offset, in, factor, stride, n);
}

template <class Storage>
void load_codes_as(int32_t* FOCAL_RESTRICT out, const Storage* FOCAL_RESTRICT in, const IndexRule& rule, int64_t stride,
                   int n) {
  for (int i = 0; i < n; ++i) out[i] = rule.code(static_cast<int64_t>(in[i * stride]));
}

// Reads class labels as classes or codes (targets.h). They were found valid before.
inline void load_codes(int32_t* out, const Tensor& tensor, const IndexRule& rule, int64_t offset, int64_t stride,
                       int n) {
  const void* data = tensor.data;
  switch (tensor.dtype) {
    case DType::kUInt8: return load_codes_as(out, static_cast<const uint8_t*>(data) + offset, rule, stride, n);
    case DType::kInt8: return load_codes_as(out, static_cast<const int8_t*>(data) + offset, rule, stride, n);
    case DType::kInt16: return load_codes_as(out, static_cast<const int16_t*>(data) + offset, rule, stride, n);
    case DType::kInt32: return load_codes_as(out, static_cast<const int32_t*>(data) + offset, rule, stride, n);
    default: return load_codes_as(out, static_cast<const int64_t*>(data) + offset, rule, stride, n);
  }
}

// Scratch memory of the calling thread, 64-byte aligned, kept between calls.
void* scratch(size_t bytes);

// Where in scratch memory a T may lie from here on: less than one T further.
template <class T>
T* aligned(void* memory) {
  const uintptr_t boundary = alignof(T);
  return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory) + boundary - 1) / boundary * boundary);
}

}  // namespace focal::cpu::FOCAL_CPU_ISA
