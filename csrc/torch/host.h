// What operators on the CPU share: chunks to threads, and memory before its first touch. Must not know: what is computed.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "torch/problem.h"

namespace focal::glue {

// Static chunks: who computes one never changes what it gives.
template <class Body>
void for_chunks(int64_t chunks, const Body& body) {
  if (chunks == 1) {
    body(0, 1);
  } else if (chunks > 1) {
    torch::stable::parallel_for(0, chunks, 1, body);
  }
}

// The first touch of fresh memory costs more than the arithmetic: 32 MB in 4 KiB pages take 13.3 ms, with huge pages
// 3.8 ms, and 3.0 ms when the ends, where no huge page fits, are mapped in one call each (one thread). Only memory that
// nobody wrote to yet should come here.
inline void expect_first_touch(const Tensor& tensor) {
#if defined(MADV_HUGEPAGE) && defined(MADV_POPULATE_WRITE)
  constexpr uintptr_t kHuge = 2 << 20, kPage = 4096;
  const size_t bytes = static_cast<size_t>(tensor.numel()) * tensor.element_size();
  if (bytes < 2 * kHuge) return;
  const uintptr_t first = reinterpret_cast<uintptr_t>(tensor.data_ptr()) & ~(kPage - 1);
  const uintptr_t last = (reinterpret_cast<uintptr_t>(tensor.data_ptr()) + bytes + kPage - 1) & ~(kPage - 1);
  const uintptr_t begin = (first + kHuge - 1) & ~(kHuge - 1), end = last & ~(kHuge - 1);
  const auto advise = [](uintptr_t from, uintptr_t to, int advice) {
    if (to > from) madvise(reinterpret_cast<void*>(from), to - from, advice);  // hints: failure is harmless
  };
  advise(begin, end, MADV_HUGEPAGE);
  advise(first, begin, MADV_POPULATE_WRITE);
  advise(end, last, MADV_POPULATE_WRITE);
#else
  (void)tensor;
#endif
}

}  // namespace focal::glue
