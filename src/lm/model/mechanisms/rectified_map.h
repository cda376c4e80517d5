// The dense map of one rectified view, for analysis.
#pragma once

#include <ATen/core/Tensor.h>

#include "torch/threshold_attention.h"

namespace tda {

// a_ij = max(0, s_ij - beta_h c_i)^p for j <= i, 0 above the diagonal; definition: include/tda/attention.h.
// q: (B, H, T_q, D), k: (B, H, T_k, D), beta: 0-d or (H). Returns (B, H, T_q, T_k), fp32 unless fp64 comes in.
at::Tensor rectified_map(const at::Tensor& q, const at::Tensor& k, const at::Tensor& beta,
                         const ThresholdOptions& options);

// With beta = 0 the threshold is 0 and the operator is ReLU(q k^T) v.
inline const ThresholdOptions kUnscaledRectifier{.kappa = 1.0, .power = 1.0, .normalize = false};

// max(0, q k^T / sqrt(D)), the weights of ReLA.
at::Tensor scaled_rectified_map(const at::Tensor& q, const at::Tensor& k);

}  // namespace tda
