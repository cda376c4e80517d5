// Which pairs may be counted as survivors.
#pragma once

#include "attention_case.h"

namespace tda::test {

// Survivors of a row are certain outside the band around tau; inside it rounding may decide either way. `survivors` is
// contiguous (batch, query_heads, query_length).
void expect_survivors(const AttentionCase& test_case, const std::vector<std::int32_t>& survivors);

}  // namespace tda::test
