// Norms with fp32 statistics whose result is in the compute dtype.
#pragma once

#include <ATen/core/Tensor.h>

namespace tda {

// LayerNorm without bias over the last dimension, eps 1e-5. x: fp32 (..., W); gain: fp32 (W). Returns `type`.
at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& gain, at::ScalarType type);

// RMSNorm of every head: u (B, H, T, D) of any strides, gain fp32 (H, D) -> (B, T, H*D) in the dtype of u.
at::Tensor head_rms_norm(const at::Tensor& u, const at::Tensor& gain, double eps);

// One RMSNorm over all heads together: u (B, H, T, D), gain fp32 (H*D) -> (B, T, H*D) in the dtype of u.
at::Tensor joint_rms_norm(const at::Tensor& u, const at::Tensor& gain, double eps);

}  // namespace tda
