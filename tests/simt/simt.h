// Runs CUDA kernel source as plain C++ on the CPU, one fiber per CUDA thread, so that every kernel can be executed
// without a GPU. Kernels come here through cuda/device.h, compiled with -DFOCAL_SIMT.
//
// It proves logic, not speed and not the memory model: one thread runs at a time, until it synchronises or ends. Which
// one is next is drawn from a seed at every such point, so that code whose result depends on the order shows itself.
// Stricter than the hardware where that finds mistakes: threads that have ended do not count at a barrier, every lane
// named in a mask must come, shared memory is poisoned, every access to global memory must be announced to check().
//
// A wrong kernel ends in an exception from launch(): simt::Fault, or whatever the kernel itself threw.
#pragma once

#include <cstring>
#include <tuple>

#include "launch.h"

namespace simt {

// --- for kernels and launches ----------------------------------------------------------------------------------------

// Global memory that launches from this host thread may touch, as long as the object lives.
class Memory {
 public:
  Memory(const void* pointer, size_t bytes, bool writable)
      : range_{reinterpret_cast<uintptr_t>(pointer), bytes, writable} {
    detail::registered.push_back(range_);
  }
  Memory(Memory&& other) noexcept : range_(other.range_), active_(std::exchange(other.active_, false)) {}
  Memory& operator=(Memory&&) = delete;
  ~Memory() {
    auto& all = detail::registered;
    for (size_t i = all.size(); active_ && i-- > 0;) {
      const detail::Range& range = all[i];
      if (range.begin != range_.begin || range.size != range_.size || range.writable != range_.writable) continue;
      all.erase(all.begin() + static_cast<ptrdiff_t>(i));
      break;
    }
  }

 private:
  detail::Range range_;
  bool active_ = true;
};

// Before every access to global memory of 1, 2, 4, 8 or 16 bytes.
inline void check(const void* pointer, size_t bytes, bool write) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  const detail::Range* range = detail::machine.hit[write];
  if (range && address - range->begin < range->size && range->size - (address - range->begin) >= bytes &&
      (address & (bytes - 1)) == 0 && bytes - 1 < 16 && (bytes & (bytes - 1)) == 0)
    return;
  detail::check_slow(address, bytes, write);
}

// The block's instance of a static shared variable.
template <class T>
T& shared(const void* key) {
  static_assert(std::is_trivially_default_constructible<T>::value && alignof(T) <= detail::kGuard,
                "shared memory is never constructed");
  return *static_cast<T*>(detail::static_shared(key, sizeof(T)));
}

inline unsigned char* dynamic_shared() {
  return detail::machine.warp->block->shared + detail::machine.variables[0].offset;
}

inline unsigned cluster_rank() { return detail::machine.warp->block->rank; }
inline unsigned cluster_size() { return detail::machine.cluster; }

inline void cluster_barrier() {
  detail::Machine& m = detail::machine;
  if (++m.cluster_arrived == m.threads.size()) {
    m.cluster_arrived = 0;
    for (detail::Warp& warp : m.warps) m.release(warp, ~0u);
  }
  detail::suspend(detail::Wait::kCluster);
}

// The same shared variable of another block of the cluster.
template <class T>
T* cluster_map(T* variable, unsigned rank) {
  detail::Machine& m = detail::machine;
  const uintptr_t offset = reinterpret_cast<uintptr_t>(variable) - reinterpret_cast<uintptr_t>(m.warp->block->shared);
  if (rank >= m.cluster) detail::fault("asks for block %u of a cluster of %u", rank, m.cluster);
  if (offset >= detail::kArena) detail::fault("asks for what is no shared memory of its block");
  if (m.blocks[rank].live == 0)
    detail::fault("asks for shared memory of block %u of its cluster, which has ended", rank);
  return reinterpret_cast<T*>(m.blocks[rank].shared + offset);
}

