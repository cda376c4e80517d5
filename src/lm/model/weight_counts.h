// Counting exact zeros of attention maps.
#pragma once

#include <ATen/core/Tensor.h>

#include "lm/model/attention_mechanism.h"

namespace tda {

// From survivors per row, integer (B, H, T_q), where row i sees T_k - T_q + i + 1 keys.
WeightCounts count_from_survivors(const at::Tensor& survivors, std::int64_t key_length);

// From a dense map (B, H, T_q, T_k) that is 0 above the diagonal.
WeightCounts count_from_map(const at::Tensor& map);

}  // namespace tda
