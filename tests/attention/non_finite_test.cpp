// NaN and Inf in the inputs spoil exactly the rows that the contract names.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "attention/reference/reference_attention.h"
#include "operator_under_test.h"
#include "random_case.h"
#include "rounding_rule.h"

namespace tda::test {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

struct Poison {
  DataType type;
  int views;
  bool normalize;
  double value;
};

std::ostream& operator<<(std::ostream& out, const Poison& p) {
  return out << "type " << static_cast<int>(p.type) << " views " << p.views << " normalize " << p.normalize << " value "
             << p.value;
}

class NonFinite : public testing::TestWithParam<Poison> {
 protected:
  void SetUp() override {
    if (!operator_takes(GetParam().type)) GTEST_SKIP() << "the device has no such data type";
  }

  static AttentionCase make_case(double beta) {
    AttentionOptions options;
    options.data_type = GetParam().type;
    options.views = GetParam().views;
    options.normalize = GetParam().normalize;
    std::mt19937_64 random(5);
    AttentionCase test_case({2, 4, 2, 70, 75, 32, 32}, options, {}, random);
    test_case.beta.assign(4, beta);
    if (!options.normalize) {
      // Scores of iid normal vectors have the size sqrt(D); bring them near the thresholds.
      for (auto* buffers : {&test_case.q, &test_case.k}) {
        for (TensorBuffer& buffer : *buffers) buffer.fill_normal(random, 0.42);
      }
    }
    // A pair at its threshold may or may not survive, and with a NaN in v that decides a whole row.
    EXPECT_TRUE(keep_scores_off_thresholds(test_case, random));
    return test_case;
  }

  // The operator against the reference; rows of the output that hold a NaN in the reference must, the others must not.
  static std::vector<double> expect_agreement(const AttentionCase& test_case) {
    const Results ours = run(test_case, Implementation::kOperator, false);
    const Results reference = run(test_case.in_double(), Implementation::kReference, false);
    EXPECT_TRUE(
        follows_rule(test_case.options.data_type, ours.output, reference.output, run_naive(test_case).results.output));
    return ours.output;
  }

