// The engines with a probe for a loss: margins come out as values and every derivative is 1, so that every load, index,
// weight and store shows exactly. Whole numbers and a pretend exp and log keep the arithmetic without rounding.
// Outputs have gaps and borders that must stay untouched.
#include "cpu/prelude.h"

#define FOCAL_CPU_ISA probe
#include <algorithm>
#include "cpu/columns.h"
#include "cpu/elementwise.h"
#include "cpu/rows.h"

#include <vector>

#include "check.h"

namespace focal::cpu::probe {
void* scratch(size_t bytes) { return thread_scratch(bytes); }
}  // namespace focal::cpu::probe

using namespace focal;
using namespace focal::cpu;
using probe::Want;

namespace {

// exp(x) = 1 + x and log(x) = x: of whole numbers, whole numbers.
struct PretendMath {
  using Real = float;
  static float exp(float x) { return x == -std::numeric_limits<float>::infinity() ? 0.0f : 1.0f + x; }
  static float log1p(float x) { return x; }
  static float log(float x) { return x; }
};
using Term = probe::ProbeTerm<PretendMath>;

constexpr float kUntouched = 12345.0f;
constexpr int64_t kIgnore = -100;

// [outer, classes, inner] logits with a gap after every innermost run, in one of two memory orders.
struct Case {
  int64_t outer, classes, inner, gap;
  bool class_last;
  bool softmax;

  int64_t class_stride() const { return class_last ? 1 : inner + gap; }
  int64_t inner_stride() const { return class_last ? classes + gap : 1; }
  int64_t outer_stride() const { return class_last ? inner * (classes + gap) : classes * (inner + gap); }
  int64_t size() const { return outer * outer_stride(); }
  int64_t at(int64_t o, int64_t c, int64_t i) const {
    return o * outer_stride() + c * class_stride() + i * inner_stride();
  }
};

struct Data {
  std::vector<float> logits, gradient, loss;
  std::vector<int64_t> targets;
  std::vector<double> sums;
};

float logit_at(int64_t o, int64_t c, int64_t i) { return static_cast<float>((o * 7 + c * 13 + i * 5) % 17 - 8); }

Task make(const Case& c, Data& data, Want want, const float* alpha) {
  const int64_t border = 16;
  data.logits.assign(c.size() + 2 * border, 0);
  data.gradient.assign(c.size() + 2 * border, kUntouched);
  data.loss.assign((c.softmax ? c.outer * c.inner : c.size()) + 2 * border, kUntouched);
  data.targets.resize(c.outer * c.inner);
  for (int64_t o = 0; o < c.outer; ++o) {
    for (int64_t i = 0; i < c.inner; ++i) {
      const int64_t n = o * c.inner + i, label = (n * 3) % (c.classes + 2);
      data.targets[n] = label == c.classes + 1 ? kIgnore : label == c.classes ? (c.softmax ? 0 : c.classes) : label;
      for (int64_t k = 0; k < c.classes; ++k) data.logits[border + c.at(o, k, i)] = logit_at(o, k, i);
    }
  }
  Task task;
  Dim outer{c.outer, {}}, inner{c.inner, {}};
  for (Operand operand : {kLogits, kGradient, kLoss}) {
    outer.stride[operand] = c.outer_stride();
    inner.stride[operand] = c.inner_stride();
    task.tensor[operand].class_stride = c.class_stride();
  }
  outer.stride[kTargets] = c.inner;
  inner.stride[kTargets] = 1;
  if (c.softmax) {
    outer.stride[kLoss] = c.inner;
    inner.stride[kLoss] = 1;
  }
  task.positions.append(outer);
  task.positions.append(inner);
  task.classes = c.classes;
  task.index = {c.classes, kIgnore, c.softmax ? INT64_MIN : c.classes, !c.softmax};
  task.positive_weight = 4;
  task.negative_weight = c.softmax ? 4 : 2;
  task.alpha = alpha;
  task.gradient_scale = 8;
  task.tensor[kLogits].data = data.logits.data() + border;
  task.tensor[kTargets] = {data.targets.data(), DType::kInt64, 0};
  const bool gradient = want == Want::kSlopes || want == Want::kSumAndSlopes;
  task.tensor[kGradient].data = gradient ? data.gradient.data() + border : nullptr;
  task.tensor[kLoss].data = want == Want::kSumAndValues ? data.loss.data() + border : nullptr;
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
  }
}

