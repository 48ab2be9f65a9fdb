// The emulation itself: toy kernels give what CUDA would give, and every fault planted in one is caught. A tool that
// finds nothing would look exactly like kernels without faults.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.h"
#include "simt.h"

namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kSeeds = 20;

#define SHARED(Type, name)          \
  static const char name##_key = 0; \
  auto& name = simt::shared<Type>(&name##_key)

template <class T>
T read(const T* address) {
  simt::check(address, sizeof(T), false);
  return *address;
}

template <class T>
void write(T* address, T value) {
  simt::check(address, sizeof(T), true);
  *address = value;
}

// Global memory of a test, registered as long as it lives.
template <class T>
struct Buffer {
  explicit Buffer(size_t n, T value = T{}, bool writable = true)
      : data(n, value), allowed(data.data(), n * sizeof(T), writable) {}
  T* get() { return data.data(); }
  T& operator[](size_t i) { return data[i]; }

  std::vector<T> data;
  simt::Memory allowed;
};

bool contains(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

__global__ void number(int* out) { write(out + blockIdx.x * blockDim.x + threadIdx.x, 1); }

// What a launch that must fail says, "" if it does not. Whatever went wrong, the next launch works.
std::string fault_of(const std::function<void()>& body) {
  std::string text;
  try {
    body();
  } catch (const simt::Fault& fault) {
    text = fault.what();
  }
  Buffer<int> out(64);
  simt::launch("number", number, 1, 64, 0, 1, out.get());
  CHECK(std::accumulate(out.data.begin(), out.data.end(), 0) == 64);
  return text;
}

// --- threads and blocks ----------------------------------------------------------------------------------------------

__global__ void __launch_bounds__(96) coordinates(int* out) {
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  int* mine = out + block * blockDim.x * blockDim.y * blockDim.z + thread;
  write(mine, read(mine) + 1);
}

__global__ void order_of_blocks(int* out, int* next) {
  if (threadIdx.x == 0) write(out + (*next)++, static_cast<int>(blockIdx.x));
}

void test_coordinates() {
  const dim3 grid(5, 3, 2), block(8, 4, 3);
  Buffer<int> out(5 * 3 * 2 * 96);
  simt::launch("coordinates", coordinates, grid, block, 0, 1, out.get());
  CHECK(std::all_of(out.data.begin(), out.data.end(), [](int n) { return n == 1; }));
}

void test_seeds() {
  std::vector<std::vector<int>> orders;
  for (uint64_t seed : {1, 2, 1}) {
    simt::set_seed(seed);
    Buffer<int> out(100);
    int next = 0;
    simt::launch("order_of_blocks", order_of_blocks, 100, 32, 0, 1, out.get(), &next);
    orders.push_back(out.data);
    std::sort(out.data.begin(), out.data.end());
    for (int i = 0; i < 100; ++i) CHECK(out[i] == i);
  }
  CHECK(orders[0] == orders[2] && orders[0] != orders[1]);
  CHECK(!std::is_sorted(orders[0].begin(), orders[0].end()));
}

// --- barriers --------------------------------------------------------------------------------------------------------

enum class Mistake { kNone, kNoBarrier, kWrongLane, kNoSyncwarp };

// Two levels: lanes, then warps.
template <Mistake mistake>
__global__ void block_sum(const float* x, float* out) {
  SHARED(float[8], parts);
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float sum = read(x + blockIdx.x * 256 + threadIdx.x);
  for (int distance = 16; distance > 0; distance /= 2)
    sum += __shfl_down_sync(kAll, sum, mistake == Mistake::kWrongLane && distance == 4 ? 5 : distance);
  if (lane == 0) parts[warp] = sum;
  if (mistake != Mistake::kNoBarrier) __syncthreads();
  if (threadIdx.x == 0) {
    float total = 0;
    for (float part : parts) total += part;
    write(out + blockIdx.x, total);
  }
}

template <Mistake mistake>
bool block_sums_are_right() {
  constexpr int kBlocks = 8;
  Buffer<float> x(kBlocks * 256, 0, false), out(kBlocks, -1);
  for (size_t i = 0; i < x.data.size(); ++i) x[i] = static_cast<float>(i % 97);
  simt::launch("block_sum", block_sum<mistake>, kBlocks, 256, 0, 1, x.get(), out.get());
  bool right = true;
  for (int b = 0; b < kBlocks; ++b) right = right && out[b] == std::accumulate(&x[b * 256], &x[b * 256] + 256, 0.0f);
  return right;
}

// Two rounds in the same memory: the second barrier keeps the second round from running into the first.
template <bool second>
__global__ void two_rounds(int* out) {
  SHARED(int[64], box);
  for (int round = 0; round < 2; ++round) {
    box[threadIdx.x] = static_cast<int>(threadIdx.x) + 100 * round;
    __syncthreads();
    write(out + round * 64 + threadIdx.x, box[63 - threadIdx.x]);
    if (second) __syncthreads();
  }
}

template <bool second>
bool two_rounds_are_right() {
  Buffer<int> out(128);
  simt::launch("two_rounds", two_rounds<second>, 1, 64, 0, 1, out.get());
  bool right = true;
  for (int i = 0; i < 128; ++i) right = right && out[i] == 63 - i % 64 + 100 * (i / 64);
  return right;
}

__global__ void any_of(const int* x, int* out) {
  for (int round = 0; round < 3; ++round) {
    const int any = __syncthreads_or(read(x + round * 64 + threadIdx.x));
    write(out + round * 64 + threadIdx.x, any != 0 ? 1 : 0);
  }
}

void test_barriers() {
  int wrong_without_barrier = 0, wrong_rounds = 0;
  for (int seed = 0; seed < kSeeds; ++seed) {
    simt::set_seed(seed);
    CHECK(block_sums_are_right<Mistake::kNone>());
    CHECK(!block_sums_are_right<Mistake::kWrongLane>());
    CHECK(two_rounds_are_right<true>());
    wrong_without_barrier += !block_sums_are_right<Mistake::kNoBarrier>();
    wrong_rounds += !two_rounds_are_right<false>();
  }
  CHECK(wrong_without_barrier == kSeeds);
  CHECK(wrong_rounds > kSeeds / 2);

  Buffer<int> x(3 * 64), out(3 * 64, -1);
  x[64 + 17] = 5;
  simt::launch("any_of", any_of, 1, 64, 0, 1, x.get(), out.get());
  for (int i = 0; i < 3 * 64; ++i) CHECK(out[i] == (i / 64 == 1));
}

__global__ void some_leave() {
  if (threadIdx.x >= 40) return;
  __syncthreads();
}
__global__ void one_stays_away() {
  if (threadIdx.x != 7) __syncthreads();
  if (threadIdx.x / 32 == 0) __syncwarp();
}
__global__ void two_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads_or(1);
  }
}
__global__ void alone_in_the_cluster() {
  if (blockIdx.x == 0) simt::cluster_barrier();
}

