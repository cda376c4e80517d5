// How far the naive twin strays from the reference on one case: the yardstick of the rounding rule.
//
// The largest error of a tensor with few elements, or with few survivors, is a matter of luck: a draw may come out
// several times too small. Small cases are therefore drawn again with v and d_output (and, where that moves no score
// across its threshold, q and k) times 1.125 to 1.875, which rounds everything anew; the largest error counts.
#pragma once

#include "attention_case.h"

namespace tda::test {

struct NaiveError {
  double output = 0.0, dv = 0.0, dbeta = 0.0, dlambda = 0.0;
  double dq[2] = {0.0, 0.0}, dk[2] = {0.0, 0.0};
};

// `reference` is the reference's result for the case itself, with gradients or without.
NaiveError measure_naive_error(const AttentionCase& test_case, const Results& reference);

}  // namespace tda::test
