// The engines with a probe for a loss: margins come out as values and every derivative is 1, so that every load, index,
// weight and store shows exactly. Whole numbers and a pretend exp and log keep the arithmetic without rounding, but for
// the softmax's quotients, which are rounded here as there.
// Outputs have gaps and borders that must stay untouched.
#include "cpu/prelude.h"

#define FOCAL_CPU_ISA probe
#include <algorithm>
#include "cpu/columns.h"
#include "cpu/elementwise.h"
#include "cpu/rows.h"
#include "cpu/soft.h"

#include <vector>

#include "check.h"

namespace focal::cpu::probe {
void* scratch(size_t bytes) { return thread_scratch(bytes); }
}  // namespace focal::cpu::probe

using namespace focal;
using namespace focal::cpu;
using probe::Want;

namespace {

// exp(x) = 2^x and log(x) = x: of whole numbers sums of few bits.
struct PretendMath {
  using Real = float;
  static float exp(float x) { return x < -100.0f ? 0.0f : std::ldexp(1.0f, static_cast<int>(x)); }
  static float log1p(float x) { return x; }
  static float log(float x) { return x; }
};
using Term = probe::ProbeTerm<PretendMath>;

constexpr float kUntouched = 12345.0f;
constexpr float kScale = 8, kPositive = 4, kNegative = 2;
constexpr int64_t kIgnore = -100, kBorder = 16;

// [outer, classes, inner] logits with a gap after every innermost run, in one of two memory orders.
struct Case {
  int64_t outer, classes, inner, gap;
  bool class_last;
  bool softmax;
  // Weights of the classes; a weight for each element of the loss, or (sigmoid) for each row; dense targets (softmax);
  // smoothed labels; a gradient that is written past the caches.
  bool by_class = false, samples = false, of_rows = false, dense = false, smoothed = false, stream = false;

  int64_t class_stride() const { return class_last ? 1 : inner + gap; }
  int64_t inner_stride() const { return class_last ? classes + gap : 1; }
  int64_t outer_stride() const { return class_last ? inner * (classes + gap) : classes * (inner + gap); }
  int64_t size() const { return outer * outer_stride(); }
  int64_t at(int64_t o, int64_t c, int64_t i) const {
    return o * outer_stride() + c * class_stride() + i * inner_stride();
  }
  int64_t row(int64_t o, int64_t i) const { return o * inner + i; }

