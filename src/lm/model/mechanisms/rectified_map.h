// The dense map of one rectified view, for analysis.
#pragma once

#include <ATen/core/Tensor.h>

#include "torch/threshold_attention.h"

namespace tda {

// a_ij = max(0, s_ij - beta_h c_i)^p for j <= i, 0 above the diagonal; definition: include/tda/attention.h.
// q: (B, H, T_q, D), k: (B, H, T_k, D), beta: 0-d or (H). Returns fp32 (B, H, T_q, T_k).
at::Tensor rectified_map(const at::Tensor& q, const at::Tensor& k, const at::Tensor& beta,
                         const ThresholdOptions& options);

}  // namespace tda
