// The slow twin with rounding: the formula of the operator as a tensor library would compute it in the input's data
// type. Norms, unit vectors, scores, weights, products and gradients are each rounded to that type; sums run in fp32
// (fp64 for fp64). How far it strays from the reference is what a kernel is allowed to stray, times two.
#pragma once

#include "attention_case.h"

namespace tda::test {

struct NaiveResults {
  Results results;
  // Sum over pairs of |pair's term of dbeta (dlambda), rounded - exact|, per head. A head has one number only, whose
  // rounding errors may cancel by luck; this is its error without that luck.
  std::vector<double> dbeta_error, dlambda_error;
};

NaiveResults run_naive(const AttentionCase& test_case);

}  // namespace tda::test