  float logit(int64_t o, int64_t c, int64_t i) const { return static_cast<float>((o * 7 + c * 5 + i * 3) % 7 - 3); }
  int64_t label(int64_t n) const {
    const int64_t label = n * 3 % (classes + 2);
    return label == classes + 1 ? kIgnore : label == classes && softmax ? 0 : label;
  }
  // A few classes of each row have some, so that the sums stay exact.
  float target(int64_t n, int64_t c) const {
    if (label(n) == kIgnore) return static_cast<float>(kIgnore);
    return (c + n) % (classes / 4 + 1) == 0 ? static_cast<float>(1 + c % 3) : 0.0f;
  }
  float sample(int64_t n, int64_t c) const {
    return samples ? static_cast<float>((n + (softmax || of_rows ? 0 : c)) % 3) : 1.0f;
  }
  double smoothing() const { return smoothed ? 0.5 : 0; }
  float class_weight(int64_t c) const { return static_cast<float>(c % 3); }
};

struct Data {
  std::vector<float> logits, gradient, loss, dense, samples, positive, negative;
  std::vector<int64_t> labels;
  std::vector<double> sums;
};

// What an engine should have written.
struct Expected {
  std::vector<float> gradient, loss;
  double total = 0;
};

Task make(const Case& c, Data& data, Want want) {
  const int64_t rows = c.outer * c.inner;
  data.logits.assign(c.size() + 2 * kBorder, 0);
  data.dense.assign(c.size(), 0);
  data.gradient.assign(c.size() + 2 * kBorder, kUntouched);
  data.loss.assign((c.softmax ? rows : c.size()) + 2 * kBorder, kUntouched);
  data.labels.resize(rows);
  data.samples.resize(rows * c.classes);
  for (int64_t o = 0; o < c.outer; ++o) {
    for (int64_t i = 0; i < c.inner; ++i) {
      const int64_t n = c.row(o, i);
      data.labels[n] = c.label(n);
      for (int64_t k = 0; k < c.classes; ++k) {
        data.logits[kBorder + c.at(o, k, i)] = c.logit(o, k, i);
        data.dense[c.at(o, k, i)] = c.target(n, k);
        data.samples[(c.softmax || c.of_rows) ? n : n * c.classes + k] = c.sample(n, k);
      }
    }
  }
  for (int64_t k = 0; k < c.classes; ++k) {
    data.positive.push_back(c.class_weight(k));
    data.negative.push_back(1 - c.class_weight(k));
  }
  Task task;
  Dim outer{c.outer, {}}, inner{c.inner, {}};
  const auto lie = [&](Operand operand, int64_t of_outer, int64_t of_inner, int64_t of_class) {
    outer.stride[operand] = of_outer;
    inner.stride[operand] = of_inner;
    task.tensor[operand].class_stride = of_class;
  };
  for (Operand operand : {kLogits, kGradient}) lie(operand, c.outer_stride(), c.inner_stride(), c.class_stride());
  c.softmax ? lie(kLoss, c.inner, 1, 0) : lie(kLoss, c.outer_stride(), c.inner_stride(), c.class_stride());
  c.dense ? lie(kTargets, c.outer_stride(), c.inner_stride(), c.class_stride()) : lie(kTargets, c.inner, 1, 0);
  const bool by_row = c.softmax || c.of_rows;
  by_row ? lie(kSampleWeight, c.inner, 1, 0) : lie(kSampleWeight, c.inner * c.classes, c.classes, 1);
  task.positions.append(outer);
  task.positions.append(inner);
  task.classes = c.classes;
  task.dense = c.dense;
  task.index = {c.classes, kIgnore, c.softmax ? INT64_MIN : c.classes, !c.softmax};
  task.dense_rule.ignore_value = kIgnore;
  task.smoothing = c.smoothing();
  task.positive_weight = kPositive;
  task.negative_weight = c.softmax ? kPositive : kNegative;
  if (c.by_class) {
    task.positive_weights = data.positive.data();
    task.negative_weights = c.softmax ? nullptr : data.negative.data();
  }
  task.gradient_scale = kScale;
  task.tensor[kLogits].data = data.logits.data() + kBorder;
  task.tensor[kTargets].data = c.dense ? static_cast<void*>(data.dense.data()) : data.labels.data();
  task.tensor[kTargets].dtype = c.dense ? DType::kFloat32 : DType::kInt64;
  task.tensor[kSampleWeight].data = c.samples ? data.samples.data() : nullptr;
  const bool gradient = want == Want::kSlopes || want == Want::kSumAndSlopes;
  task.tensor[kGradient].data = gradient ? data.gradient.data() + kBorder : nullptr;
  task.tensor[kGradient].stream = c.stream;
  task.tensor[kLoss].data = want == Want::kSumAndValues ? data.loss.data() + kBorder : nullptr;
  c.softmax ? plan_softmax(task) : plan_elementwise(task);
  data.sums.assign(task.chunks, 0);
  if (want == Want::kSum || want == Want::kSumAndSlopes) task.partial_sums = data.sums.data();
  return task;
}

void run(const Task& task) {
  const auto all = [&](auto engine) {
    for (int64_t i = task.chunks - 1; i >= 0; --i) engine.chunk(i);  // any order must do
  };
  switch (task.engine) {
    case Engine::kElementwise: return all(probe::Elementwise<Term>(task));
    case Engine::kColumns: return all(probe::Columns<Term>(task));
    case Engine::kRows: return all(probe::Rows<Term>(task));
    case Engine::kSoftColumns: return all(probe::SoftColumns<Term>(task));
    case Engine::kSoftRows: return all(probe::SoftRows<Term>(task));
  }
}

void expect_sigmoid(const Case& c, int64_t o, int64_t i, Expected& expected) {
  const int64_t n = c.row(o, i), label = c.label(n);
  for (int64_t k = 0; k < c.classes; ++k) {
    const float target =
        (k == label ? 1.0f : 0.0f) * (1 - static_cast<float>(c.smoothing())) + static_cast<float>(c.smoothing()) / 2;
    const float of_positive = c.by_class ? c.class_weight(k) : kPositive;
    const float of_negative = c.by_class ? 1 - c.class_weight(k) : kNegative;
    const float weight = label == kIgnore ? 0 : c.sample(n, k) * (target * of_positive + (1 - target) * of_negative);
    const float sign = c.smoothed || k == label ? 1.0f : -1.0f;
    const float value = weight * (c.smoothed ? c.logit(o, k, i) * target : sign * c.logit(o, k, i));
    expected.total += value;
    expected.loss[kBorder + c.at(o, k, i)] = value;
    expected.gradient[kBorder + c.at(o, k, i)] = sign * kScale * weight;
  }
}

void expect_class(const Case& c, int64_t o, int64_t i, Expected& expected) {
  const int64_t n = c.row(o, i), label = c.label(n);
  float largest = -100, sum = 0;
  for (int64_t k = 0; k < c.classes; ++k) largest = k != label ? std::max(largest, c.logit(o, k, i)) : largest;
  for (int64_t k = 0; k < c.classes; ++k) sum += k != label ? PretendMath::exp(c.logit(o, k, i) - largest) : 0;
  const bool out = label == kIgnore || c.sample(n, 0) == 0;
  const float weight = out ? 0 : c.sample(n, 0) * (c.by_class ? c.class_weight(label) : kPositive);
  const float value = out ? 0 : weight * (c.logit(o, label, i) - largest - sum);
  expected.total += value;
  expected.loss[kBorder + n] = value;
  const float factor = -(weight * kScale) / sum;
  for (int64_t k = 0; k < c.classes; ++k) {
    const float e = k == label ? -sum : PretendMath::exp(c.logit(o, k, i) - largest);
    expected.gradient[kBorder + c.at(o, k, i)] = out ? 0 : e * factor;
  }
}

void expect_soft(const Case& c, int64_t o, int64_t i, Expected& expected) {
  const int64_t n = c.row(o, i), label = c.label(n);
  int64_t top = 0;
  for (int64_t k = 0; k < c.classes; ++k) top = c.logit(o, k, i) > c.logit(o, top, i) ? k : top;
  const auto relative = [&](int64_t k) { return c.logit(o, k, i) - c.logit(o, top, i); };
  const auto target = [&](int64_t k) {
    const float y = c.dense ? c.target(n, k) : k == label ? 1.0f : 0.0f, s = static_cast<float>(c.smoothing());
    return (y * (1 - s) + s / static_cast<float>(c.classes)) * (c.by_class ? c.class_weight(k) : kPositive);
  };
  float others = 0, turn = 0, value = 0;
  for (int64_t k = 0; k < c.classes; ++k) others += k != top ? PretendMath::exp(relative(k)) : 0;
  const float log_sum = others <= 1 ? others : 1 + others, inverse = 1 / (1 + others);
  const bool out = label == kIgnore || c.sample(n, 0) == 0;
  for (int64_t k = 0; k < c.classes; ++k) {
    turn += k != top ? target(k) : 0;
    value += target(k) * (log_sum - relative(k));
  }
  value = out ? 0 : c.sample(n, 0) * value;
  expected.total += value;
  expected.loss[kBorder + n] = value;
  const float all = (target(top) + turn) * inverse;
  for (int64_t k = 0; k < c.classes; ++k) {
    const float at_top = (target(top) * others - turn) * inverse;
    const float slope = k == top ? at_top : target(k) - PretendMath::exp(relative(k)) * all;
    expected.gradient[kBorder + c.at(o, k, i)] = out ? 0 : slope * (c.sample(n, 0) * kScale);
  }
}

void check_case(const Case& c, Want want) {
  Data data;
  const Task task = make(c, data, want);
  Expected expected;
  expected.gradient.assign(data.gradient.size(), kUntouched);
  expected.loss.assign(data.loss.size(), kUntouched);
  run(task);
  for (int64_t o = 0; o < c.outer; ++o) {
    for (int64_t i = 0; i < c.inner; ++i) {
      (!c.softmax ? expect_sigmoid : c.dense || c.smoothed ? expect_soft : expect_class)(c, o, i, expected);
    }
  }
  double sums = 0;
  for (double sum : data.sums) sums += sum;
  if (task.partial_sums) CHECK(sums == expected.total);
  if (task.tensor[kLoss]) CHECK(data.loss == expected.loss);
  if (task.tensor[kGradient]) CHECK(data.gradient == expected.gradient);
}

constexpr Want kWants[] = {Want::kSum, Want::kSumAndSlopes, Want::kSlopes, Want::kSumAndValues};

// Every layout, with the options of a case.
void check_layouts(Case c) {
  for (bool class_last : {false, true}) {
    // Inner sizes around a vector (16 floats), a tile, and one; classes around four, a short row, a block and one column too
    // many. Of a smoothed label every class has a share, which is exact for a few powers of two.
    for (int64_t inner : {1, 2, 15, 17, 257}) {
      for (int64_t classes : {2, 3, 5, 19, 63, 64, 4097}) {
        if (classes > 1000 && inner > 2) continue;
        if (c.softmax && c.smoothed && classes != 2 && classes != 64) continue;
        for (int64_t gap : {0, 3}) {
          c.outer = 3, c.inner = inner, c.classes = classes, c.gap = gap, c.class_last = class_last;
          for (Want want : kWants) check_case(c, want);
        }
      }
    }
  }
}

}  // namespace

int main() {
  for (int options = 0; options < 64; ++options) {
    Case c{};
    c.softmax = options & 1;
    c.by_class = options & 2;
    c.samples = options & 4;
    c.smoothed = options & 8;
    c.dense = c.softmax && options & 16;
    c.of_rows = !c.softmax && options & 16;
    c.stream = options & 32;
    if ((c.of_rows && !c.samples) || (c.stream && c.smoothed) || (c.dense && c.smoothed)) continue;
    check_layouts(c);
  }
  check_case({1, 1, 40000, 0, false, false}, Want::kSumAndSlopes);  // one class, several chunks
  check_case({2, 19, 20000, 1, false, true}, Want::kSumAndSlopes);
  return check::report();
}
