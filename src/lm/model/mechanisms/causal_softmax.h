// Causal softmax attention, the core of every mechanism that changes its queries, its output or its number of views.
#pragma once

#include <ATen/core/Tensor.h>

namespace tda {

// P = softmax(q k^T / sqrt(D)) over the keys that each row sees, P v. q: (B, H, T_q, D), k: (B, H, T_k, D),
// v: (B, H, T_k, D_v) with D_v a multiple of D; queries are the last T_q positions. Returns (B, H, T_q, D_v) in the
// dtype of v. Runs on scaled_dot_product_attention.
at::Tensor causal_softmax(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v);

// P itself, for analysis: (B, H, T_q, T_k), fp32 unless fp64 comes in.
at::Tensor causal_softmax_map(const at::Tensor& q, const at::Tensor& k);

// The dtype that causal_softmax wants: on the CPU, SDPA in bf16 is slower than in fp32 at the lengths of small models
// (docs/experiments/2026-11-22-training-step.md).
at::ScalarType causal_softmax_type(at::ScalarType compute, at::Device device);

}  // namespace tda
