// Chooses the instruction set once, cuts tasks into tiles and chunks, keeps each thread's scratch memory.
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "cpu/prelude.h"

namespace focal::cpu {

namespace base {
extern const Kernels table;
}
#if defined(__x86_64__)
namespace v3 {
extern const Kernels table;
}
namespace v4 {
extern const Kernels table;
}
#endif

namespace {

const Kernels& choose() {
  const Kernels* available[3] = {&base::table, nullptr, nullptr};
  int count = 1;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) {
    available[count++] = &v3::table;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512cd")) {
      available[count++] = &v4::table;
    }
  }
#endif
  const char* forced = std::getenv("FOCAL_CUDA_CPU_ISA");
  if (!forced || !*forced) return *available[count - 1];
  std::string names;
  for (int i = 0; i < count; ++i) {
    if (std::string(available[i]->isa) == forced) return *available[i];
    names += (i ? ", " : "") + std::string(available[i]->isa);
  }
  throw std::runtime_error("focal_cuda: expected FOCAL_CUDA_CPU_ISA to be one of " + names +
                           " on this processor, got '" + forced + "'; unset it to use the widest.");
}

constexpr int64_t kElementwiseTile = 1024;       // elements; the four to eight arrays of it stay in L1
constexpr int64_t kNegativesTile = 2048;         // the same where a tile is read and written in place
constexpr int64_t kColumnsTileBytes = 24 << 10;  // of logits, beside where they come from and go to, in L1 or near it
constexpr int64_t kRowsBlock = 4096;
constexpr int64_t kShortRow = 64;         // below: a tile of rows side by side beats one row at a time
constexpr int64_t kLongestColumn = 4096;  // above: a tile of 16 positions would leave the L2 cache

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

void cut(Task& task) {
  task.tiles = ceil_div(task.positions.count, task.tile_positions) * task.class_blocks();
  const int64_t per_tile = std::max<int64_t>(1, task.tile_positions * std::min(task.tile_classes, task.classes));
  task.tiles_per_chunk = std::max<int64_t>(1, kChunkElements / per_tile);
  task.chunks = ceil_div(task.tiles, task.tiles_per_chunk);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

void plan_elementwise(Task& task) {
  task.engine = Engine::kElementwise;
  task.positions.order_by(kLogits);
  task.positions.collapse();
  task.positions.require_innermost();
  const bool alike = !task.dense && !task.positive_weights && !task.gammas && !task.tensor[kSampleWeight];
  const int64_t tile = alike ? kNegativesTile : kElementwiseTile;
  task.tile_classes = std::min(task.classes, tile);
  task.tile_positions = std::max<int64_t>(1, tile / task.tile_classes);
  cut(task);
}

void plan_softmax(Task& task) {
  task.positions.order_by(kLogits);
  task.positions.collapse();
  task.positions.require_innermost();
  const bool contiguous = task.tensor[kLogits].class_stride == 1;
  if (task.classes > kLongestColumn || (contiguous && task.classes >= kShortRow)) {
    task.engine = task.soft() ? Engine::kSoftRows : Engine::kRows;
    task.tile_positions = 1;
    task.tile_classes = std::min(task.classes, kRowsBlock);
    task.tiles = task.positions.count;
    task.tiles_per_chunk = std::max<int64_t>(1, kChunkElements / task.classes);
    task.chunks = ceil_div(task.tiles, task.tiles_per_chunk);
    return;
  }
  task.engine = task.soft() ? Engine::kSoftColumns : Engine::kColumns;
  const int64_t bytes = task.tensor[kLogits].dtype == DType::kFloat64 ? 8 : 4;
  const int64_t positions = kColumnsTileBytes / (task.classes * bytes) / 16 * 16;
  const int64_t fewest = task.classes <= 512 ? 64 : 16;  // shorter runs waste cache lines and page look-ups
  task.tile_classes = task.classes;
  task.tile_positions = std::min<int64_t>(128, std::max(fewest, positions));
  cut(task);
}

void plan_scan(ScanTask& task) {
  task.positions.collapse();
  task.positions.require_innermost();
  task.chunk_positions = kChunkElements;
  task.chunks = ceil_div(task.positions.count, task.chunk_positions);
}

TargetCounts combine(const ScanTask& task) {
  TargetCounts all;
  for (int64_t i = 0; i < task.chunks; ++i) {
    all.counted += task.counts[i].counted;
    all.positives += task.counts[i].positives;
    if (all.first_invalid < 0) all.first_invalid = task.counts[i].first_invalid;
  }
  return all;
}

void* thread_scratch(size_t bytes) {
  struct Deleter {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t(64)); }
  };
  thread_local std::unique_ptr<void, Deleter> memory;
  thread_local size_t capacity = 0;
  if (capacity < bytes) {
    memory.reset();
    capacity = 0;  // should there be no memory
    memory.reset(::operator new(bytes, std::align_val_t(64)));
    capacity = bytes;
  }
  return memory.get();
}

}  // namespace focal::cpu