void test_divergent_barriers() {
  std::string text = fault_of([] { simt::launch("some_leave", some_leave, 3, 64, 0, 1); });
  CHECK(contains(text, "kernel some_leave, block (") && contains(text, "), thread ("));
  CHECK(contains(text, "__syncthreads") && contains(text, "24 threads have ended, 40 wait"));
  text = fault_of([] { simt::launch("one_stays_away", one_stays_away, 1, 64, 0, 1); });
  CHECK(contains(text, "thread (7, 0, 0)") && contains(text, "__syncwarp") && contains(text, "63 wait"));
  CHECK(contains(fault_of([] { simt::launch("two_barriers", two_barriers, 1, 64, 0, 1); }), "__syncthreads_or"));
  text = fault_of([] { simt::launch("alone", alone_in_the_cluster, 2, 32, 0, 2); });
  CHECK(contains(text, "the cluster's barrier") && contains(text, "32 threads have ended"));
}

// --- warps -----------------------------------------------------------------------------------------------------------

template <class T>
__global__ void shuffles(T* out) {
  const int lane = static_cast<int>(threadIdx.x);
  const T mine = static_cast<T>(lane) * 3;
  write(out + lane, __shfl_sync(kAll, mine, 5));
  write(out + 32 + lane, __shfl_xor_sync(kAll, mine, 9));
  write(out + 64 + lane, __shfl_down_sync(kAll, mine, 3));
  write(out + 96 + lane, __shfl_sync(kAll, mine, 10, 8));
  write(out + 128 + lane, __shfl_down_sync(kAll, mine, 3, 8));
}

