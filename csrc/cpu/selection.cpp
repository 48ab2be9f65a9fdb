// Which passes find the k largest of n losses.
//   1. A sample brackets the k-th largest: from 2^14 losses, to within 1 % of all of them but once in 400 cases.
//   2. One pass sums what is above the bracket and collects what is within. Most losses are read this once.
//   3. In what was collected, or in all of them where they are few or the sample misjudged, the digits of the keys are
//      counted, the range becomes one digit's, and 2 and 3 repeat until it is a single key: at most six times.
//   4. Where not all that equal the k-th largest are kept, one pass finds the last of them that is.
// [8e6] fp32, in cache, one thread: 3.5 ms; counting the digits of all of them first: 8.7 ms.
#include "cpu/selection.h"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <utility>
#include <vector>

#include "cpu/prelude.h"

namespace focal::cpu {
namespace {

constexpr int64_t kSampleSize = 1 << 14;
constexpr int64_t kFewest = 1 << 17;  // below, a sample costs more than it saves
constexpr int64_t kFew = 1 << 11;     // sorted rather than counted
constexpr int64_t kAlone = 1 << 18;   // for one thread: what others would save is less than waking them costs

template <class Real>
const SelectKernels<Real>& select_kernels() {
  if constexpr (sizeof(Real) == 4) {
    return kernels().select_float32;
  } else {
    return kernels().select_float64;
  }
}

// A range of keys, both ends included.
template <class Real>
struct Range {
  Key<Real> low = 0, high = Order<Real>::kNaN;
};

template <class Real>
struct Piece {
  const Real* data;
  int64_t count;
};

// Losses in their order, as pieces of at most kChunkElements that threads take; collected ones own their memory.
template <class Real>
struct Pieces {
  std::vector<Piece<Real>> pieces;
  int64_t total = 0;
  std::vector<std::vector<Real>> memory;

