// A launch from its refusal to its end, and what is said of one that went wrong.
#pragma once

#include <cstdlib>
#include <numeric>

#include "machine.h"

namespace simt::detail {

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
  m.cluster_arrived = 0;
  m.runnable.clear();
  m.ranges = nullptr;
  m.hit[0] = m.hit[1] = nullptr;
  m.error = nullptr;
  if (m.idle.size() != m.fibers.size()) {  // threads were abandoned; they own nothing, as on the device
    m.idle.clear();
    for (auto& fiber : m.fibers) {
      rewind(*fiber, fiber_main);
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
      warp.rank = static_cast<uint32_t>(m.random());
      warp.listed = false;
      m.release(warp, ~0u);
    }
  }
  if (m.pick()) run_picked(m.host);
  if (m.error) std::rethrow_exception(m.error);
  for (const Block& block : m.blocks) {
    if (block.live != 0) report_deadlock();
  }
  for (const Block& block : m.blocks) {
    if (m.cluster > 1) check_closed(block);
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
  m.host = host_context();
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
  m.unfair = m.seed % 2 == 0;
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

}  // namespace simt::detail
