// The operator against the reference on random cases of the whole contract.
//
// TDA_GRID_CASES sets the number of cases (1,200 by default); slow builds use fewer.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

#include "operator_under_test.h"
#include "random_case.h"
#include "rounding_rule.h"
#include "survivor_rule.h"

namespace tda::test {
namespace {

constexpr int kShards = 60;

int cases_per_shard() {
  const char* wanted = std::getenv("TDA_GRID_CASES");
  const int cases = wanted ? std::atoi(wanted) : 1200;
  return std::max(1, cases / kShards);
}

class OperatorGrid : public testing::TestWithParam<int> {};

TEST_P(OperatorGrid, FollowsTheReference) {
  for (int i = 0; i < cases_per_shard() && !HasFailure(); ++i) {
    const std::uint64_t seed = static_cast<std::uint64_t>(i) * kShards + static_cast<std::uint64_t>(GetParam());
    AttentionCase test_case = random_case(seed);
    if (!operator_takes(test_case.options.data_type)) continue;
    std::mt19937_64 random(seed + 1'000'000'000);
    const bool gradients = test_case.options.power >= 2.0 || keep_scores_off_thresholds(test_case, random);
    SCOPED_TRACE("seed " + std::to_string(seed) + ": " + test_case.describe());
    const Results ours = run(test_case, Implementation::kOperator, gradients);
    const Results reference = run(test_case.in_double(), Implementation::kReference, gradients);
    expect_follows_rule(test_case, ours, reference, measure_naive_error(test_case, reference));
    EXPECT_TRUE(ours.gaps_untouched) << "memory outside the outputs was written";
    expect_survivors(test_case, ours.survivors);
  }
}

INSTANTIATE_TEST_SUITE_P(Shard, OperatorGrid, testing::Range(0, kShards));

// Below p = 2 a case whose scores cannot be moved off the thresholds tests the output only. That must stay rare, or the
// gradients of p = 1 would go untested without anybody noticing.
TEST(OperatorGridCoverage, NearlyEveryCaseTestsGradients) {
  const int cases = cases_per_shard() * kShards;
  int without = 0, below_two = 0;
  for (int seed = 0; seed < cases; ++seed) {
    AttentionCase test_case = random_case(static_cast<std::uint64_t>(seed));
    if (test_case.options.power >= 2.0) continue;
    ++below_two;
    std::mt19937_64 random(static_cast<std::uint64_t>(seed) + 1'000'000'000);
    without += !keep_scores_off_thresholds(test_case, random);
  }
  RecordProperty("cases", cases);
  RecordProperty("below_two", below_two);
  RecordProperty("without_gradients", without);
  EXPECT_LE(without * 4, below_two) << without << " of " << below_two << " cases with p < 2 test no gradient";
}

}  // namespace
}  // namespace tda::test
