// Golden values of TRA and TDA: float64, one head, T = 8, D = 8, checked against central differences when they were
// made. Inputs come from the generator x <- 1664525 x + 1013904223 mod 2^32, value 2x / 2^32 - 1, row-major; seeds q 1,
// k 2, v 3, q2 4, k2 5, cotangent 6, gain 1 + 0.1 (seed 11). Loss: sum(output * cotangent).
#include <gtest/gtest.h>

#include <cmath>
#include <ostream>

#include "attention_case.h"

namespace tda::test {
namespace {

constexpr std::int64_t kLength = 8, kDim = 8;

std::vector<double> generate(std::uint32_t seed, std::int64_t count) {
  std::vector<double> values;
  std::uint32_t x = seed;
  for (std::int64_t i = 0; i < count; ++i) {
    x = 1664525U * x + 1013904223U;
    values.push_back(2.0 * x / 4294967296.0 - 1.0);
  }
  return values;
}

void assign(TensorBuffer& buffer, const std::vector<double>& values) {
  for (std::int64_t t = 0; t < kLength; ++t) {
    for (std::int64_t c = 0; c < kDim; ++c) buffer.set(0, 0, t, c, values[static_cast<std::size_t>(t * kDim + c)]);
  }
}

double frobenius(const std::vector<double>& values) {
  double sum = 0.0;
  for (double x : values) sum += x * x;
  return std::sqrt(sum);
}

// y = gain * u / sqrt(mean(u^2) + eps) per row. Returns the loss sum(y * cotangent), and du and the gain's gradient.
struct RmsNorm {
  double loss = 0.0;
  std::vector<double> du, dgain;
};

RmsNorm rms_norm(const std::vector<double>& u, const std::vector<double>& cotangent, const std::vector<double>& gain,
                 double eps) {
  RmsNorm result{0.0, std::vector<double>(u.size()), std::vector<double>(kDim)};
  for (std::size_t row = 0; row < u.size(); row += kDim) {
    double square = 0.0;
    for (std::size_t c = 0; c < kDim; ++c) square += u[row + c] * u[row + c];
    const double rho = 1.0 / std::sqrt(square / kDim + eps);
    double mean = 0.0;
    for (std::size_t c = 0; c < kDim; ++c) {
      const double normalized = rho * u[row + c];
      result.loss += gain[c] * normalized * cotangent[row + c];
      result.dgain[c] += cotangent[row + c] * normalized;
      mean += gain[c] * cotangent[row + c] * normalized / kDim;
    }
    for (std::size_t c = 0; c < kDim; ++c) {
      result.du[row + c] = rho * (gain[c] * cotangent[row + c] - rho * u[row + c] * mean);
    }
  }
  return result;
}

struct Golden {
  const char* name;
  int views;
  double power, kappa, beta;
  bool norm;  // RMSNorm with eps 1e-6 after the operator
  double loss, q, k, v, q2, k2, dbeta, dlambda, gain;
};

std::ostream& operator<<(std::ostream& out, const Golden& golden) { return out << golden.name; }

const Golden kGolden[] = {
    {"TRA p2", 1, 2, 1, .5, false, .0756711641, .258510352, .305350038, .213181934, 0, 0, -.223837966, 0, 0},
    {"TRA p1", 1, 1, 1, .5, false, .1728834300, .926738389, 1.06778957, .641651331, 0, 0, -.551999533, 0, 0},
    {"TRA p2.5 k3", 1, 2.5, 3, .5, false, .1084948406, .356963218, .425197725, .300423008, 0, 0, -.139606433, 0, 0},
    {"TRA p2 norm", 1, 2, 1, .5, true, -.7433800257, 17.7235553, 24.1614671, 4.82156799, 0, 0, -21.7431366, 0,
     1.77925689},
    {"TDA p2", 2, 2, 1, .5, false, .1373672857, .258510352, .305350038, .248292032, .467163869, .473535105, -.563694895,
     .102826869, 0},
    {"TDA p2 norm", 2, 2, 1, .5, true, -2.6135660552, 16.6892368, 22.8167227, 7.60849009, 6.7645971, 7.60649882,
     -18.029704, .00907496468, 2.58964818},
    {"TDA p3 k2 norm", 2, 3, 2, .3, true, -.4677171792, 13.1122471, 16.9601497, 7.62570466, 4.93689024, 5.7133052,
     -2.54183346, -.0814883334, 2.71353895},
    {"TDA p1 norm", 2, 1, 1, .5, true, -.7868311117, 17.6772412, 22.6772558, 7.80770650, 7.11155933, 8.20619763,
     -16.290368, -.403523984, 2.67942136},
};

class GoldenValues : public testing::TestWithParam<std::tuple<Golden, Implementation>> {};

TEST_P(GoldenValues, Match) {
  const auto& [golden, implementation] = GetParam();
  std::mt19937_64 random(0);
  AttentionOptions options;
  options.data_type = DataType::kFloat64;
  options.views = golden.views;
  options.power = golden.power;
  options.kappa = golden.kappa;
  AttentionCase test_case({1, 1, 1, kLength, kLength, kDim, kDim}, options, {}, random);
  test_case.beta = {golden.beta};
  test_case.lambda = {0.6};
  constexpr std::int64_t count = kLength * kDim;
  assign(test_case.q[0], generate(1, count));
  assign(test_case.k[0], generate(2, count));
  assign(test_case.v[0], generate(3, count));
  if (golden.views == 2) {
    assign(test_case.q[1], generate(4, count));
    assign(test_case.k[1], generate(5, count));
  }
  const std::vector<double> cotangent = generate(6, count);
  assign(test_case.d_output[0], cotangent);

  const std::vector<double> u = run(test_case, implementation, false).output;
  double loss = 0.0;
  for (std::size_t i = 0; i < u.size(); ++i) loss += u[i] * cotangent[i];
  std::vector<double> gain = generate(11, kDim);
  for (double& g : gain) g = 1.0 + 0.1 * g;
  const RmsNorm norm = rms_norm(u, cotangent, gain, 1e-6);
  if (golden.norm) {
    loss = norm.loss;
    assign(test_case.d_output[0], norm.du);
  }
  const Results results = run(test_case, implementation, true);

  // The table prints 9 significant digits.
  const auto near = [](double value, double expected) {
    return std::fabs(value - expected) <= 6e-9 * std::fabs(expected);
  };
  EXPECT_PRED2(near, loss, golden.loss);
  EXPECT_PRED2(near, frobenius(results.dq[0]), golden.q);
  EXPECT_PRED2(near, frobenius(results.dk[0]), golden.k);
  EXPECT_PRED2(near, frobenius(results.dv), golden.v);
  EXPECT_PRED2(near, results.dbeta[0], golden.dbeta);
  if (golden.norm) {
    EXPECT_PRED2(near, frobenius(norm.dgain), golden.gain);
  }
  if (golden.views == 1) return;
  EXPECT_PRED2(near, frobenius(results.dq[1]), golden.q2);
  EXPECT_PRED2(near, frobenius(results.dk[1]), golden.k2);
  EXPECT_PRED2(near, results.dlambda[0], golden.dlambda);
}

INSTANTIATE_TEST_SUITE_P(Reference, GoldenValues,
                         testing::Combine(testing::ValuesIn(kGolden), testing::Values(Implementation::kReference)));
INSTANTIATE_TEST_SUITE_P(Operator, GoldenValues,
                         testing::Combine(testing::ValuesIn(kGolden), testing::Values(Implementation::kOperator)));

TEST(GoldenValues, GeneratorIsTheOneOfTheTable) {
  const std::vector<double> x = generate(1, 3);
  EXPECT_NEAR(x[0], -0.527088949457, 1e-12);
  EXPECT_NEAR(x[1], -0.261458652560, 1e-12);
  EXPECT_NEAR(x[2], 0.008484064601, 1e-12);
}

TEST(GoldenValues, SurvivorCounts) {
  for (const auto& [power, kappa, expected] : {std::tuple{2.0, 1.0, 6}, {1.0, 1.0, 6}, {2.5, 3.0, 11}}) {
    std::mt19937_64 random(0);
    AttentionOptions options;
    options.data_type = DataType::kFloat64;
    options.power = power;
    options.kappa = kappa;
    AttentionCase test_case({1, 1, 1, kLength, kLength, kDim, kDim}, options, {}, random);
    test_case.beta = {0.5};
    assign(test_case.q[0], generate(1, kLength * kDim));
    assign(test_case.k[0], generate(2, kLength * kDim));
    int survivors = 0;
    for (std::int32_t row : run(test_case, Implementation::kOperator, false).survivors) survivors += row;
    EXPECT_EQ(survivors, expected);
  }
}

}  // namespace
}  // namespace tda::test
