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

#include <sys/mman.h>
#include <unistd.h>

#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <numeric>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

// The assembly needs ELF; elsewhere ucontext does the same with two system calls a switch.
#if !defined(__x86_64__) || !defined(__ELF__)
#define FOCAL_SIMT_UCONTEXT
#endif
#ifdef FOCAL_SIMT_UCONTEXT
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// --- the language ----------------------------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
// Empty, since the C++ library writes __attribute__((__noinline__)).
#define __noinline__

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Of the thread that runs; set at every switch.
inline uint3 threadIdx{}, blockIdx{};
inline dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9,
  cudaFuncAttributeNonPortableClusterSizeAllowed = 15,
};
using cudaStream_t = struct CUstream_st*;

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) { return error == cudaSuccess ? "no error" : "invalid value"; }

// --- the machine -----------------------------------------------------------------------------------------------------

namespace simt {

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Statistics {
  uint64_t launches = 0;
  std::set<std::string> names;
  std::set<const void*> kernels;  // every instance of a template by itself
};

namespace detail {

constexpr unsigned kWarp = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr size_t kStaticLimit = 48 << 10;   // static shared memory, and all of it without opting in to more
constexpr size_t kSharedLimit = 227 << 10;  // per block, compute capability 9.0
constexpr size_t kGuard = 128;              // bytes on either side of a shared variable; also their alignment
constexpr size_t kArena = 256 << 10;        // the limit and room for the guards of a hundred variables
constexpr unsigned char kPoison = 0xff;     // NaN in every floating point type
constexpr unsigned char kGuardByte = 0xa5;
constexpr int kOrders = 64;
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStack = 256 << 10;  // its frames are several times as large
#else
constexpr size_t kStack = 64 << 10;
#endif

// What a thread of execution is resumed from.
struct Context {
#ifdef FOCAL_SIMT_UCONTEXT
  ucontext_t state;
#else
  void* stack_pointer;
#endif
  const void* bottom;  // of its stack, for the address sanitizer
  size_t size;
  void* fake_stack;
};

// A stack that threads run on, one after the other: a thread that never waits leaves it to the next.
struct Fiber {
  Context context{};
  unsigned char* stack = nullptr;
};

enum class Wait : uint8_t { kNone, kSyncthreads, kSyncthreadsOr, kCluster, kSyncwarp, kShuffle, kVote };

inline const char* name_of(Wait wait) {
  constexpr const char* kNames[] = {
      "nothing", "__syncthreads", "__syncthreads_or", "the cluster's barrier", "__syncwarp", "a shuffle", "a vote"};
  return kNames[static_cast<int>(wait)];
}

struct Thread {
  uint3 index;
  Wait wait;
  uint8_t source;  // the lane a shuffle reads
  uint32_t mask;
  uint64_t value, result;
  Fiber* fiber;  // of a thread that waits
};

struct Block;

struct Warp {
  Block* block;
  Thread* threads;
  uint32_t ready, fresh, waiting, done;  // lanes: may run; have not begun; wait for lanes of their warp; have ended
  bool listed;
};

struct Arena {
  alignas(kGuard) unsigned char bytes[kArena];
};

struct Block {
  uint3 index;
  unsigned rank;  // in its cluster
  Warp* warps;
  unsigned live, arrived, generation;
  Wait barrier;
  int any[2];  // of __syncthreads_or, by generation: a slow thread still reads one while the next is being made
  unsigned char* shared;
};

struct Range {
  uintptr_t begin, size;
  bool writable;
};

// A shared variable. The same in every block of a launch, so that blocks of a cluster find each other's.
struct Variable {
  const void* key;
  size_t offset, size;
};

inline thread_local std::vector<Range> registered;

struct Machine {
  std::mutex mutex;
  Statistics statistics;
  bool seeded = false;
  uint64_t seed = 0;

  // The launch.
  const char* name = nullptr;
  void (*call)(const void*) = nullptr;
  const void* arguments = nullptr;
  unsigned cluster = 1, block_threads = 0, cluster_arrived = 0;
  size_t shared_limit = 0, static_bytes = 0, arena_used = 0;
  std::vector<Variable> variables;
  const std::vector<Range>* ranges = nullptr;
  const Range* hit[2] = {};  // the range of the last read and of the last write

