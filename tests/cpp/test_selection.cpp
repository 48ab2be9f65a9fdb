// The k hardest losses on the CPU against a stable sort. As tests/test_ohem.py, but under the sanitizers, too.
#include "cpu/selection.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "check.h"

using namespace focal;
using namespace focal::cpu;

namespace {

std::mt19937 random_numbers(20171007);

double uniform() { return random_numbers() / 4294967296.0; }

// Ordinary losses, few different ones, one alone, and special ones among denormals.
template <class Real>
Real loss_of(int kind) {
  const double u = uniform();
  switch (kind) {
    case 0: return static_cast<Real>(u);
    case 1: return static_cast<Real>(std::floor(u * 4) / 4);
    case 2: return Real(0.5);
  }
  if (u < 0.02) return std::numeric_limits<Real>::quiet_NaN();
  if (u < 0.04) return std::numeric_limits<Real>::infinity();
  if (u < 0.06) return -Real(0);
  return static_cast<Real>(u) * std::numeric_limits<Real>::min();
}

// Every chunk by itself, the last one first.
void one_by_one(int64_t chunks, const std::function<void(int64_t, int64_t)>& body) {
  while (chunks-- > 0) body(chunks, chunks + 1);
}

template <class Real>
void check_losses(const std::vector<Real>& losses, const HardestRule& rule) {
  const auto n = static_cast<int64_t>(losses.size());
  std::vector<int64_t> order(losses.size());
  std::iota(order.begin(), order.end(), int64_t(0));
  const auto key = [&](int64_t i) { return key_of(losses[i]); };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return key(a) > key(b); });
  int64_t k = rule.by_ratio(static_cast<double>(n), n);
  if (rule.threshold >= 0)
    k = std::max<int64_t>(k, std::count_if(losses.begin(), losses.end(), [&](Real loss) {
                            return key_of(loss) > key_of(static_cast<Real>(rule.threshold));
                          }));
  std::vector<Real> expected(losses.size()), gradient(losses.size(), Real(7));
  double sum = 0;
  for (int64_t i = 0; i < k; ++i) {
    expected[order[i]] = static_cast<Real>(3.0 * (1.0 / static_cast<double>(k)));
    sum += static_cast<double>(losses[order[i]]);
  }
  const double mean = k ? sum / static_cast<double>(k) : 0;
  const Hardest found = select_hardest(losses.data(), n, static_cast<double>(n), rule, one_by_one);
  CHECK(std::isnan(mean) ? std::isnan(found.mean) : found.mean == mean || std::abs(found.mean / mean - 1) < 1e-12);
  hardest_gradient(losses.data(), gradient.data(), n, found.kept, 3.0, one_by_one);
  CHECK(gradient == expected);
}

template <class Real>
void check_all() {
  for (const int n : {0, 1, 2, 63, 64, 65, 2047, 2048, 2049, 65536, 65537, 131072, 200003}) {
    for (int kind = 0; kind < 4; ++kind) {
      std::vector<Real> losses(n);
      for (Real& loss : losses) loss = loss_of<Real>(kind);
      for (const HardestRule& rule : {HardestRule{1e-9, -1}, {0.1, -1}, {1, -1}, {0, 0.4}, {0.1, 0.4}, {0.9, 0.4}})
        check_losses(losses, rule);
    }
  }
}

}  // namespace

int main() {
  check_all<float>();
  check_all<double>();
  return check::report();
}
