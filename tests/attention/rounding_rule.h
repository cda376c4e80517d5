// How far an implementation may stray from the reference: the rule of flash-attention's tests.
#pragma once

#include <gtest/gtest.h>

#include "naive_attention.h"
#include "naive_error.h"

namespace tda::test {

// max|ours - reference| <= 2 max|naive - reference| + floor, floor = 2 max|((reference + 0.3) - 0.3) - reference| with
// each step rounded to `type`: the noise of one addition. NaN must stand exactly where the reference has NaN.
testing::AssertionResult follows_rule(DataType type, const std::vector<double>& ours,
                                      const std::vector<double>& reference, const std::vector<double>& naive);

// The same with a naive error that is already known.
testing::AssertionResult follows_rule(DataType type, const std::vector<double>& ours,
                                      const std::vector<double>& reference, double naive_error);

// Output, and every gradient that both hold.
void expect_follows_rule(const AttentionCase& test_case, const Results& ours, const Results& reference,
                         const NaiveError& naive);

// Half the width of the band around tau inside which rounding may decide whether a pair survives, for scores of unit
// vectors: 1.5e-3 (bf16), 2e-4 (fp16), 1e-5 (fp32), 1e-12 (fp64) at head_dim 64. The rounding errors of a score add up
// like 1/sqrt(head_dim), but never beyond the bound |error| <= 3 units in the last place of 1 (q, k and the score).
double survival_band(DataType type, std::int64_t head_dim);

}  // namespace tda::test