  // The cluster that runs.
  std::vector<Block> blocks;
  std::vector<Warp> warps;
  std::vector<Thread> threads;
  std::vector<std::unique_ptr<Arena>> arenas;

  // The schedule: warps in random order, and of the one that is on its lanes that could run when it came on.
  uint64_t random_state = 0;
  std::vector<Warp*> runnable;
  uint8_t orders[kOrders][kWarp] = {};
  const uint8_t* order = nullptr;
  uint32_t turn = 0;
  Warp* warp = nullptr;
  unsigned lane = 0;
  bool picked = false;

  Context host{};
  Fiber* fiber = nullptr;
  std::vector<Fiber*> idle;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::exception_ptr error;

  Thread& thread() { return warp->threads[lane]; }

  uint64_t random() {  // splitmix64
    uint64_t z = (random_state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  unsigned random_below(unsigned n) { return static_cast<unsigned>((random() >> 32) * n >> 32); }

  void release(Warp& released, uint32_t lanes) {
    released.ready |= lanes;
    if (!released.listed) runnable.push_back(&released);
    released.listed = true;
  }

  // The next thread, into warp, lane and the built-in variables. False: none can run.
  bool pick() {
    if (turn == 0) {
      if (runnable.empty()) return false;
      std::swap(runnable[random_below(static_cast<unsigned>(runnable.size()))], runnable.back());
      warp = runnable.back();
      runnable.pop_back();
      turn = warp->ready;
      warp->ready = 0;
      warp->listed = false;
      order = orders[random_below(kOrders)];
      blockIdx = warp->block->index;
    }
    while (!(turn >> *order & 1)) ++order;
    lane = *order;
    turn &= ~(1u << lane);
    threadIdx = warp->threads[lane].index;
    return true;
  }
};

inline Machine machine;

[[noreturn]] __attribute__((format(printf, 1, 2), cold)) inline void launch_fault(const char* format, ...) {
  char text[400];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  throw Fault("kernel " + std::string(machine.name ? machine.name : "(none)") + text);
}

// A fault of the thread that runs.
[[noreturn]] __attribute__((format(printf, 1, 2), cold)) inline void fault(const char* format, ...) {
  char text[300];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  launch_fault(", block (%u, %u, %u), thread (%u, %u, %u): %s", blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x,
               threadIdx.y, threadIdx.z, text);
}

// --- fibers ----------------------------------------------------------------------------------------------------------

#ifndef FOCAL_SIMT_UCONTEXT
// Saves what a call must preserve, and goes on where another stack did the same. At file level and not inline, so that
// the compiler takes it for an unknown function, which may change any variable.
extern "C" __attribute__((visibility("hidden"))) void focal_simt_switch(void** save, void* load);
asm(R"(
  .pushsection .text.focal_simt_switch,"axG",@progbits,focal_simt_switch,comdat
  .weak focal_simt_switch
  .hidden focal_simt_switch
  .type focal_simt_switch,@function
focal_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size focal_simt_switch, . - focal_simt_switch
  .popsection
)");
#endif

// After a switch into a fiber, which is always from the host.
inline void arrived([[maybe_unused]] void* fake_stack) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_stack, &machine.host.bottom, &machine.host.size);
#endif
}

inline void switch_context(Context& from, Context& to) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.size);
#endif
#ifdef FOCAL_SIMT_UCONTEXT
  swapcontext(&from.state, &to.state);
#else
  focal_simt_switch(&from.stack_pointer, to.stack_pointer);
#endif
#ifdef __SANITIZE_ADDRESS__
  if (&from == &machine.host) {
    __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
  } else {
    arrived(from.fake_stack);
  }
#endif
}

inline void finish_thread();

// A fiber's whole life: one thread after the other. As long as threads that have not begun come up it takes them
// itself, so that a kernel without synchronisation costs little more than its calls.
inline void fiber_main() {
  Machine& m = machine;
  arrived(nullptr);
  for (;;) {
    try {
      do {
        m.warp->fresh &= ~(1u << m.lane);
        m.call(m.arguments);
        finish_thread();
        m.picked = m.pick();
      } while (m.picked && (m.warp->fresh >> m.lane & 1));
    } catch (...) {
      m.error = std::current_exception();
    }
    m.idle.push_back(m.fiber);
    switch_context(m.fiber->context, m.host);
  }
}

