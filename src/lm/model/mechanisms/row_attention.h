// Attention whose weights are a function of one row of scores: p_i = f(z_i), z_ij = <q_i, k_j> over the keys that row i
// sees, output p v: entmax, LSSAR, softpick.
//
// Rows are taken in blocks with all their keys, so that memory grows with T and not with T^2, forward and backward. A
// whole row is at hand because entmax looks for its threshold in several passes over it: with keys in blocks each pass
// would compute the scores anew. Between forward and backward only q, k, v and a few numbers a row are kept.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/custom_class.h>

#include <optional>

#include "lm/model/cuda/row_formula.h"

namespace tda {

// Some rows of every head, R of them, with the N keys that the last of them sees. G = B*H.
struct RowBlock {
  at::Tensor scores;   // (G, R, N), fp32 or fp64; RowMap::hidden_score() at keys that a row does not see
  at::Tensor visible;  // (R, 1): how many keys each row sees
};

// The function f, in three parts. All are plain tensor operations without autograd, on any device. Where there is a
// formula for a CUDA kernel (row_kernel.h), they are its readable twin.
class RowMap : public torch::CustomClassHolder {
 public:
  // The score at which a key has weight 0 and no part in any sum over its row.
  virtual double hidden_score() const = 0;
  // What a row must know of all its keys, (G, R, S). Kept for the backward pass.
  virtual at::Tensor statistics(const RowBlock& block) const = 0;
  // p, (G, R, N).
  virtual at::Tensor weights(const RowBlock& block, const at::Tensor& statistics) const = 0;
  // dL/dz of p and dL/dp; what it holds at keys that a row does not see is ignored.
  virtual at::Tensor score_gradient(const RowBlock& block, const at::Tensor& statistics, const at::Tensor& weights,
                                    const at::Tensor& d_weights) const = 0;
  // The same function as a kernel is given it.
  virtual std::optional<RowFormula> formula() const { return std::nullopt; }
};

using RowMapPointer = c10::intrusive_ptr<RowMap>;

// q: (B, H, T_q, D), k: (B, H, T_k, D), v: (B, H, T_k, D_v); queries are the last T_q positions. No factor is applied
// to the scores: it belongs into q. Computes in fp32 (fp64 in fp64) and returns (B, H, T_q, D_v) in the dtype of v.
// Differentiable once in q, k and v; gradients repeat bit for bit.
at::Tensor row_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const RowMapPointer& map);

// p, dense, for analysis: (B, H, T_q, T_k).
at::Tensor row_attention_map(const at::Tensor& q, const at::Tensor& k, const RowMap& map);

// x^power for x >= 0, with 0^0 = 0: the derivative of a rectifier is 0 where it is closed. May return x itself.
at::Tensor rectified_power(const at::Tensor& x, double power);

}  // namespace tda