  static bool is_nan_row(const std::vector<double>& output, std::size_t b, std::size_t h, std::size_t i) {
    return std::isnan(output[((b * 4 + h) * 70 + i) * 32]);
  }
};

TEST_P(NonFinite, QuerySpoilsItsRow) {
  AttentionCase test_case = make_case(0.8);
  test_case.q.back().set(1, 3, 20, 7, GetParam().value);
  const std::vector<double> output = expect_agreement(test_case);
  for (std::size_t b = 0; b < 2; ++b) {
    for (std::size_t h = 0; h < 4; ++h) {
      for (std::size_t i = 0; i < 70; ++i) {
        ASSERT_EQ(is_nan_row(output, b, h, i), b == 1 && h == 3 && i == 20) << b << ' ' << h << ' ' << i;
      }
    }
  }
}

TEST_P(NonFinite, KeySpoilsTheRowsThatSeeIt) {
  AttentionCase test_case = make_case(0.8);
  test_case.k.back().set(0, 1, 30, 31, GetParam().value);
  const std::vector<double> output = expect_agreement(test_case);
  for (std::size_t b = 0; b < 2; ++b) {
    for (std::size_t h = 0; h < 4; ++h) {
      // Query row i stands at position i + 5.
      for (std::size_t i = 0; i < 70; ++i) ASSERT_EQ(is_nan_row(output, b, h, i), b == 0 && h >= 2 && i + 5 >= 30);
    }
  }
}

TEST_P(NonFinite, ValueSpoilsOnlyRowsWithWeightOnIt) {
  AttentionCase test_case = make_case(0.6);
  for (const std::int64_t j : {3, 40, 74}) test_case.v[0].set(1, 0, j, 0, GetParam().value);
  const Results ours = run(test_case, Implementation::kOperator, false);
  const AttentionCase wide = test_case.in_double();
  const CaseInputs inputs(wide);
  for (std::int64_t h = 0; h < 4; ++h) {
    std::vector<std::vector<double>> scores;
    for (int view = 0; view < GetParam().views; ++view) {
      scores.push_back(reference_scores(wide.shape, wide.options, inputs.get(), view, 1, h));
    }
    int spoiled = 0;
    for (std::int64_t i = 0; i < 70; ++i) {
      bool touched = false;
      for (const std::int64_t j : {3, 40, 74}) {
        for (const auto& view : scores) {
          touched = touched || view[static_cast<std::size_t>(i * 75 + j)] > threshold(test_case, h, i);
        }
      }
      touched = touched && h < 2;
      spoiled += touched;
      const double* row = &ours.output[static_cast<std::size_t>(((4 + h) * 70 + i) * 32)];
      ASSERT_EQ(std::isfinite(row[0]), !touched) << "head " << h << " row " << i;
      for (int c = 1; c < 32; ++c) ASSERT_TRUE(std::isfinite(row[c])) << "head " << h << " row " << i;
    }
    if (h < 2) {
      ASSERT_GT(spoiled, 0) << "nothing was tested";
    }
  }
}

TEST_P(NonFinite, GradientsOfRowsThatSeeNothingBadAreUntouched) {
  AttentionCase test_case = make_case(0.8);
  const Results clean = run(test_case, Implementation::kOperator, true);
  test_case.q.back().set(1, 3, 20, 7, GetParam().value);
  const Results spoiled = run(test_case, Implementation::kOperator, true);
  const auto view = test_case.q.size() - 1;
  for (std::size_t row = 0; row < 2 * 4 * 70; ++row) {
    const bool bad = row == (4 + 3) * 70 + 20;
    for (std::size_t c = row * 32; c < (row + 1) * 32; ++c) {
      if (bad) {
        ASSERT_TRUE(std::isnan(spoiled.dq[view][c])) << "the gradient of the spoiled row must not look sound";
      } else {
        ASSERT_EQ(spoiled.dq[view][c], clean.dq[view][c]) << "row " << row;
      }
    }
  }
  // Keys of another batch or key head, and keys that the spoiled row (position 25) does not see.
  for (std::size_t row = 0; row < 2 * 2 * 75; ++row) {
    if (row / 75 == 3 && row % 75 <= 25) continue;
    for (std::size_t c = row * 32; c < (row + 1) * 32; ++c) {
      ASSERT_EQ(spoiled.dk[view][c], clean.dk[view][c]) << "row " << row;
      ASSERT_EQ(spoiled.dv[c], clean.dv[c]) << "row " << row;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, NonFinite,
    testing::Values(Poison{DataType::kFloat32, 1, true, std::nan("")}, Poison{DataType::kFloat32, 2, true, kInf},
                    Poison{DataType::kFloat32, 1, false, -kInf}, Poison{DataType::kFloat32, 2, false, std::nan("")},
                    Poison{DataType::kBFloat16, 1, true, kInf}, Poison{DataType::kBFloat16, 2, true, std::nan("")},
                    Poison{DataType::kBFloat16, 2, false, -kInf}, Poison{DataType::kFloat16, 1, true, std::nan("")},
                    Poison{DataType::kFloat16, 2, false, kInf}, Poison{DataType::kFloat64, 1, true, -kInf},
                    Poison{DataType::kFloat64, 2, false, kInf}));

TEST(ZeroVectors, ScoreZeroEverywhere) {
  for (const double beta : {0.5, 0.0, -0.5}) {
    for (const DataType type : {DataType::kFloat32, DataType::kBFloat16, DataType::kFloat16, DataType::kFloat64}) {
      if (!operator_takes(type)) continue;
      std::mt19937_64 random(9);
      AttentionOptions options;
      options.data_type = type;
      AttentionCase test_case({1, 1, 1, 40, 40, 16, 16}, options, {}, random);
      test_case.beta = {beta};
      for (std::int64_t c = 0; c < 16; ++c) {
        test_case.q[0].set(0, 0, 11, c, 0.0);
        test_case.k[0].set(0, 0, 6, c, 0.0);
      }
      const Results ours = run(test_case, Implementation::kOperator, false);
      const Results reference = run(test_case.in_double(), Implementation::kReference, false);
      EXPECT_TRUE(follows_rule(type, ours.output, reference.output, run_naive(test_case).results.output))
          << "beta " << beta;
      EXPECT_EQ(ours.survivors[11], beta < 0 ? 12 : 0);
    }
  }
}

}  // namespace
}  // namespace tda::test
