// Every gradient of the reference against central differences of the reference's forward, in float64.
#include <gtest/gtest.h>

#include <cmath>
#include <ostream>

#include "random_case.h"
#include "rounding_rule.h"

#include "attention/reference/reference_attention.h"

namespace tda::test {
namespace {

struct Setting {
  int views;
  double power, kappa, beta, lambda;
  bool normalize;
  AttentionShape shape;
};

std::ostream& operator<<(std::ostream& out, const Setting& s) {
  return out << "views " << s.views << " p " << s.power << " kappa " << s.kappa << " beta " << s.beta << " lambda "
             << s.lambda << " normalize " << s.normalize << " T " << s.shape.query_length << "/" << s.shape.key_length;
}

double loss(const AttentionCase& test_case) {
  const std::vector<double> output = run(test_case, Implementation::kReference, false).output;
  const std::vector<double> cotangent = test_case.d_output[0].values();
  double sum = 0.0;
  for (std::size_t i = 0; i < output.size(); ++i) sum += output[i] * cotangent[i];
  return sum;
}

// Scores this close to a threshold would let the kink, or the large third derivative of r^p beside it, into the
// difference quotient.
bool clear_of_thresholds(const AttentionCase& test_case) {
  const CaseInputs inputs(test_case);
  const AttentionShape& s = test_case.shape;
  for (int view = 0; view < test_case.options.views; ++view) {
    for (std::int64_t b = 0; b < s.batch; ++b) {
      for (std::int64_t h = 0; h < s.query_heads; ++h) {
        const auto scores = reference_scores(s, test_case.options, inputs.get(), view, b, h);
        for (std::int64_t i = 0; i < s.query_length; ++i) {
          for (std::int64_t j = 0; j < s.key_length; ++j) {
            const double score = scores[static_cast<std::size_t>(i * s.key_length + j)];
            if (std::fabs(score - threshold(test_case, h, i)) < 1e-3) return false;
          }
        }
      }
    }
  }
  return true;
}

class FiniteDifferences : public testing::TestWithParam<Setting> {
 protected:
  // h = 1e-6: rounding leaves about 1e-16 |L| / h < 1e-8, truncation h^2 |f'''| < 1e-7 with r >= 1e-3 and p >= 1.5.
  static constexpr double kStep = 1e-6;
  static void expect_near(double gradient, double plus, double minus, const char* name) {
    const double difference = (plus - minus) / (2.0 * kStep);
    EXPECT_NEAR(gradient, difference, 2e-7 * (1.0 + std::fabs(gradient))) << name;
  }

  static void expect_tensor(AttentionCase& test_case, TensorBuffer& buffer, const std::vector<double>& gradient,
                            const char* name) {
    std::size_t next = 0;
    const auto [B, H, T, D] = buffer.sizes();
    for (std::int64_t b = 0; b < B; ++b) {
      for (std::int64_t h = 0; h < H; ++h) {
        for (std::int64_t t = 0; t < T; ++t) {
          for (std::int64_t c = 0; c < D; ++c) {
            const double x = buffer.get(b, h, t, c);
            buffer.set(b, h, t, c, x + kStep);
            const double plus = loss(test_case);
            buffer.set(b, h, t, c, x - kStep);
            const double minus = loss(test_case);
            buffer.set(b, h, t, c, x);
            expect_near(gradient[next++], plus, minus, name);
          }
        }
      }
    }
  }