// Runs a kernel to its end. Refuses what CUDA would refuse.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_shared,
            unsigned cluster, Arguments&&... arguments) {
  detail::Machine& m = detail::machine;
  const std::lock_guard<std::mutex> lock(m.mutex);
  using Call = std::pair<void (*)(Parameters...), std::tuple<std::decay_t<Parameters>...>>;
  const Call call{kernel, {std::forward<Arguments>(arguments)...}};
  detail::reset();
  m.name = name;
  m.call = [](const void* opaque) {
    const Call& self = *static_cast<const Call*>(opaque);
    std::apply(self.first, self.second);
  };
  m.arguments = &call;
  struct Reset {
    ~Reset() { detail::reset(); }
  } at_the_end;
  m.ranges = &detail::registered;
  detail::check_launch(grid, block, dynamic_shared, cluster);
  ++m.statistics.launches;
  m.statistics.launched.insert(reinterpret_cast<const void*>(kernel));
  detail::run(grid, block, dynamic_shared, cluster);
}

// Of the order that blocks, warps and lanes run in; an even one is unfair to some warps. Without it FOCAL_SIMT_SEED
// decides.
inline void set_seed(uint64_t seed) {
  const std::lock_guard<std::mutex> lock(detail::machine.mutex);
  detail::machine.seed = seed;
  detail::machine.seeded = true;
}

inline uint64_t seed() {
  detail::seed_now();
  return detail::machine.seed;
}

inline const Statistics& statistics() { return detail::machine.statistics; }

// Every kernel that Known names somewhere in the program, launched or not, and what it is called.
inline std::map<const void*, std::string>& known_kernels() {
  static std::map<const void*, std::string> kernels;
  return kernels;
}

template <auto kernel>
struct Known {
  static bool say() {
    const std::string text = __PRETTY_FUNCTION__;  // ... [with auto kernel = NAME]
    const size_t name = text.find("kernel = ") + 9;
    known_kernels()[reinterpret_cast<const void*>(kernel)] = text.substr(name, text.size() - name - 1);
    return true;
  }
  static inline const bool said = say();  // when the program is loaded
};

}  // namespace simt

// --- the built-in functions ------------------------------------------------------------------------------------------

inline void __syncthreads() { simt::detail::block_barrier(simt::detail::Wait::kSyncthreads, 0); }
inline int __syncthreads_or(int predicate) {
  return simt::detail::block_barrier(simt::detail::Wait::kSyncthreadsOr, predicate);
}
inline void __syncwarp(unsigned mask = ~0u) {
  simt::detail::warp_operation(simt::detail::Wait::kSyncwarp, mask, 0, simt::detail::machine.lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return static_cast<unsigned>(
      simt::detail::warp_operation(simt::detail::Wait::kVote, mask, predicate != 0, simt::detail::machine.lane));
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }

// Within groups of `width` lanes; from outside of its group a lane gets its own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {
  const unsigned lane = simt::detail::machine.lane, inside = static_cast<unsigned>(width) - 1;
  return simt::detail::shuffle(mask, value, (lane & ~inside) | (static_cast<unsigned>(source) & inside));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int distance, int width = warpSize) {
  const unsigned lane = simt::detail::machine.lane, inside = static_cast<unsigned>(width) - 1;
  const unsigned source = lane ^ static_cast<unsigned>(distance);
  return simt::detail::shuffle(mask, value, source > (lane | inside) ? lane : source);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = warpSize) {
  const unsigned lane = simt::detail::machine.lane, inside = static_cast<unsigned>(width) - 1;
  return simt::detail::shuffle(mask, value, lane + distance > (lane | inside) ? lane : lane + distance);
}

// Of two numbers of one type, as CUDA has them outside of any namespace; of a NaN and a number the number.
template <class T, class = std::enable_if_t<std::is_arithmetic<T>::value>>
inline T min(T a, T b) {
  return std::is_floating_point<T>::value && b != b ? a : (b < a || a != a ? b : a);
}
template <class T, class = std::enable_if_t<std::is_arithmetic<T>::value>>
inline T max(T a, T b) {
  return std::is_floating_point<T>::value && b != b ? a : (a < b || a != a ? b : a);
}

inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline void __threadfence() {}
[[noreturn]] inline void __trap() { simt::detail::fault("__trap()"); }

// The emulation grants what cuda/device.h asks for: see check_launch.
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