void check_case(const Case& c, Want want, bool with_alpha, bool stream = false) {
  std::vector<float> alpha(c.classes);
  for (int64_t k = 0; k < c.classes; ++k) alpha[k] = static_cast<float>(k % 3);
  Data data;
  Task task = make(c, data, want, with_alpha ? alpha.data() : nullptr);
  task.tensor[kGradient].stream = stream;
  run(task);

  const int64_t border = 16;
  std::vector<float> gradient(data.gradient.size(), kUntouched), loss(data.loss.size(), kUntouched);
  double total = 0;
  for (int64_t o = 0; o < c.outer; ++o) {
    for (int64_t i = 0; i < c.inner; ++i) {
      const int64_t n = o * c.inner + i, label = data.targets[n];
      if (c.softmax) {
        float largest = -100, sum = 0;
        for (int64_t k = 0; k < c.classes; ++k) largest = k != label ? std::max(largest, logit_at(o, k, i)) : largest;
        for (int64_t k = 0; k < c.classes; ++k) sum += k != label ? 1 + (logit_at(o, k, i) - largest) : 0;
        const float weight = label == kIgnore ? 0 : with_alpha ? alpha[label] : 4;
        const float value = label == kIgnore ? 0 : weight * (logit_at(o, label, i) - largest - sum);
        total += value;
        loss[border + n] = value;
        const float factor = sum == 0 ? 0 : -(weight * 8) / sum;
        for (int64_t k = 0; k < c.classes; ++k) {
          const float e = k == label ? -sum : 1 + (logit_at(o, k, i) - largest);
          gradient[border + c.at(o, k, i)] = label == kIgnore ? 0 : e * factor;
        }
      } else {
        for (int64_t k = 0; k < c.classes; ++k) {
          const bool positive = k == label, ignored = label == kIgnore;
          const float weight = ignored ? 0 : with_alpha ? (positive ? alpha[k] : 1 - alpha[k]) : positive ? 4 : 2;
          const float margin = positive ? logit_at(o, k, i) : -logit_at(o, k, i);
          total += weight * margin;
          loss[border + c.at(o, k, i)] = weight * margin;
          gradient[border + c.at(o, k, i)] = (positive ? 8 : -8) * weight;
        }
      }
    }
  }
  double sums = 0;
  for (double sum : data.sums) sums += sum;
  if (task.partial_sums) CHECK(sums == total);
  if (task.tensor[kLoss]) CHECK(data.loss == loss);
  if (task.tensor[kGradient]) CHECK(data.gradient == gradient);
}

}  // namespace

int main() {
  for (bool softmax : {false, true}) {
    for (bool class_last : {false, true}) {
      // Inner sizes around a vector (16 floats), a tile, and one; classes around four, a short row, a block and one column too many.
      for (int64_t inner : {1, 2, 15, 17, 257}) {
        for (int64_t classes : {2, 3, 5, 19, 63, 64, 4097}) {
          if (classes > 1000 && inner > 2) continue;
          for (int64_t gap : {0, 3}) {
            for (Want want : {Want::kSum, Want::kSumAndSlopes, Want::kSlopes, Want::kSumAndValues}) {
              for (bool alpha : {false, true}) check_case({3, classes, inner, gap, class_last, softmax}, want, alpha);
            }
          }
        }
      }
    }
  }
  for (bool class_last : {false, true}) {
    for (int64_t inner : {15, 257}) {
      check_case({3, 19, inner, 3, class_last, true}, Want::kSlopes, false, true);
      check_case({3, 19, inner, 0, class_last, false}, Want::kSlopes, false, true);
    }
  }
  check_case({1, 1, 40000, 0, false, false}, Want::kSumAndSlopes, false);  // one class, several chunks
  check_case({2, 19, 20000, 1, false, true}, Want::kSumAndSlopes, false);
  return check::report();
}
