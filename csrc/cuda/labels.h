// Class labels of any integer type, and dense targets of any type, as kernels read them.
// Must not know: the loss, layouts.
#pragma once

#include "cuda/memory.h"
#include "cuda/task.h"

namespace focal::cuda {

constexpr int32_t kInvalid = -3;  // a label that is no class: takes no part and is reported; beside those of targets.h

// The dtype is the same for every thread, so a chain of comparisons costs two instructions each, where a template would
// cost five times the kernels. The commonest first.
FOCAL_DEVICE int64_t load_label(const void* labels, DType dtype, int64_t at = 0) {
  if (dtype == DType::kInt64) return load(static_cast<const int64_t*>(labels) + at);
  if (dtype == DType::kUInt8) return load(static_cast<const uint8_t*>(labels) + at);
  if (dtype == DType::kInt32) return load(static_cast<const int32_t*>(labels) + at);
  if (dtype == DType::kInt16) return load(static_cast<const int16_t*>(labels) + at);
  return load(static_cast<const int8_t*>(labels) + at);
}

FOCAL_DEVICE int32_t code_of(const IndexRule& rule, int64_t label) {
  return rule.valid(label) ? rule.code(label) : kInvalid;
}

// `count` labels at a distance of `stride`, of which `exist` exist; those that do not are 0. vector: they are neighbours,
// all there, and lie on a boundary of 16 bytes or of all of them.
template <int count>
FOCAL_DEVICE void load_labels(const void* labels, DType dtype, int64_t at, int64_t stride, int exist, bool vector,
                              int64_t (&to)[count]) {
  const auto read = [&](auto type) {
    using T = decltype(type);
    const T* first = static_cast<const T*>(labels) + at;
    if constexpr (sizeof(T) * count % 4 == 0) {
      if (vector) {
        const auto raw = load_vector<Cache::kKeep, count>(first);
#pragma unroll
        for (int i = 0; i < count; ++i) to[i] = raw.get(i);
        return;
      }
    }
#pragma unroll
    for (int i = 0; i < count; ++i) to[i] = i < exist ? load(first + i * stride) : T(0);
  };
  if (dtype == DType::kInt64) return read(int64_t());
  if (dtype == DType::kUInt8) return read(uint8_t());
  if (dtype == DType::kInt32) return read(int32_t());
  if (dtype == DType::kInt16) return read(int16_t());
  read(int8_t());
}

// Dense targets; integers by value.
template <class Real>
FOCAL_DEVICE Real load_target(const void* targets, DType dtype, int64_t at) {
  switch (dtype) {
    case DType::kFloat32: return static_cast<Real>(load(static_cast<const float*>(targets) + at));
    case DType::kFloat64: return static_cast<Real>(load(static_cast<const double*>(targets) + at));
    case DType::kFloat16: return to_real<Real>(load(static_cast<const Half*>(targets) + at));
    case DType::kBFloat16: return to_real<Real>(load(static_cast<const BFloat16*>(targets) + at));
    default: return static_cast<Real>(load_label(targets, dtype, at));
  }
}

template <int count, class Real, class T>
FOCAL_DEVICE void load_targets_as(const void* targets, int64_t at, bool aligned, Real (&to)[count]) {
  const auto vector = load_vector<Cache::kOnce, count>(static_cast<const T*>(targets) + at, aligned);
  if constexpr (sizeof(T) == 2 && !std::is_integral<T>::value) {
    widen(vector, to);
  } else {
#pragma unroll
    for (int i = 0; i < count; ++i) to[i] = static_cast<Real>(vector.get(i));
  }
}

// `count` neighbours; aligned as for load_vector.
template <int count, class Real>
FOCAL_DEVICE void load_targets(const void* targets, DType dtype, int64_t at, bool aligned, Real (&to)[count]) {
  switch (dtype) {
    case DType::kFloat32: return load_targets_as<count, Real, float>(targets, at, aligned, to);
    case DType::kFloat16: return load_targets_as<count, Real, Half>(targets, at, aligned, to);
    case DType::kBFloat16: return load_targets_as<count, Real, BFloat16>(targets, at, aligned, to);
    case DType::kUInt8: return load_targets_as<count, Real, uint8_t>(targets, at, aligned, to);
    default:
#pragma unroll
      for (int i = 0; i < count; ++i) to[i] = load_target<Real>(targets, dtype, at + i);
  }
}

}  // namespace focal::cuda
