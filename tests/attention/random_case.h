// Random cases of the operator's whole contract, a pure function of a seed.
#pragma once

#include "attention_case.h"

namespace tda::test {

// Draws shape, storage, data type, options, beta, lambda and inputs. Among the inputs: keys that follow queries (many
// survivors), zero vectors, rows scaled by powers of ten.
AttentionCase random_case(std::uint64_t seed);

// Redraws query rows until no score lies within the survival band around its threshold. Below p = 2 the gradient jumps
// (p = 1) or has infinite slope (1 < p < 2) there, so no rounding rule can hold inside. Returns false when some row
// could not be freed.
bool keep_scores_off_thresholds(AttentionCase& test_case, std::mt19937_64& random);

}  // namespace tda::test