  static void expect_parameters(AttentionCase& test_case, std::vector<double>& parameter,
                                const std::vector<double>& gradient, const char* name) {
    for (std::size_t h = 0; h < parameter.size(); ++h) {
      const double x = parameter[h];
      parameter[h] = x + kStep;
      const double plus = loss(test_case);
      parameter[h] = x - kStep;
      const double minus = loss(test_case);
      parameter[h] = x;
      expect_near(gradient[h], plus, minus, name);
    }
  }
};

TEST_P(FiniteDifferences, EveryGradient) {
  const Setting& setting = GetParam();
  AttentionOptions options;
  options.data_type = DataType::kFloat64;
  options.views = setting.views;
  options.power = setting.power;
  options.kappa = setting.kappa;
  options.normalize = setting.normalize;
  std::mt19937_64 random(20);
  AttentionCase test_case(setting.shape, options, {}, random);
  const auto set_parameters = [&] {
    for (std::size_t h = 0; h < test_case.beta.size(); ++h) {
      test_case.beta[h] = setting.beta + 0.1 * static_cast<double>(h);
      test_case.lambda[h] = setting.lambda + 0.05 * static_cast<double>(h);
    }
  };
  set_parameters();
  for (int attempt = 0; !clear_of_thresholds(test_case); ++attempt) {
    ASSERT_LT(attempt, 2000) << "no input found that keeps clear of the thresholds";
    test_case = AttentionCase(setting.shape, options, {}, random);
    set_parameters();
  }
  const Results results = run(test_case, Implementation::kReference, true);
  double total = 0.0;
  for (double x : results.dv) total += std::fabs(x);
  ASSERT_GT(total, 0.0) << "no survivor: nothing would be tested";
  for (std::size_t view = 0; view < test_case.q.size(); ++view) {
    expect_tensor(test_case, test_case.q[view], results.dq[view], "dq");
    expect_tensor(test_case, test_case.k[view], results.dk[view], "dk");
  }
  expect_tensor(test_case, test_case.v[0], results.dv, "dv");
  expect_parameters(test_case, test_case.beta, results.dbeta, "dbeta");
  if (setting.views == 2) expect_parameters(test_case, test_case.lambda, results.dlambda, "dlambda");
}

constexpr AttentionShape kSquare{1, 1, 1, 6, 6, 5, 5};
constexpr AttentionShape kGrouped{2, 4, 2, 3, 5, 6, 12};

INSTANTIATE_TEST_SUITE_P(
    Settings, FiniteDifferences,
    testing::Values(Setting{1, 1.0, 1.0, 0.4, 0.5, true, kSquare}, Setting{1, 1.5, 1.0, 0.4, 0.5, true, kSquare},
                    Setting{1, 2.0, 1.0, 0.4, 0.5, true, kSquare}, Setting{1, 3.0, 1.0, 0.4, 0.5, true, kSquare},
                    Setting{1, 2.0, 1.0, 0.4, 0.5, false, kSquare}, Setting{1, 2.0, 3.0, -0.4, 0.5, true, kSquare},
                    Setting{2, 2.0, 1.0, 0.4, 0.5, true, kSquare}, Setting{2, 1.0, 1.0, 0.3, 0.2, true, kSquare},
                    Setting{2, 2.7, 0.5, 0.3, 0.8, false, kSquare}, Setting{2, 2.0, 1.0, 0.3, -0.7, true, kSquare},
                    Setting{2, 2.0, 1.0, 0.3, 1.4, true, kSquare}, Setting{1, 2.0, 1.0, 0.3, 0.5, true, kGrouped},
                    Setting{2, 2.0, 1.0, 0.3, 0.5, true, kGrouped}, Setting{2, 1.5, 2.0, 0.3, 0.5, true, kGrouped}));

// At the ends of [0, 1] the difference quotient sees the clamp's kink; the contract takes the gradient from inside.
TEST(LambdaGradient, CountsTheEndsOfTheClosedInterval) {
  std::mt19937_64 random(3);
  AttentionOptions options;
  options.data_type = DataType::kFloat64;
  options.views = 2;
  AttentionCase test_case({1, 6, 6, 12, 12, 8, 8}, options, {}, random);
  test_case.beta.assign(6, 0.2);
  test_case.lambda = {-1e-9, 0.0, 0.5, 1.0, 1.0 + 1e-9, 3.0};
  for (const auto implementation : {Implementation::kReference, Implementation::kOperator}) {
    const Results results = run(test_case, implementation, true);
    EXPECT_EQ(results.dlambda[0], 0.0);
    EXPECT_NE(results.dlambda[1], 0.0);
    EXPECT_NE(results.dlambda[2], 0.0);
    EXPECT_NE(results.dlambda[3], 0.0);
    EXPECT_EQ(results.dlambda[4], 0.0);
    EXPECT_EQ(results.dlambda[5], 0.0);
  }
}

}  // namespace
}  // namespace tda::test
