// Counts what the targets say before any loss is computed: counted and positive positions, and the first invalid one.
// Traffic: targets read once. Integer counts per chunk: exact for any number of threads.
// Compiled once per instruction set (FOCAL_CPU_ISA). Must not know: logits, the loss, torch.
#pragma once

#include "cpu/task.h"

namespace focal::cpu::FOCAL_CPU_ISA {

// What a target is compared as: labels exactly; dense ones in float32 where that holds them.
template <class Rule, class Storage>
using Compared = std::conditional_t<
    std::is_same_v<Rule, IndexRule>, int64_t,
    std::conditional_t<std::is_same_v<Storage, double> || (std::is_integral_v<Storage> && sizeof(Storage) >= 4), double,
                       float>>;

template <bool contiguous, class Rule, class Storage>
void count_run(TargetCounts& counts, const Rule rule, const Storage* FOCAL_RESTRICT in, int64_t stride,
               int64_t position, int n) {
  using Value = Compared<Rule, Storage>;
  if (contiguous) stride = 1;
  int counted = 0, positives = 0, invalid = 0;  // a run has at most chunk_positions elements
#pragma omp simd reduction(+ : counted, positives, invalid)
  for (int i = 0; i < n; ++i) {
    const Value value = to_real<Value>(in[i * stride]);
    counted += rule.counted(value);
    positives += rule.positive(value);
    invalid += !rule.valid(value);
  }
  counts.counted += counted;
  counts.positives += positives;
  if (invalid > 0 && counts.first_invalid < 0) {
    int64_t i = 0;
    while (rule.valid(to_real<Value>(in[i * stride]))) ++i;
    counts.first_invalid = position + i;
  }
}

template <class Rule>
void count_run_of(TargetCounts& counts, const Rule& rule, const Tensor& targets, int64_t offset, int64_t stride,
                  int64_t position, int n) {
  const auto count = [&](const auto* data) __attribute__((always_inline)) {
    if (stride == 1) return count_run<true>(counts, rule, data + offset, stride, position, n);
    return count_run<false>(counts, rule, data + offset, stride, position, n);
  };
  const void* data = targets.data;
  switch (targets.dtype) {
    case DType::kUInt8: return count(static_cast<const uint8_t*>(data));
    case DType::kInt8: return count(static_cast<const int8_t*>(data));
    case DType::kInt16: return count(static_cast<const int16_t*>(data));
    case DType::kInt32: return count(static_cast<const int32_t*>(data));
    case DType::kInt64: return count(static_cast<const int64_t*>(data));
    default: break;
  }
  if constexpr (std::is_same_v<Rule, DenseRule>) {
    switch (targets.dtype) {
      case DType::kFloat64: return count(static_cast<const double*>(data));
      case DType::kFloat16: return count(static_cast<const Half*>(data));
      case DType::kBFloat16: return count(static_cast<const BFloat16*>(data));
      default: return count(static_cast<const float*>(data));
    }
  }
}

inline void scan_chunk(const ScanTask& task, int64_t index) {
  const int64_t first = index * task.chunk_positions;
  const int64_t left = task.positions.count - first;
  const int64_t length = left < task.chunk_positions ? left : task.chunk_positions;
  Cursor cursor(task.positions, first);
  TargetCounts counts;
  for (int64_t done = 0; done < length;) {
    const Run run = cursor.next(length - done);
    const int64_t stride = task.positions.innermost().stride[kTargets];
    if (task.dense) {
      count_run_of(counts, task.dense_rule, task.targets, run.offset[kTargets], stride, first + done,
                   static_cast<int>(run.length));
    } else {
      count_run_of(counts, task.index, task.targets, run.offset[kTargets], stride, first + done,
                   static_cast<int>(run.length));
    }
    done += run.length;
  }
  task.counts[index] = counts;
}

}  // namespace focal::cpu::FOCAL_CPU_ISA