  void append(const Real* data, int64_t count) {
    pieces.push_back({data, count});
    total += count;
  }
};

template <class Real>
void for_pieces(const Pieces<Real>& from, const ForChunks& for_chunks,
                const std::function<void(int64_t first, int64_t last)>& body) {
  const auto pieces = static_cast<int64_t>(from.pieces.size());
  from.total <= kAlone ? body(0, pieces) : for_chunks(pieces, body);
}

template <class Real>
Pieces<Real> cut(const Real* losses, int64_t n) {
  Pieces<Real> all;
  for (int64_t begin = 0; begin < n; begin += kChunkElements)
    all.append(losses + begin, std::min(kChunkElements, n - begin));
  return all;
}

template <class Real>
struct Parts {
  Split total;
  std::vector<Split> each;  // of every piece
  Pieces<Real> collected;
};

template <class Real>
Parts<Real> split(const Pieces<Real>& from, const Range<Real>& range, bool collect, const ForChunks& for_chunks) {
  Parts<Real> parts;
  parts.each.resize(from.pieces.size());
  std::vector<const Real*> places(from.pieces.size());
  std::mutex mutex;
  for_pieces(from, for_chunks, [&](int64_t first, int64_t last) {
    // By way of memory that is at hand, since few of many are collected.
    auto* const scratch =
        collect ? static_cast<Real*>(thread_scratch((kChunkElements + kCollectedRoom) * sizeof(Real))) : nullptr;
    std::vector<Real> collected;
    if (collect) collected.reserve((last - first) * kChunkElements / 32);
    for (int64_t i = first; i < last; ++i) {
      const Piece<Real>& piece = from.pieces[i];
      parts.each[i] = select_kernels<Real>().split(piece.data, piece.count, range.low, range.high, scratch);
      if (collect) collected.insert(collected.end(), scratch, scratch + parts.each[i].within);
    }
    if (!collect) return;
    const Real* place = collected.data();
    for (int64_t i = first; i < last; place += parts.each[i++].within) places[i] = place;
    const std::lock_guard<std::mutex> lock(mutex);
    parts.collected.memory.push_back(std::move(collected));
  });
  for (size_t i = 0; i < parts.each.size(); ++i) {
    const Split& one = parts.each[i];
    parts.total.above += one.above;
    parts.total.within += one.within;
    parts.total.sum += one.sum;
    if (collect && one.within > 0) parts.collected.append(places[i], one.within);
  }
  return parts;
}

// A number of 32 random bits for each i (splitmix64): the same ones in every run.
uint32_t random_bits(uint64_t i) {
  uint64_t z = (i + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return static_cast<uint32_t>((z ^ z >> 31) >> 32);
}

// Where the key of this rank, counted from the largest, ought to be: three standard deviations around its place in a
// sample of one from each of kSampleSize equal stretches.
template <class Real>
Range<Real> bracket(const Real* losses, int64_t n, int64_t rank) {
  std::vector<Key<Real>> sample(kSampleSize);
  for (int64_t i = 0; i < kSampleSize; ++i) {
    const int64_t begin = i * n / kSampleSize, end = (i + 1) * n / kSampleSize;
    sample[i] = key_of(losses[begin + random_bits(i) % (end - begin)]);
  }
  const double share = static_cast<double>(rank) / static_cast<double>(n), size = static_cast<double>(kSampleSize);
  const double reach = 3 * std::sqrt(size * share * (1 - share)) + 4;
  const auto before = static_cast<int64_t>(size * share - reach), behind = static_cast<int64_t>(size * share + reach);
  Range<Real> range;
  const auto larger = std::greater<Key<Real>>();
  auto end = sample.end();
  if (behind < kSampleSize) {
    end = sample.begin() + behind;
    std::nth_element(sample.begin(), end, sample.end(), larger);
    range.low = *end;
  }
  if (before > 0) {
    std::nth_element(sample.begin(), sample.begin() + before, end, larger);
    range.high = sample[before];
  }
  return range;
}

int bit_width(uint64_t value) { return value == 0 ? 0 : 64 - __builtin_clzll(value); }

// The range, of keys which all of the losses have, becomes one that at most half of them have, or a single key.
// rank: of the key that is sought, among all of them.
template <class Real>
void narrow(const Pieces<Real>& from, int64_t rank, Range<Real>& range, const ForChunks& for_chunks) {
  if (from.total <= kFew) {
    std::vector<Key<Real>> keys;
    for (const Piece<Real>& piece : from.pieces) {
      for (int64_t i = 0; i < piece.count; ++i) keys.push_back(key_of(piece.data[i]));
    }
    std::nth_element(keys.begin(), keys.begin() + (rank - 1), keys.end(), std::greater<Key<Real>>());
    range.low = range.high = keys[rank - 1];
    return;
  }
  for (int64_t within = from.total; within > from.total / 2 && range.low < range.high;) {
    const auto width = static_cast<uint64_t>(range.high - range.low);
    const int shift = std::max(0, bit_width(width) - kDigitBits);
    std::vector<int64_t> counts(kDigits);
    std::mutex mutex;
    for_pieces(from, for_chunks, [&](int64_t first, int64_t last) {
      DigitCounts mine;
      for (int64_t i = first; i < last; ++i)
        select_kernels<Real>().tally(from.pieces[i].data, from.pieces[i].count, range.low, shift, mine);
      const std::lock_guard<std::mutex> lock(mutex);
      for (const auto& table : mine.tables) {
        for (int64_t d = 0; d < kDigits; ++d) counts[d] += table[d];
      }
    });
    auto digit = static_cast<int64_t>(width >> shift);
    while (rank > counts[digit]) rank -= counts[digit--];
    within = counts[digit];
    range.low += static_cast<Key<Real>>(digit) << shift;
    range.high = std::min(range.high, range.low + ((static_cast<Key<Real>>(1) << shift) - 1));
  }
}

// The index of the loss that is the rank-th of those with this key, of which every piece has so many within.
template <class Real>
int64_t place_of(const Pieces<Real>& all, const std::vector<Split>& equal, Key<Real> key, int64_t rank) {
  size_t piece = 0;
  while (rank > equal[piece].within) rank -= equal[piece++].within;
  const Real* loss = all.pieces[piece].data;
  while (key_of(*loss) != key || --rank > 0) ++loss;
  return loss - all.pieces[0].data;
}

}  // namespace

template <class Real>
Hardest select_hardest(const Real* losses, int64_t n, double counted, const HardestRule& rule,
                       const ForChunks& for_chunks) {
  const Hardest none{0, {Order<Real>::kNaN, -1, 0}};
  if (n == 0 || !(counted > 0)) return none;
  const int64_t k = rule.by_ratio(counted, n);
  const Pieces<Real> all = cut(losses, n);
  Range<Real> range;
  if (k > 0 && n >= kFewest) range = bracket(losses, n, k);

  // The larger set wins: that of the threshold if the k-th largest is above it. What the sample suggests comes first.
  const Key<Real> threshold = key_of(static_cast<Real>(rule.threshold));
  const auto above_threshold = [&] {
    const Split found = split(all, {threshold, threshold}, false, for_chunks).total;
    const auto taken = static_cast<double>(found.above);
    return std::pair(found.above, Hardest{found.sum / taken, {threshold, -1, 1 / taken}});
  };
  bool open = rule.threshold >= 0;
  if (open && (k == 0 || threshold < range.high)) {
    const auto [taken, found] = above_threshold();
    if (taken >= k) return taken > 0 ? found : none;
    open = false;
  }

  int64_t rank = k;
  double sum = 0;
  const Pieces<Real>* pieces = &all;
  Pieces<Real> collected;
  if (n < kFewest) narrow(all, rank, range, for_chunks);
  Parts<Real> parts;
  for (;;) {
    parts = split(*pieces, range, range.low < range.high, for_chunks);
    const Split& found = parts.total;
    if (rank <= found.above || rank > found.above + found.within) {
      range = {};  // the sample misjudged
    } else if (range.low == range.high) {
      break;
    } else {
      rank -= found.above;
      sum += found.sum;
      collected = std::move(parts.collected);
      pieces = &collected;
    }
    narrow(*pieces, rank, range, for_chunks);
  }
  if (open && range.low > threshold) return above_threshold().second;
  rank -= parts.total.above;
  // The key of a NaN is a NaN, too.
  sum += parts.total.sum + static_cast<double>(rank) * static_cast<double>(bit_cast<Real>(range.low));
  int64_t last = n - 1;
  if (rank < parts.total.within) {
    if (pieces != &all) parts = split(all, range, false, for_chunks);
    last = place_of(all, parts.each, range.low, rank);
  }
  return {sum / static_cast<double>(k), {range.low, last, 1 / static_cast<double>(k)}};
}

template <class Real>
void hardest_gradient(const Real* losses, Real* gradient, int64_t n, const Kept& kept, double upstream,
                      const ForChunks& for_chunks) {
  const auto key = static_cast<Key<Real>>(kept.key);
  const Real value = static_cast<Real>(upstream * kept.share);
  const auto keep = select_kernels<Real>().keep;
  for_chunks((n + kChunkElements - 1) / kChunkElements, [&](int64_t first, int64_t last) {
    const int64_t begin = first * kChunkElements, end = std::min(n, last * kChunkElements);
    const int64_t equal = keeps_equal(kept.last, begin, 1, end - begin);
    keep(losses + begin, gradient + begin, equal, key - 1, value);
    keep(losses + begin + equal, gradient + begin + equal, end - begin - equal, key, value);
  });
}

template Hardest select_hardest(const float*, int64_t, double, const HardestRule&, const ForChunks&);
template Hardest select_hardest(const double*, int64_t, double, const HardestRule&, const ForChunks&);
template void hardest_gradient(const float*, float*, int64_t, const Kept&, double, const ForChunks&);
template void hardest_gradient(const double*, double*, int64_t, const Kept&, double, const ForChunks&);

}  // namespace focal::cpu
