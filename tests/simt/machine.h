// The machine behind simt.h: who runs next, shared memory, barriers, and the end of a launch that went wrong.
// One launch at a time, on the host thread that asks for it.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "fiber.h"
#include "language.h"

namespace simt {

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Statistics {
  uint64_t launches = 0;
  std::set<const void*> launched;  // kernels, every instance of a template by itself
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
  uint32_t rank;                         // among the warps that may run, where the schedule is unfair
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
  // An unfair one always takes the same warp of those that may run, so that others fall far behind.
  uint64_t random_state = 0;
  bool unfair = false;
  std::vector<Warp*> runnable;
  uint8_t orders[kOrders][kWarp] = {};
  const uint8_t* order = nullptr;
  uint32_t turn = 0;
  Warp* warp = nullptr;
  unsigned lane = 0;

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
      size_t next = random_below(static_cast<unsigned>(runnable.size()));
      for (size_t i = 0; unfair && i < runnable.size(); ++i) next = runnable[i]->rank > runnable[next]->rank ? i : next;
      std::swap(runnable[next], runnable.back());
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

// Of a cluster that has ended: what was written to a block's memory after its end.
inline void check_closed(const Block& block) {
  for (const Variable& variable : machine.variables) {
    const unsigned char* begin = block.shared + variable.offset;
    for (size_t i = 0; i < variable.size; ++i) {
      if (begin[i] == kPoison) continue;
      launch_fault(", block (%u, %u, %u): its shared memory was written to after its end", block.index.x, block.index.y,
                   block.index.z);
    }
  }
}

inline void finish_thread() {
  Warp& warp = *machine.warp;
  warp.done |= 1u << machine.lane;
  if (--warp.block->live == 0) close_block(*warp.block);
}

// --- the schedule ----------------------------------------------------------------------------------------------------

// Leaves a fiber that waits or is free for that of the thread that was picked. May find that it is the same.
inline void run_picked(Context& from);

// A fiber's whole life: one thread after the other. As long as threads that have not begun come up it takes them
// itself, so that a kernel without synchronisation costs little more than its calls.
inline void fiber_main() {
  Machine& m = machine;
  arrived(nullptr);
  for (;;) {
    bool more = false;
    try {
      do {
        m.warp->fresh &= ~(1u << m.lane);
        m.call(m.arguments);
        finish_thread();
        more = m.pick();
      } while (more && (m.warp->fresh >> m.lane & 1));
    } catch (...) {
      m.error = std::current_exception();
      more = false;
    }
    Context& self = m.fiber->context;
    m.idle.push_back(m.fiber);
    more ? run_picked(self) : switch_context(self, m.host);
  }
}

inline void run_picked(Context& from) {
  Machine& m = machine;
  if (m.warp->fresh >> m.lane & 1) {
    if (m.idle.empty()) {
      m.fibers.push_back(make_fiber(m.fibers.size(), fiber_main));
      m.idle.push_back(m.fibers.back().get());
    }
    m.fiber = m.idle.back();
    m.idle.pop_back();
  } else {
    m.fiber = m.thread().fiber;
  }
  if (&m.fiber->context != &from) switch_context(from, m.fiber->context);
}

// The running thread waits until a release.
inline void suspend(Wait wait) {
  Machine& m = machine;
  Thread& thread = m.thread();
  thread.wait = wait;
  thread.fiber = m.fiber;
  Context& self = m.fiber->context;
  m.pick() ? run_picked(self) : switch_context(self, m.host);
  thread.wait = Wait::kNone;
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

}  // namespace detail
}  // namespace simt
