// Norms with fp32 statistics whose result is in the compute dtype, differentiable.
//
// On the CPU each is one pass over memory forward and one backward, bitwise repeatable whatever the number of threads.
#pragma once

#include <ATen/core/Tensor.h>

namespace tda {

struct ResidualNorm {
  at::Tensor sum;         // fp32: x + delta
  at::Tensor normalized;  // LayerNorm(sum)
};

// The step from one block to the next. x: fp32 (B, T, W); delta: (B, T, W) in `type`, or undefined for zero; gain: fp32
// (W). LayerNorm is without bias, eps 1e-5; `normalized` is in `type`.
ResidualNorm add_layer_norm(const at::Tensor& x, const at::Tensor& delta, const at::Tensor& gain, at::ScalarType type);

// RMSNorm of every head: u (B, H, T, D) with unit last stride, gain fp32 (H, D) -> (B, T, H*D) in the dtype of u.
at::Tensor head_rms_norm(const at::Tensor& u, const at::Tensor& gain, double eps);

// One RMSNorm over all heads together: u (B, H, T, D), gain fp32 (H*D) -> (B, T, H*D) in the dtype of u.
at::Tensor joint_rms_norm(const at::Tensor& u, const at::Tensor& gain, double eps);

// One LayerNorm without bias over all heads together; shapes as joint_rms_norm.
at::Tensor joint_layer_norm(const at::Tensor& u, const at::Tensor& gain, double eps);

}  // namespace tda