template <class T>
void check_shuffles() {
  Buffer<T> out(160);
  simt::launch("shuffles", shuffles<T>, 1, 32, 0, 1, out.get());
  for (int lane = 0; lane < 32; ++lane) {
    CHECK(out[lane] == T(15));
    CHECK(out[32 + lane] == T((lane ^ 9) * 3));
    CHECK(out[64 + lane] == T((lane + 3 < 32 ? lane + 3 : lane) * 3));
    CHECK(out[96 + lane] == T((lane / 8 * 8 + 2) * 3));
    CHECK(out[128 + lane] == T((lane % 8 + 3 < 8 ? lane + 3 : lane) * 3));
  }
}

// Groups of lanes take different numbers of steps before all meet again.
__global__ void groups(int* out) {
  const unsigned lane = threadIdx.x, group = lane / 8, mask = 0xffu << (8 * group);
  int value = static_cast<int>(lane);
  for (unsigned step = 0; step <= group; ++step) value = __shfl_xor_sync(mask, value, 1) + 1;
  const unsigned even = __ballot_sync(kAll, value % 2 == 0);
  write(out + lane, value);
  write(out + 32 + lane, static_cast<int>(even));
  write(out + 64 + lane, __any_sync(mask, value == 33));
}

// Lanes hand their value to the next through shared memory.
template <Mistake mistake>
__global__ void through_shared(int* out) {
  SHARED(int[32], box);
  box[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (mistake != Mistake::kNoSyncwarp) __syncwarp();
  write(out + threadIdx.x, box[(threadIdx.x + 1) % 32]);
}

template <Mistake mistake>
bool through_shared_is_right() {
  Buffer<int> out(32);
  simt::launch("through_shared", through_shared<mistake>, 1, 32, 0, 1, out.get());
  bool right = true;
  for (int lane = 0; lane < 32; ++lane) right = right && out[lane] == (lane + 1) % 32;
  return right;
}

void test_warps() {
  check_shuffles<float>();
  check_shuffles<double>();
  check_shuffles<int>();
  check_shuffles<unsigned>();
  check_shuffles<long long>();
  check_shuffles<unsigned long long>();

  Buffer<int> out(96);
  for (int seed = 0; seed < kSeeds; ++seed) {
    simt::set_seed(seed);
    simt::launch("groups", groups, 1, 32, 0, 1, out.get());
    unsigned even = 0;
    for (int lane = 0; lane < 32; ++lane) {
      const int steps = lane / 8 + 1, value = (steps % 2 ? lane ^ 1 : lane) + steps;
      CHECK(out[lane] == value);
      even |= static_cast<unsigned>(value % 2 == 0) << lane;
      CHECK(out[64 + lane] == (lane >= 24));
    }
    for (int lane = 0; lane < 32; ++lane) CHECK(static_cast<unsigned>(out[32 + lane]) == even);
    CHECK(through_shared_is_right<Mistake::kNone>());
    CHECK(!through_shared_is_right<Mistake::kNoSyncwarp>());
  }
}

__global__ void shuffle_of_some() {
  if (threadIdx.x < 30) __shfl_xor_sync(kAll, 1.0f, 1);
}
__global__ void shuffle_from_outside() {
  if (threadIdx.x < 16) __shfl_sync(0xffffu, 1.0f, 16);
}
__global__ void mask_without_self() { __syncwarp(0xffffu); }
__global__ void vote_or_shuffle() { threadIdx.x % 2 ? __any_sync(kAll, 1) : __shfl_sync(kAll, 1, 0); }

void test_lanes_that_do_not_come() {
  const std::string text = fault_of([] { simt::launch("some", shuffle_of_some, 1, 64, 0, 1); });
  CHECK(contains(text, "a shuffle with mask 0xffffffff: lanes 0xc0000000 are not there, of which 0xc0000000"));
  CHECK(contains(fault_of([] { simt::launch("outside", shuffle_from_outside, 1, 32, 0, 1); }), "from lane 16"));
  CHECK(contains(fault_of([] { simt::launch("self", mask_without_self, 1, 32, 0, 1); }), "mask 0xffff,"));
  CHECK(contains(fault_of([] { simt::launch("both", vote_or_shuffle, 1, 32, 0, 1); }), "are not there"));
}

// --- shared memory ---------------------------------------------------------------------------------------------------

template <int where>
__global__ void write_beside() {
  SHARED(char[33], first);
  SHARED(int[3], second);
  unsigned char* dynamic = simt::dynamic_shared();
  first[0] = 1, second[0] = 1;
  if (threadIdx.x != 5) return;
  char* one = first;
  int* other = second;
  if (where == 0) one[33] = 0;
  if (where == 1) other[-1] = 0;
  if (where == 2) dynamic[100] = 0;
  if (where == 3) dynamic[-1] = 0;
}

__global__ void read_unwritten(float* out) {
  SHARED(float[32], box);
  SHARED(double, number);
  const float* dynamic = reinterpret_cast<const float*>(simt::dynamic_shared());
  write(out + blockIdx.x * 3, box[3]);
  write(out + blockIdx.x * 3 + 1, static_cast<float>(number));
  write(out + blockIdx.x * 3 + 2, dynamic[7]);
  __syncthreads();
  box[threadIdx.x] = 0;  // the next block must not find it
  if (threadIdx.x == 0) number = 0;
  simt::dynamic_shared()[7 * 4 + threadIdx.x % 4] = 0;
}

__global__ void use_dynamic(int* out, unsigned count) {
  int* box = reinterpret_cast<int*>(simt::dynamic_shared());
  CHECK(reinterpret_cast<uintptr_t>(box) % 128 == 0);
  for (unsigned i = threadIdx.x; i < count; i += blockDim.x) box[i] = static_cast<int>(i);
  __syncthreads();
  if (threadIdx.x == 0) write(out, std::accumulate(box, box + count, 0));
}

template <int bytes>
__global__ void use_static() {
  SHARED(char[bytes], box);
  box[threadIdx.x] = 0;
}

void test_shared_memory() {
  CHECK(fault_of([] { simt::launch("beside", write_beside<-1>, 2, 32, 100, 1); }).empty());
  CHECK(contains(fault_of([] { simt::launch("beside", write_beside<0>, 2, 32, 100, 1); }), "static"));
  CHECK(contains(fault_of([] { simt::launch("beside", write_beside<1>, 2, 32, 100, 1); }), "byte -1 of static"));
  CHECK(contains(fault_of([] { simt::launch("beside", write_beside<2>, 2, 32, 100, 1); }), "byte 100 of dynamic"));
  CHECK(contains(fault_of([] { simt::launch("beside", write_beside<3>, 2, 32, 100, 1); }), "byte -1 of dynamic"));

  Buffer<float> poisoned(9);
  simt::launch("read_unwritten", read_unwritten, 3, 32, 64, 1, poisoned.get());
  for (float value : poisoned.data) CHECK(std::isnan(value));

  Buffer<int> out(1);
  constexpr unsigned kMost = (227 << 10) / 4;
  simt::launch("use_dynamic", use_dynamic, 2, 128, 4 * kMost, 1, out.get(), 50000u);
  CHECK(out[0] == 1249975000);
  CHECK(!fault_of([&] { simt::launch("much", use_dynamic, 1, 32, 4 * kMost + 4, 1, out.get(), 1u); }).empty());
  CHECK(fault_of([] { simt::launch("static", use_static<48 << 10>, 1, 32, 0, 1); }).empty());
  CHECK(contains(fault_of([] { simt::launch("static", use_static<(48 << 10) + 1>, 1, 32, 0, 1); }), "static"));
  CHECK(fault_of([] { simt::launch("both", use_static<1024>, 1, 32, 226 << 10, 1); }).empty());
  CHECK(contains(fault_of([] { simt::launch("both", use_static<1025>, 1, 32, 226 << 10, 1); }), "232448"));
  // Without opting in to more, the two together have 48 KB.
  CHECK(contains(fault_of([] { simt::launch("both", use_static<1025>, 1, 32, 47 << 10, 1); }), "49152"));
}

// --- clusters --------------------------------------------------------------------------------------------------------

// Every block of a cluster sums what all have.
template <bool first, bool last>
__global__ void cluster_sum(int* out) {
  if (simt::cluster_rank() % 2) {  // blocks that meet the variables in another order
    SHARED(double, other);
    other = 0;
  }
  SHARED(int[32], box);
  box[threadIdx.x] = static_cast<int>(blockIdx.x * 1000 + threadIdx.x);
  if (first) simt::cluster_barrier();
  int sum = 0;
  for (unsigned rank = 0; rank < simt::cluster_size(); ++rank) sum += simt::cluster_map(box, rank)[threadIdx.x];
  write(out + blockIdx.x * 32 + threadIdx.x, sum);
  if (last) simt::cluster_barrier();  // nobody may leave while others read
}

// Whether every cluster found its sums; a fault is no.
template <bool first, bool last>
bool cluster_sums_are_right(unsigned size, unsigned blocks) {
  Buffer<int> out(blocks * 32);
  try {
    simt::launch("cluster_sum", cluster_sum<first, last>, blocks, 32, 0, size, out.get());
  } catch (const simt::Fault&) {
    return false;
  }
  bool right = true;
  for (unsigned i = 0; i < blocks * 32; ++i) {
    const unsigned block = i / 32 / size * size;
    int sum = 0;
    for (unsigned rank = 0; rank < size; ++rank) sum += static_cast<int>((block + rank) * 1000 + i % 32);
    right = right && out[i] == sum;
  }
  return right;
}

__global__ void no_such_block() {
  SHARED(int, box);
  simt::cluster_map(&box, 2);
}

__global__ void all_wait(int* out) {
  SHARED(int[1024], box);
  box[threadIdx.x] = static_cast<int>(threadIdx.x);
  simt::cluster_barrier();
  const unsigned next = (simt::cluster_rank() + 1) % simt::cluster_size();
  write(out + blockIdx.x * 1024 + threadIdx.x, simt::cluster_map(box, next)[1023 - threadIdx.x]);
  simt::cluster_barrier();
}

void test_clusters() {
  int wrong_at_first = 0, wrong_at_last = 0;
  for (int seed = 0; seed < kSeeds; ++seed) {
    simt::set_seed(seed);
    for (unsigned size : {1, 2, 3, 8, 16}) CHECK((cluster_sums_are_right<true, true>(size, 3 * size)));
    wrong_at_first += !cluster_sums_are_right<false, true>(4, 8);
    wrong_at_last += !cluster_sums_are_right<true, false>(4, 8);
  }
  CHECK(wrong_at_first == kSeeds && wrong_at_last == kSeeds);
  CHECK(contains(fault_of([] { simt::launch("no_such_block", no_such_block, 2, 32, 0, 2); }), "block 2"));

  Buffer<int> out(16 * 1024);
  simt::launch("all_wait", all_wait, 16, 1024, 0, 16, out.get());
  for (int i = 0; i < 16 * 1024; ++i) CHECK(out[i] == 1023 - i % 1024);
}

__global__ void late_write() {
  SHARED(int, box);
  box = 0;
  int* other = simt::cluster_map(&box, 1 - simt::cluster_rank());
  simt::cluster_barrier();
  // By now one of the two blocks may be gone.
  if (threadIdx.x == 0) *other = 1;
}

void test_writes_to_blocks_that_have_ended() {
  int caught = 0;
  for (int seed = 0; seed < kSeeds; ++seed) {
    simt::set_seed(seed);
    caught += contains(fault_of([] { simt::launch("late_write", late_write, 2, 32, 0, 2); }), "after its end");
  }
  CHECK(caught > 0);
}

// --- global memory ---------------------------------------------------------------------------------------------------

template <class T>
__global__ void access(T* address, bool writes) {
  if (threadIdx.x != 3) return;
  if (writes) {
    write(address, T{});
  } else {
    read(address);
  }
}

struct alignas(16) Sixteen {
  float item[4];
};

template <class T>
std::string access_fault(const void* address, bool writes) {
  T* typed = reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(address));
  return fault_of([&] { simt::launch("access", access<T>, 1, 32, 0, 1, typed, writes); });
}

