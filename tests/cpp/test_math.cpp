// The elementary functions and the conversions of every instruction set, against the C library.
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "cpu/kernels.h"
#include "math/dtype.h"
#include "math/focal.h"

using namespace focal;

namespace {

const float kInf = std::numeric_limits<float>::infinity();
const float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> apply(const char* function, std::vector<float> values) {
  std::vector<float> out(values.size());
  cpu::kernels().elementary_float32(function, values.data(), out.data(), static_cast<int64_t>(values.size()));
  return out;
}

// Every `step`-th float of a range of the same sign.
std::vector<float> floats(float from, float to, uint32_t step) {
  std::vector<float> values;
  for (uint32_t bits = bit_cast<uint32_t>(from); bits <= bit_cast<uint32_t>(to); bits += step) {
    values.push_back(bit_cast<float>(bits));
  }
  return values;
}

void test_exp() {
  std::vector<float> x = floats(0.0f, 87.3f, 997);
  for (float& value : x) value = -value;
  const std::vector<float> y = apply("exp", x);
  bool within = true;
  for (size_t i = 0; i < x.size(); ++i) {
    const double expected = std::exp(static_cast<double>(x[i]));
    within &= std::fabs(y[i] - expected) <= (2e-7 - 7e-8 * x[i]) * expected;
  }
  CHECK(within);
  const std::vector<float> special = apply("exp", {0.0f, -0.0f, -88.1f, -1e4f, -3e38f, -kInf, kNan});
  CHECK(special[0] == 1 && special[1] == 1);
  CHECK(special[2] == 0 && special[3] == 0 && special[4] == 0 && special[5] == 0);
  CHECK(std::isnan(special[6]));
}

void test_log1p() {
  const std::vector<float> x = floats(0.0f, 1.0f, 1009);
  const std::vector<float> y = apply("log1p", x);
  bool within = true;
  for (size_t i = 0; i < x.size(); ++i) {
    const double expected = std::log1p(static_cast<double>(x[i]));
    within &= std::fabs(y[i] - expected) <= 4e-7 * expected;
  }
  CHECK(within);
  CHECK(y[0] == 0);
}

void test_log() {
  const std::vector<float> x = floats(1.2e-38f, 3.4e38f, 1013);
  const std::vector<float> y = apply("log", x);
  bool within = true;
  for (size_t i = 0; i < x.size(); ++i) {
    const double expected = std::log(static_cast<double>(x[i]));
    within &= std::fabs(y[i] - expected) <= 1.2e-7 * std::fmax(std::fabs(expected), std::fabs(x[i] - 1.0));
  }
  CHECK(within);
  const std::vector<float> special = apply("log", {1.0f, 0.0f, kInf, kNan});
  CHECK(special[0] == 0 && special[1] == -kInf && special[2] == kInf && std::isnan(special[3]));
}

// Every bf16 and fp16 goes to float and back; every 1021st float rounds to the nearer neighbour, ties to even.
void test_half_types() {
  bool roundtrip = true, nearest = true;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Half half{static_cast<uint16_t>(bits)};
    const BFloat16 bfloat{static_cast<uint16_t>(bits)};
    const float h = to_real<float>(half), b = to_real<float>(bfloat);
    roundtrip &= std::isnan(h) ? std::isnan(to_real<float>(from_real<Half>(h))) : from_real<Half>(h).bits == bits;
    roundtrip &=
        std::isnan(b) ? std::isnan(to_real<float>(from_real<BFloat16>(b))) : from_real<BFloat16>(b).bits == bits;
  }
  CHECK(roundtrip);
  for (uint64_t bits = 0; bits < 0x7f800000u; bits += 1021) {
    const float x = bit_cast<float>(static_cast<uint32_t>(bits));
    const uint16_t got = from_real<Half>(x).bits;
    if (x < 65520.0f) {
      const auto distance = [&](uint16_t other) {
        return std::fabs(static_cast<double>(to_real<float>(Half{other})) - x);
      };
      const uint16_t above = static_cast<uint16_t>(got + 1), below = static_cast<uint16_t>(got - 1);
      nearest &=
          got == 0x7c00 - 1 || distance(above) > distance(got) || (distance(above) == distance(got) && got % 2 == 0);
      nearest &= got == 0 || distance(below) > distance(got) || (distance(below) == distance(got) && got % 2 == 0);
    } else {
      nearest &= got == 0x7c00;
    }
  }
  CHECK(nearest);
  CHECK(from_real<Half>(-1.5f).bits == 0xbe00);
  CHECK(from_real<BFloat16>(-kInf).bits == 0xff80);
}

// The formula at the ends of the line, for every exponent, through the plain C library.
void test_margin_limits() {
  using Math = LibmMath<double>;
  const double inf = std::numeric_limits<double>::infinity();
  const auto at_ends = [&](auto loss) {
    CHECK(loss(inf).value == 0 && loss(inf).deriv == 0);
    CHECK(loss(-inf).value == inf && loss(-inf).deriv == -1);
    CHECK(loss(-1e4).value == 1e4 && loss(-1e4).deriv == -1);
    CHECK(std::isnan(loss(std::nan("")).value) && std::isnan(loss(std::nan("")).deriv));
  };
  at_ends(Focal<Math, Exponent::kZero>{0});
  at_ends(Focal<Math, Exponent::kOne>{1});
  at_ends(Focal<Math, Exponent::kTwo>{2});
  at_ends(Focal<Math, Exponent::kAny>{0.5});
  at_ends(Focal<Math, Exponent::kAny>{0});  // a gamma that happens to be 0 on the general path
  for (double margin : {-30.0, -3.0, 0.0, 0.7, 12.0, 40.0}) {
    const auto special = Focal<Math, Exponent::kTwo>{2}(margin), any = Focal<Math, Exponent::kAny>{2}(margin);
    CHECK(std::fabs(special.value - any.value) <= 1e-14 * special.value);
    CHECK(std::fabs(special.deriv - any.deriv) <= -1e-14 * special.deriv);
    const auto hard = Focal<Math, Exponent::kAny>{1.5}(margin), soft = SoftFocal<Math, Exponent::kAny>{1.5}(margin, 1);
    CHECK(std::fabs(hard.value - soft.value) <= 1e-12 * hard.value);
  }
}

}  // namespace

int main() {
  test_exp();
  test_log1p();
  test_log();
  test_half_types();
  test_margin_limits();
  return check::report();
}
