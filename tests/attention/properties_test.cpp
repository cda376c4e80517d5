// What follows from the definition, whatever the numbers: checked on the operator in every data type.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/reference/element_conversion.h"
#include "attention/reference/reference_attention.h"
#include "operator_under_test.h"
#include "rounding_rule.h"

namespace tda::test {
namespace {

const DataType kTypes[] = {DataType::kFloat32, DataType::kBFloat16, DataType::kFloat16, DataType::kFloat64};

AttentionCase make_case(DataType type, int views, const AttentionShape& shape, double beta, std::uint64_t seed = 7) {
  std::mt19937_64 random(seed);
  AttentionOptions options;
  options.data_type = type;
  options.views = views;
  options.threads = 2;
  AttentionCase test_case(shape, options, {}, random);
  for (std::size_t h = 0; h < test_case.beta.size(); ++h) {
    test_case.beta[h] = round_to(DataType::kFloat32, beta + 0.05 * static_cast<double>(h));
    test_case.lambda[h] = round_to(DataType::kFloat32, 0.3 + 0.1 * static_cast<double>(h));
  }
  return test_case;
}

double unit_roundoff(DataType type) {
  return type == DataType::kFloat64   ? 0x1p-53
         : type == DataType::kFloat32 ? 0x1p-24
         : type == DataType::kFloat16 ? 0x1p-11
                                      : 0x1p-8;
}

class Properties : public testing::TestWithParam<std::tuple<DataType, int>> {
 protected:
  void SetUp() override {
    if (!operator_takes(type())) GTEST_SKIP() << "the device has no such data type";
  }
  DataType type() const { return std::get<0>(GetParam()); }
  int views() const { return std::get<1>(GetParam()); }
};

// Scaling q_i changes nothing, so its gradient is orthogonal to it; likewise k_j.
TEST_P(Properties, GradientsAreOrthogonalToTheirVectors) {
  const AttentionCase test_case = make_case(type(), views(), {2, 3, 3, 70, 70, 64, 64}, 0.4);
  const Results results = run(test_case, Implementation::kOperator, true);
  for (int view = 0; view < views(); ++view) {
    for (const auto& [x, dx] : {std::pair{test_case.q[static_cast<std::size_t>(view)].values(), results.dq[view]},
                                std::pair{test_case.k[static_cast<std::size_t>(view)].values(), results.dk[view]}}) {
      double largest = 0.0;
      for (double g : dx) largest = std::max(largest, std::fabs(g));
      ASSERT_GT(largest, 0.0);
      for (std::size_t row = 0; row < x.size(); row += 64) {
        double dot = 0.0, norm = 0.0;
        for (std::size_t c = row; c < row + 64; ++c) {
          dot += x[c] * dx[c];
          norm += x[c] * x[c];
        }
        // Each of the 64 products carries at most a few roundings of the largest gradient.
        EXPECT_LE(std::fabs(dot), 64.0 * 4.0 * unit_roundoff(type()) * std::sqrt(norm) * largest / 8.0);
      }
    }
  }
}

TEST_P(Properties, ScalingQueriesAndKeysByPowersOfTwoChangesNothing) {
  const AttentionCase test_case = make_case(type(), views(), {1, 2, 2, 65, 65, 64, 64}, 0.5);
  AttentionCase scaled = test_case;
  const double factor = type() == DataType::kFloat16 ? 0x1p-4 : 0x1p30;
  for (auto* buffers : {&scaled.q, &scaled.k}) {
    for (TensorBuffer& buffer : *buffers) {
      for (std::int64_t h = 0; h < 2; ++h) {
        for (std::int64_t t = 0; t < 65; ++t) {
          for (std::int64_t c = 0; c < 64; ++c) buffer.set(0, h, t, c, buffer.get(0, h, t, c) * factor);
        }
      }
    }
  }
  const Results ours = run(scaled, Implementation::kOperator, false);
  const Results expected = run(test_case, Implementation::kOperator, false);
  // fp16 loses bits of small elements when they become subnormal.
  if (type() != DataType::kFloat16) {
    EXPECT_EQ(ours.output, expected.output);
  }
  const Results reference = run(scaled.in_double(), Implementation::kReference, false);
  EXPECT_TRUE(follows_rule(type(), ours.output, reference.output, run_naive(scaled).results.output));
}

TEST_P(Properties, FutureKeysChangeNothing) {
  for (const double beta : {0.5, -0.5}) {
    AttentionCase test_case = make_case(type(), views(), {1, 2, 1, 67, 67, 32, 32}, beta);
    const AttentionCase unchanged = test_case;
    const Results before = run(test_case, Implementation::kOperator, false);
    constexpr std::int64_t first_changed = 41;
    for (std::int64_t t = first_changed; t < 67; ++t) {
      for (std::int64_t c = 0; c < 32; ++c) {
        for (TensorBuffer& k : test_case.k) k.set(0, 0, t, c, t % 2 ? std::nan("") : 3.0);
        test_case.v[0].set(0, 0, t, c, std::numeric_limits<double>::infinity());
      }
    }
    const Results after = run(test_case, Implementation::kOperator, false);
    if (type() == DataType::kBFloat16) {
      // A tile full of survivors rounds its weights to bf16, a nearly empty one does not; so rows that share a tile
      // with changed ones may be rounded otherwise, within the rule.
      const Results reference = run(unchanged.in_double(), Implementation::kReference, false);
      const Results naive = run_naive(unchanged).results;
      for (std::size_t h = 0; h < 2; ++h) {
        const auto rows = [&](const std::vector<double>& output) {
          const auto first = output.begin() + static_cast<std::ptrdiff_t>(h * 67 * 32);
          return std::vector<double>(first, first + first_changed * 32);
        };
        EXPECT_TRUE(follows_rule(type(), rows(after.output), rows(reference.output), rows(naive.output)));
      }
      continue;
    }
    for (std::size_t h = 0; h < 2; ++h) {
      for (std::size_t i = 0; i < first_changed * 32; ++i) {
        ASSERT_EQ(after.output[h * 67 * 32 + i], before.output[h * 67 * 32 + i]) << "row " << i / 32;
      }
    }
  }
}

TEST_P(Properties, LastRowsEqualThoseOfTheWholeSequence) {
  const AttentionCase whole = make_case(type(), views(), {1, 2, 2, 80, 80, 64, 64}, 0.5);
  for (const std::int64_t rows : {1, 5, 64}) {
    AttentionCase last = make_case(type(), views(), {1, 2, 2, rows, 80, 64, 64}, 0.5);
    last.k = whole.k;
    last.v = whole.v;
    for (std::size_t view = 0; view < whole.q.size(); ++view) {
      for (std::int64_t h = 0; h < 2; ++h) {
        for (std::int64_t i = 0; i < rows; ++i) {
          for (std::int64_t c = 0; c < 64; ++c) {
            last.q[view].set(0, h, i, c, whole.q[view].get(0, h, 80 - rows + i, c));
          }
        }
      }
    }
    const std::vector<double> reference = run(whole.in_double(), Implementation::kReference, false).output;
    std::vector<double> expected;
    for (std::int64_t h = 0; h < 2; ++h) {
      expected.insert(expected.end(), reference.begin() + (h * 80 + 80 - rows) * 64,
                      reference.begin() + (h + 1) * 80 * 64);
    }
    const std::vector<double> ours = run(last, Implementation::kOperator, false).output;
    EXPECT_TRUE(follows_rule(type(), ours, expected, run_naive(last).results.output)) << rows << " rows";
  }
}

TEST_P(Properties, PermutingBatchAndHeadsPermutesTheResults) {
  const AttentionShape shape{3, 2, 2, 50, 50, 32, 64};
  const AttentionCase test_case = make_case(type(), views(), shape, 0.4);
  AttentionCase permuted = test_case;
  const auto permute = [](const TensorBuffer& from, TensorBuffer& to) {
    const auto [B, H, T, D] = from.sizes();
    for (std::int64_t b = 0; b < B; ++b) {
      for (std::int64_t h = 0; h < H; ++h) {
        for (std::int64_t t = 0; t < T; ++t) {
          for (std::int64_t c = 0; c < D; ++c) to.set((b + 1) % B, H - 1 - h, t, c, from.get(b, h, t, c));
        }
      }
    }
  };
  for (std::size_t view = 0; view < test_case.q.size(); ++view) {
    permute(test_case.q[view], permuted.q[view]);
    permute(test_case.k[view], permuted.k[view]);
  }
  permute(test_case.v[0], permuted.v[0]);
  permute(test_case.d_output[0], permuted.d_output[0]);
  std::reverse(permuted.beta.begin(), permuted.beta.end());
  std::reverse(permuted.lambda.begin(), permuted.lambda.end());
  const Results plain = run(test_case, Implementation::kOperator, true);
  const Results moved = run(permuted, Implementation::kOperator, true);
  const auto expect_moved = [&](const std::vector<double>& from, const std::vector<double>& to, std::size_t block) {
    for (std::size_t b = 0; b < 3; ++b) {
      for (std::size_t h = 0; h < 2; ++h) {
        const auto source = from.begin() + static_cast<std::ptrdiff_t>((b * 2 + h) * block);
        const auto target = to.begin() + static_cast<std::ptrdiff_t>((((b + 1) % 3) * 2 + 1 - h) * block);
        EXPECT_TRUE(std::equal(source, source + static_cast<std::ptrdiff_t>(block), target));
      }
    }
  };
  expect_moved(plain.output, moved.output, 50 * 64);
  expect_moved(plain.dv, moved.dv, 50 * 64);
  for (int view = 0; view < views(); ++view) {
    expect_moved(plain.dq[view], moved.dq[view], 50 * 32);
    expect_moved(plain.dk[view], moved.dk[view], 50 * 32);
  }
}

TEST_P(Properties, RunsAreBitwiseRepeatable) {
  const AttentionCase test_case = make_case(type(), views(), {2, 4, 2, 130, 130, 64, 64}, 0.3);
  const Results first = run(test_case, Implementation::kOperator, true);
  for (int i = 0; i < 5; ++i) {
    const Results again = run(test_case, Implementation::kOperator, true);
    EXPECT_EQ(again.output, first.output);
    EXPECT_EQ(again.dv, first.dv);
    EXPECT_EQ(again.dbeta, first.dbeta);
    EXPECT_EQ(again.dlambda, first.dlambda);
    EXPECT_EQ(again.survivors, first.survivors);
    for (int view = 0; view < views(); ++view) {
      EXPECT_EQ(again.dq[view], first.dq[view]);
      EXPECT_EQ(again.dk[view], first.dk[view]);
    }
  }
}

// Few threads give whole key heads to one thread each, many split them (src/attention/cpu/backward_plan.h). One head
// holds nearly all survivors, so that two threads do both. 600 keys are more than one strip.
TEST_P(Properties, ThreadCountsChangeNoBit) {
  if (type() == DataType::kFloat64) return;  // the reference has one thread
  for (const AttentionShape& shape :
       {AttentionShape{1, 4, 2, 130, 140, 24, 24}, AttentionShape{1, 3, 3, 590, 600, 16, 32}}) {
    AttentionCase test_case = make_case(type(), views(), shape, 1.0);
    test_case.beta[0] = 0.0;
    test_case.options.threads = 1;
    const Results alone = run(test_case, Implementation::kOperator, true);
    for (const int threads : {2, 3, 16}) {
      test_case.options.threads = threads;
      const Results shared = run(test_case, Implementation::kOperator, true);
      EXPECT_EQ(alone.output, shared.output) << threads << " threads";
      for (int view = 0; view < views(); ++view) {
        EXPECT_EQ(alone.dq[view], shared.dq[view]) << threads << " threads";
        EXPECT_EQ(alone.dk[view], shared.dk[view]) << threads << " threads";
      }
      EXPECT_EQ(alone.dv, shared.dv) << threads << " threads";
      EXPECT_EQ(alone.dbeta, shared.dbeta) << threads << " threads";
      EXPECT_EQ(alone.dlambda, shared.dlambda) << threads << " threads";
    }
  }
}

TEST_P(Properties, EmptyRowsGiveExactZeros) {
  const AttentionCase test_case = make_case(type(), views(), {1, 2, 2, 90, 90, 64, 64}, 50.0);
  const Results results = run(test_case, Implementation::kOperator, true);
  const auto zero_from = [](const std::vector<double>& x, std::size_t skip, std::size_t head) {
    for (std::size_t i = 0; i < x.size(); ++i) {
      if (i % head >= skip && x[i] != 0.0) return false;
    }
    return true;
  };
  // Row 0 has threshold 0 whatever beta is, so it may survive.
  EXPECT_TRUE(zero_from(results.output, 64, 90 * 64));
  EXPECT_TRUE(zero_from(results.dv, 64, 90 * 64));
  for (int view = 0; view < views(); ++view) {
    EXPECT_TRUE(zero_from(results.dq[view], 64, 90 * 64));
    EXPECT_TRUE(zero_from(results.dk[view], 64, 90 * 64));
  }
}

// With v the identity the output is the matrix of weights, so the survivor set itself can be read off.
TEST_P(Properties, SurvivorSetIsExactOutsideTheBand) {
  AttentionCase test_case = make_case(type(), 1, {1, 4, 4, 128, 128, 64, 128}, 0.3);
  for (std::int64_t h = 0; h < 4; ++h) {
    for (std::int64_t j = 0; j < 128; ++j) {
      for (std::int64_t c = 0; c < 128; ++c) test_case.v[0].set(0, h, j, c, j == c ? 1.0 : 0.0);
    }
  }
  const Results ours = run(test_case, Implementation::kOperator, false);
  const AttentionCase wide = test_case.in_double();
  const CaseInputs inputs(wide);
  const double band = survival_band(type(), 64);
  // A weight below the smallest subnormal of the type rounds to zero although the pair survives.
  const double margin = std::max(band, type() == DataType::kFloat16 ? std::sqrt(0x1p-24) : 0.0);
  for (std::int64_t h = 0; h < 4; ++h) {
    const auto scores = reference_scores(wide.shape, wide.options, inputs.get(), 0, 0, h);
    for (std::int64_t i = 0; i < 128; ++i) {
      const double tau = threshold(test_case, h, i);
      for (std::int64_t j = 0; j < 128; ++j) {
        const double score = scores[static_cast<std::size_t>(i * 128 + j)];
        const double weight = ours.output[static_cast<std::size_t>((h * 128 + i) * 128 + j)];
        if (score > tau + margin) {
          ASSERT_GT(weight, 0.0) << "row " << i << " key " << j;
        }
        if (score < tau - margin) {
          ASSERT_EQ(weight, 0.0) << "row " << i << " key " << j;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Types, Properties, testing::Combine(testing::ValuesIn(kTypes), testing::Values(1, 2)));

// The reference reads and writes every data type and layout itself; kernels are compared with its float64 form only.
TEST(Reference, ConvertsEveryTypeAndLayout) {
  for (const DataType type : kTypes) {
    for (const Layout layout : {Layout::kTransposed, Layout::kPaddedRows, Layout::kReversedRows}) {
      std::mt19937_64 random(11);
      AttentionOptions options;
      options.data_type = type;
      options.views = 2;
      AttentionCase test_case({2, 4, 2, 9, 12, 8, 16}, options, {layout, layout, layout, layout}, random);
      test_case.beta.assign(4, 0.25);
      const Results narrow = run(test_case, Implementation::kReference, true);
      const Results wide = run(test_case.in_double(), Implementation::kReference, true);
      EXPECT_TRUE(narrow.gaps_untouched);
      for (std::size_t i = 0; i < wide.output.size(); ++i) ASSERT_EQ(narrow.output[i], round_to(type, wide.output[i]));
      for (std::size_t i = 0; i < wide.dq[1].size(); ++i) ASSERT_EQ(narrow.dq[1][i], round_to(type, wide.dq[1][i]));
      for (std::size_t i = 0; i < wide.dk[0].size(); ++i) ASSERT_EQ(narrow.dk[0][i], round_to(type, wide.dk[0][i]));
      EXPECT_EQ(narrow.survivors, wide.survivors);
    }
  }
}

TEST(ElementConversion, RoundsToNearestEven) {
  EXPECT_EQ(round_to(DataType::kBFloat16, 1.0 + 0x1p-8), 1.0);
  EXPECT_EQ(round_to(DataType::kBFloat16, 1.0 + 3 * 0x1p-8), 1.0 + 0x1p-6);
  EXPECT_EQ(round_to(DataType::kFloat16, 1.0 + 0x1p-11), 1.0);
  EXPECT_EQ(round_to(DataType::kFloat16, 1.0 + 0x1.8p-11), 1.0 + 0x1p-10);
  EXPECT_EQ(round_to(DataType::kFloat16, 65504.0), 65504.0);
  EXPECT_EQ(round_to(DataType::kFloat16, 65520.0), std::numeric_limits<double>::infinity());
  EXPECT_EQ(round_to(DataType::kFloat16, 0x1p-24), 0x1p-24);
  EXPECT_EQ(round_to(DataType::kFloat16, 0x1p-26), 0.0);
  EXPECT_EQ(round_to(DataType::kFloat16, -2.0 + 0x1p-12), -2.0);
  EXPECT_TRUE(std::isnan(round_to(DataType::kBFloat16, std::nan(""))));
}

}  // namespace
}  // namespace tda::test