void test_global_memory() {
  alignas(16) static unsigned char memory[4 * 64] = {};
  unsigned char* middle = memory + 64;
  const simt::Memory both(middle, 64, true), behind(middle + 64, 24, false);
  for (bool writes : {false, true}) {
    CHECK(access_fault<char>(middle, writes).empty() && access_fault<char>(middle + 63, writes).empty());
    CHECK(access_fault<Sixteen>(middle + 48, writes).empty());
    CHECK(contains(access_fault<char>(middle - 1, writes), "1 bytes at offset -1 of 64"));
    CHECK(contains(access_fault<Sixteen>(middle + 8, writes), "misaligned"));
    CHECK(contains(access_fault<double>(middle + 4, writes), "misaligned"));
    CHECK(!access_fault<Sixteen>(middle + 80, writes).empty());
  }
  CHECK(access_fault<double>(middle + 80, false).empty());
  CHECK(contains(access_fault<float>(middle + 88, false), "a read of 4 bytes at offset 24 of 24"));
  CHECK(contains(access_fault<float>(middle + 64, true), "may only be read"));
  {
    const simt::Memory also(middle + 64, 24, true), moved = simt::Memory(middle + 96, 4, true);
    CHECK(access_fault<float>(middle + 64, true).empty() && access_fault<float>(middle + 96, true).empty());
  }
  CHECK(!access_fault<float>(middle + 64, true).empty() && !access_fault<float>(middle + 96, true).empty());
  CHECK(contains(access_fault<char>(middle - 1, true), "kernel access, block (0, 0, 0), thread (3, 0, 0): a write"));
  CHECK(contains(fault_of([] { read(memory); }), "outside of a launch"));
}