// To the start of fiber_main, whatever was on the stack before.
inline void rewind(Fiber& fiber) {
#ifdef __SANITIZE_ADDRESS__
  __asan_unpoison_memory_region(fiber.stack, kStack);
#endif
#ifdef FOCAL_SIMT_UCONTEXT
  getcontext(&fiber.context.state);
  fiber.context.state.uc_stack.ss_sp = fiber.stack;
  fiber.context.state.uc_stack.ss_size = kStack;
  makecontext(&fiber.context.state, fiber_main, 0);
#else
  // Six registers, the address to go to, and as if that had been called from nowhere.
  void** top = reinterpret_cast<void**>(fiber.stack + kStack) - 8;
  std::memset(top, 0, 8 * sizeof(void*));
  top[6] = reinterpret_cast<void*>(&fiber_main);
  fiber.context.stack_pointer = top;
#endif
}

inline Fiber* idle_fiber() {
  Machine& m = machine;
  if (m.idle.empty()) {
    // Below the stack a page that nobody may touch: an overflow must not run into another fiber.
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* memory =
        mmap(nullptr, kStack + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) launch_fault(": no memory for another fiber");
    auto fiber = std::make_unique<Fiber>();
    fiber->stack = static_cast<unsigned char*>(memory) + page;
    fiber->context.bottom = fiber->stack;
    fiber->context.size = kStack;
    rewind(*fiber);
    m.idle.push_back(fiber.get());
    m.fibers.push_back(std::move(fiber));
  }
  Fiber* fiber = m.idle.back();
  m.idle.pop_back();
  return fiber;
}

// The running thread waits until a release.
inline void suspend(Wait wait) {
  Machine& m = machine;
  Thread& thread = m.thread();
  thread.wait = wait;
  thread.fiber = m.fiber;
  switch_context(m.fiber->context, m.host);
  thread.wait = Wait::kNone;
}

// --- shared memory ---------------------------------------------------------------------------------------------------

inline void poison(Block& block, const Variable& variable) {
  unsigned char* begin = block.shared + variable.offset;
  std::memset(begin - kGuard, kGuardByte, kGuard);
  std::memset(begin, kPoison, variable.size);
  // Up to the next variable's own guard, without a gap.
  const size_t end = (variable.offset + variable.size + kGuard - 1) / kGuard * kGuard;
  std::memset(begin + variable.size, kGuardByte, end + kGuard - variable.offset - variable.size);
}

inline Variable& add_variable(const void* key, size_t size) {
  Machine& m = machine;
  const size_t offset = m.arena_used + kGuard;
  m.arena_used = (offset + size + kGuard - 1) / kGuard * kGuard;
  if (m.arena_used + kGuard > kArena) fault("more shared variables than the emulation has room for");
  m.variables.push_back({key, offset, size});
  for (Block& block : m.blocks) poison(block, m.variables.back());
  return m.variables.back();
}

inline void* static_shared(const void* key, size_t size) {
  Machine& m = machine;
  unsigned char* shared = m.warp->block->shared;
  for (const Variable& variable : m.variables) {
    if (variable.key == key) return shared + variable.offset;
  }
  m.static_bytes += size;
  const size_t all = m.static_bytes + m.variables[0].size;
  if (m.static_bytes > kStaticLimit) {
    fault("%zu bytes of static shared memory, %zu are allowed", m.static_bytes, kStaticLimit);
  }
  if (all > m.shared_limit) fault("%zu bytes of shared memory, %zu are allowed", all, m.shared_limit);
  return shared + add_variable(key, size).offset;
}

// The end of a block. Its guards must be whole; then its memory is gone, also for the others of its cluster.
inline void close_block(Block& block) {
  for (const Variable& variable : machine.variables) {
    const unsigned char* begin = block.shared + variable.offset;
    const unsigned char* end = begin + variable.size;
    const unsigned char* damaged = nullptr;
    for (const unsigned char* p = begin - kGuard; p < begin; ++p) damaged = *p == kGuardByte ? damaged : p;
    for (const unsigned char* p = end; p < end + kGuard; ++p) damaged = *p == kGuardByte ? damaged : p;
    if (damaged) {
      launch_fault(", block (%u, %u, %u): byte %td of %s shared memory of %zu bytes was written to", block.index.x,
                   block.index.y, block.index.z, damaged - begin, variable.key ? "static" : "dynamic", variable.size);
    }
    if (machine.cluster > 1) poison(block, variable);
  }
}

