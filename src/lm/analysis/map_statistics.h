// Numbers that describe causal attention maps: how many weights are exactly zero, how many rows are empty, how much
// goes to the first token, how spread the rest is.
//
// Every function takes `weights` of shape (B, H, T, T): B instances, H heads, query i in the third and key j in the
// last dimension, any floating type, signed or not. Only the causal pairs j <= i are read; what stands above the
// diagonal never counts, because a mask is no property of a mechanism (counted over all T*T entries, a softmax would be
// called 50 % sparse). Results are float64 of shape (H), the mean over instances. A map that is not 4-dimensional and
// square, or an empty one, throws std::invalid_argument.
//
// Give them weights in float32 or float64: in half precision a softmax underflows to exact zeros of its own.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace tda {

// Share of causal pairs with a weight of exactly 0, in [0, 1]; T(T+1)/2 pairs each.
at::Tensor exact_zero_share(const at::Tensor& weights);

// Share of rows without any non-zero weight, in [0, 1].
at::Tensor empty_row_share(const at::Tensor& weights);

// Mean number of non-zero weights in a row.
at::Tensor survivors_per_row(const at::Tensor& weights);

// gSinkRatio(k), k counted from 1: the mean over rows i >= k of |A_ik| / sum_t |A_it|, divided by the same mean for
// uniform attention (1/i). 1 means as much as uniform attention gives to that key; an empty row counts as 0 and stays
// in the mean.
at::Tensor sink_ratio(const at::Tensor& weights, int64_t key = 1);

// Mean over rows with at least two visible keys of H_i / ln(i), H_i the entropy (nats) of |a_i| / sum |a_i| and i the
// number of visible keys. 1: spread evenly over all keys; 0: one key or an empty row. T >= 2.
at::Tensor effective_entropy(const at::Tensor& weights);

struct MapStatistics {
  at::Tensor sparsity;
  at::Tensor empty_rows;
  at::Tensor survivors_per_row;
  at::Tensor sink_ratio;  // k = 1
  at::Tensor effective_entropy;
};

// All of the above in one pass. T >= 2.
MapStatistics map_statistics(const at::Tensor& weights);

}  // namespace tda