// --- the end of a launch ---------------------------------------------------------------------------------------------

__global__ void trap_in_the_middle() {
  __syncthreads();
  if (blockIdx.x == 1 && threadIdx.x == 33) __trap();
  __syncthreads();
}

__global__ void throw_in_the_middle() {
  __syncthreads();
  if (threadIdx.x == 33) throw std::out_of_range("label 7");
  __syncthreads();
}

void test_exceptions() {
  const std::string text = fault_of([] { simt::launch("trap", trap_in_the_middle, 3, 64, 0, 1); });
  CHECK(contains(text, "kernel trap, block (1, 0, 0), thread (33, 0, 0): __trap()"));
  for (int i = 0; i < 3; ++i) {
    bool caught = false;
    try {
      simt::launch("throw", throw_in_the_middle, 3, 64, 0, 1);
    } catch (const std::out_of_range& error) {
      caught = std::string(error.what()) == "label 7";
    }
    CHECK(caught && block_sums_are_right<Mistake::kNone>());
  }
}

__global__ void nothing() {}

void test_launches_that_cuda_refuses() {
  const auto refused = [](dim3 grid, dim3 block, unsigned cluster) {
    return contains(fault_of([&] { simt::launch("nothing", nothing, grid, block, 0, cluster); }), "kernel nothing: ");
  };
  CHECK(!refused(1, 32, 1) && !refused(1, 1024, 1) && !refused(16, 32, 16) && !refused(dim3(1, 65535), 32, 1));
  CHECK(refused(1, 0, 1) && refused(1, 1056, 1) && refused(1, dim3(33, 32), 1) && refused(1, 48, 1));
  CHECK(refused(0, 32, 1) && refused(dim3(1, 0), 32, 1) && refused(dim3(1, 65536), 32, 1));
  CHECK(refused(0x80000000u, 32, 1) && refused(dim3(1, 1, 65536), 32, 1));
  CHECK(refused(3, 32, 2) && refused(18, 32, 9) && refused(32, 32, 32) && refused(1, 32, 0));
}