inline void finish_thread() {
  Warp& warp = *machine.warp;
  warp.done |= 1u << machine.lane;
  if (--warp.block->live == 0) close_block(*warp.block);
}

// --- synchronisation -------------------------------------------------------------------------------------------------

inline int block_barrier(Wait kind, int value) {
  Machine& m = machine;
  Block& block = *m.warp->block;
  const unsigned generation = block.generation;
  int& any = block.any[generation & 1];
  if (block.arrived == 0) {
    block.barrier = kind;
    any = 0;
  } else if (block.barrier != kind) {
    fault("is at %s, while others of its block wait at %s", name_of(kind), name_of(block.barrier));
  }
  any |= value != 0;
  if (++block.arrived == m.block_threads) {
    block.arrived = 0;
    ++block.generation;
    for (unsigned w = 0; w < m.block_threads / kWarp; ++w) m.release(block.warps[w], ~0u);
  }
  suspend(kind);  // the last one too: it must not always be the first to go on
  return any;
}

// One operation of the lanes named in a mask, which completes when the last of them comes. The results are made then
// and there, since a lane may be at its next operation before another has seen this one's.
inline uint64_t warp_operation(Wait kind, unsigned mask, uint64_t value, unsigned source) {
  Machine& m = machine;
  Warp& warp = *m.warp;
  Thread& self = m.thread();
  if (!(mask >> m.lane & 1)) fault("%s with mask %#x, which does not name lane %u itself", name_of(kind), mask, m.lane);
  if (!(mask >> source & 1)) fault("%s from lane %u, which mask %#x does not name", name_of(kind), source, mask);
  self.wait = kind;
  self.source = static_cast<uint8_t>(source);
  self.mask = mask;
  self.value = value;
  warp.waiting |= 1u << m.lane;
  bool complete = (warp.waiting & mask) == mask;
  uint64_t ballot = 0;
  for (unsigned lane = 0; complete && lane < kWarp; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const Thread& other = warp.threads[lane];
    complete = other.wait == kind && other.mask == mask;
    ballot |= static_cast<uint64_t>(other.value != 0) << lane;
  }
  if (complete) {
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      Thread& other = warp.threads[lane];
      if (mask >> lane & 1) other.result = kind == Wait::kVote ? ballot : warp.threads[other.source].value;
    }
    warp.waiting &= ~mask;
    m.release(warp, mask);
  }
  suspend(kind);
  return self.result;
}

template <class T>
T shuffle(unsigned mask, T value, unsigned source) {
  static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8), "no shuffle takes this type");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_operation(Wait::kShuffle, mask, bits, source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// Nobody can run and somebody waits: what for, and who does not come.
[[noreturn]] inline void report_deadlock() {
  Machine& m = machine;
  unsigned counts[7] = {}, ended = 0;
  const Thread* first = nullptr;
  for (Block& block : m.blocks) {
    for (unsigned i = 0; i < m.block_threads; ++i) {
      Warp& warp = block.warps[i / kWarp];
      Thread& thread = warp.threads[i % kWarp];
      if (warp.done >> (i % kWarp) & 1) {
        ++ended;
      } else {
        ++counts[static_cast<int>(thread.wait)];
        // Who waits for lanes of its warp says more than the barrier all others wait at.
        if (!first || (first->wait < Wait::kSyncwarp && thread.wait >= Wait::kSyncwarp)) {
          first = &thread;
          m.warp = &warp;
          m.lane = i % kWarp;
        }
      }
    }
  }
  blockIdx = m.warp->block->index;
  threadIdx = first->index;
  std::string text = "waits for ever at " + std::string(name_of(first->wait));
  if (first->wait >= Wait::kSyncwarp) {
    char lanes[120];
    uint32_t there = 0;
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      const Thread& other = m.warp->threads[lane];
      there |= static_cast<uint32_t>(other.wait == first->wait && other.mask == first->mask) << lane;
    }
    there &= m.warp->waiting;
    std::snprintf(lanes, sizeof(lanes), " with mask %#x: lanes %#x are not there, of which %#x have ended", first->mask,
                  first->mask & ~there, first->mask & ~there & m.warp->done);
    text += lanes;
  }
  text += ". Not all reach it: " + std::to_string(ended) + " threads have ended";
  for (int kind = 1; kind < 7; ++kind) {
    if (counts[kind]) text += ", " + std::to_string(counts[kind]) + " wait at " + name_of(static_cast<Wait>(kind));
  }
  fault("%s", text.c_str());
}

// --- launches --------------------------------------------------------------------------------------------------------

// Everything that an earlier launch may have left behind, also one that ended in an exception.
inline void reset() {
  Machine& m = machine;
  m.name = nullptr;
  m.turn = 0;
  m.picked = false;
  m.cluster_arrived = 0;
  m.runnable.clear();
  m.ranges = nullptr;
  m.hit[0] = m.hit[1] = nullptr;
  m.error = nullptr;
  if (m.idle.size() != m.fibers.size()) {  // threads were abandoned; they own nothing, as on the device
    m.idle.clear();
    for (auto& fiber : m.fibers) {
      rewind(*fiber);
      m.idle.push_back(fiber.get());
    }
  }
}

inline void run_cluster(uint64_t index) {
  Machine& m = machine;
  for (unsigned rank = 0; rank < m.cluster; ++rank) {
    const uint64_t linear = index * m.cluster + rank;
    Block& block = m.blocks[rank];
    block.index = {static_cast<unsigned>(linear % gridDim.x), static_cast<unsigned>(linear / gridDim.x % gridDim.y),
                   static_cast<unsigned>(linear / gridDim.x / gridDim.y)};
    block.live = m.block_threads;
    block.arrived = block.generation = 0;
    for (const Variable& variable : m.variables) poison(block, variable);
    for (unsigned w = 0; w < m.block_threads / kWarp; ++w) {
      Warp& warp = block.warps[w];
      warp.ready = warp.waiting = warp.done = 0;
      warp.fresh = ~0u;
      warp.listed = false;
      m.release(warp, ~0u);
    }
  }
  for (m.picked = m.pick(); m.picked;) {
    m.fiber = m.warp->fresh >> m.lane & 1 ? idle_fiber() : m.thread().fiber;
    m.picked = false;
    switch_context(m.host, m.fiber->context);
    if (m.error) std::rethrow_exception(m.error);
    if (!m.picked) m.picked = m.pick();
  }
  for (const Block& block : m.blocks) {
    if (block.live != 0) report_deadlock();
  }
}

inline void check_launch(dim3 grid, dim3 block, size_t dynamic_shared, unsigned cluster) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  // Launches opt in to more than the default when the dynamic part alone exceeds it (cuda/device.h).
  machine.shared_limit = dynamic_shared > kStaticLimit ? kSharedLimit : kStaticLimit;
  if (threads == 0 || threads > kMaxThreads || block.z > 64)
    launch_fault(": a block of %u x %u x %u threads", block.x, block.y, block.z);
  if (threads % kWarp != 0) launch_fault(": a block of %u threads, which is no multiple of 32", unsigned(threads));
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    launch_fault(": a grid of %u x %u x %u blocks", grid.x, grid.y, grid.z);
  if (cluster == 0 || (cluster > 8 && cluster != 16)) launch_fault(": a cluster of %u blocks", cluster);
  if (grid.x % cluster != 0) launch_fault(": %u blocks, which clusters of %u do not divide", grid.x, cluster);
  if (dynamic_shared > kSharedLimit) launch_fault(": %zu bytes of dynamic shared memory", dynamic_shared);
}

inline void seed_now() {
  if (machine.seeded) return;
  const char* text = std::getenv("FOCAL_SIMT_SEED");
  machine.seed = text ? std::strtoull(text, nullptr, 0) : 20171007;
  machine.seeded = true;
}