void test_min_and_max() {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(min(1, 2) == 1 && max(1, 2) == 2 && min(-1ll, 2ll) == -1 && max(1u, ~0u) == ~0u);
  CHECK(min(nan, 1.0f) == 1 && min(1.0f, nan) == 1 && max(nan, 1.0f) == 1 && max(1.0f, nan) == 1);
  CHECK(std::isnan(max(nan, nan)) && __ffs(8) == 4 && __popc(0xf1) == 5);
}

void test_statistics() {
  const uint64_t before = simt::statistics().launches;
  const size_t launched = simt::statistics().launched.size();
  for (int i = 0; i < 2; ++i) simt::launch("counted", use_static<100>, 1, 32, 0, 1);
  simt::launch("counted", use_static<200>, 1, 32, 0, 1);
  CHECK(simt::statistics().launches == before + 3);
  CHECK(simt::statistics().launched.size() == launched + 2);
  CHECK(simt::Known<use_static<100>>::said && simt::Known<use_static<300>>::said && simt::known_kernels().size() == 2);
  const auto name_of = [](auto* kernel) { return simt::known_kernels()[reinterpret_cast<const void*>(kernel)]; };
  CHECK(contains(name_of(use_static<100>), "use_static<100") && contains(name_of(use_static<300>), "use_static<300"));
}

}  // namespace

int main() {
  test_coordinates();
  test_seeds();
  test_barriers();
  test_divergent_barriers();
  test_warps();
  test_lanes_that_do_not_come();
  test_shared_memory();
  test_clusters();
  test_writes_to_blocks_that_have_ended();
  test_global_memory();
  test_exceptions();
  test_launches_that_cuda_refuses();
  test_min_and_max();
  test_statistics();
  return check::report();
}