inline void run(dim3 grid, dim3 block, size_t dynamic_shared, unsigned cluster) {
  Machine& m = machine;
  m.cluster = cluster;
  m.block_threads = block.x * block.y * block.z;
  gridDim = grid;
  blockDim = block;
  m.blocks.assign(cluster, {});
  m.warps.assign(size_t{cluster} * m.block_threads / kWarp, {});
  m.threads.assign(size_t{cluster} * m.block_threads, {});
  for (size_t t = 0; t < m.threads.size(); ++t) {
    const unsigned i = static_cast<unsigned>(t % m.block_threads);
    m.threads[t].index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
  }
  for (size_t w = 0; w < m.warps.size(); ++w) {
    m.warps[w].threads = &m.threads[w * kWarp];
    m.warps[w].block = &m.blocks[w * kWarp / m.block_threads];
  }
  while (m.arenas.size() < cluster) m.arenas.push_back(std::make_unique<Arena>());
  for (unsigned rank = 0; rank < cluster; ++rank) {
    m.blocks[rank].rank = rank;
    m.blocks[rank].warps = &m.warps[rank * m.block_threads / kWarp];
    m.blocks[rank].shared = m.arenas[rank]->bytes;
  }
  m.variables.clear();
  m.static_bytes = m.arena_used = 0;
  add_variable(nullptr, dynamic_shared);

  // The same seed gives the same order to every launch, whatever ran before: a failing test fails alone, too.
  seed_now();
  m.random_state = m.seed;
  for (auto& order : m.orders) {
    std::iota(order, order + kWarp, uint8_t{0});
    for (unsigned i = kWarp; i > 1; --i) std::swap(order[i - 1], order[m.random_below(i)]);
  }
  // Blocks in an order that needs no list: i -> a i + b, with a prime to their number.
  const uint64_t clusters = uint64_t{grid.x} * grid.y * grid.z / cluster;
  uint64_t step = m.random() % clusters;
  while (std::gcd(step, clusters) != 1) step = (step + 1) % clusters;
  uint64_t at = m.random() % clusters;
  for (uint64_t i = 0; i < clusters; ++i) {
    run_cluster(at);
    at = at >= clusters - step ? at - (clusters - step) : at + step;
  }
}

[[noreturn]] __attribute__((cold)) inline void bad_access(uintptr_t address, size_t bytes, bool write) {
  const char* what = write ? "a write of" : "a read of";
  if (!machine.ranges) launch_fault(": %s %zu bytes outside of a launch", what, bytes);
  if (bytes == 0 || bytes > 16 || (bytes & (bytes - 1)) != 0) fault("%s %zu bytes", what, bytes);
  if (address % bytes != 0) fault("%s %zu bytes at %#zx, which is misaligned", what, bytes, size_t{address});
  // Where it would belong: the range whose end is nearest, of those that allow it if any does.
  const Range* nearest = nullptr;
  intptr_t distance = 0;
  for (const Range& range : *machine.ranges) {
    const intptr_t before = static_cast<intptr_t>(range.begin - address);
    const intptr_t after = static_cast<intptr_t>(address + bytes - range.begin - range.size);
    if (before <= 0 && after <= 0) fault("%s %zu bytes at %#zx, which may only be read", what, bytes, size_t{address});
    const intptr_t outside = before > after ? before : after;
    if (!nearest || outside < distance) nearest = &range, distance = outside;
  }
  if (!nearest) fault("%s %zu bytes at %#zx, but no memory is registered", what, bytes, size_t{address});
  fault("%s %zu bytes at offset %td of %zu bytes of global memory", what, bytes,
        static_cast<ptrdiff_t>(address - nearest->begin), size_t{nearest->size});
}

[[gnu::noinline]] inline void check_slow(uintptr_t address, size_t bytes, bool write) {
  Machine& m = machine;
  if (m.ranges && bytes != 0 && bytes <= 16 && (bytes & (bytes - 1)) == 0 && address % bytes == 0) {
    for (const Range& range : *m.ranges) {
      if (address - range.begin < range.size && range.size - (address - range.begin) >= bytes &&
          (!write || range.writable)) {
        m.hit[write] = &range;
        return;
      }
    }
  }
  bad_access(address, bytes, write);
}

}  // namespace detail

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
  m.statistics.names.insert(name);
  m.statistics.kernels.insert(reinterpret_cast<const void*>(kernel));
  detail::run(grid, block, dynamic_shared, cluster);
}

// Of the order that blocks, warps and lanes run in. Without it FOCAL_SIMT_SEED decides.
inline void set_seed(uint64_t seed) {
  const std::lock_guard<std::mutex> lock(detail::machine.mutex);
  detail::machine.seed = seed;
  detail::machine.seeded = true;
}

inline const Statistics& statistics() { return detail::machine.statistics; }

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

inline void __threadfence() {}
[[noreturn]] inline void __trap() { simt::detail::fault("__trap()"); }

// The emulation grants what cuda/device.h asks for: see check_launch.
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}
