#include "lm/analysis/map_statistics.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <stdexcept>

namespace tda {
namespace {

// |weights| in float64 with everything above the diagonal set to 0. A float64 copy keeps every non-zero float32
// non-zero.
at::Tensor causal_magnitudes(const at::Tensor& weights) {
  if (weights.dim() != 4 || weights.size(2) != weights.size(3) || weights.numel() == 0 ||
      !at::isFloatingType(weights.scalar_type())) {
    throw std::invalid_argument(fmt::format("weights: expected a floating (B, H, T, T) map, got {} of shape ({})",
                                            at::toString(weights.scalar_type()), fmt::join(weights.sizes(), ", ")));
  }
  return weights.detach().to(at::kDouble).abs().tril();
}

// 1, 2, ..., T: the number of keys that row i sees.
at::Tensor visible_keys(const at::Tensor& magnitudes) {
  return at::arange(1, magnitudes.size(3) + 1, magnitudes.options());
}

at::Tensor survivors(const at::Tensor& magnitudes) { return magnitudes.ne(0).sum(-1).to(at::kDouble); }

// Mean over instances and rows of a (B, H, rows) tensor.
at::Tensor mean_per_head(const at::Tensor& per_row) { return per_row.mean(at::IntArrayRef{0, 2}); }

// The rows divided by their sums; empty rows stay 0.
at::Tensor distributions(const at::Tensor& magnitudes) {
  const at::Tensor sums = magnitudes.sum(-1, /*keepdim=*/true);
  return magnitudes / sums.masked_fill(sums == 0, 1.0);
}

at::Tensor exact_zero_share_of(const at::Tensor& magnitudes) {
  const double rows = static_cast<double>(magnitudes.size(2));
  return 1.0 - survivors(magnitudes).sum(-1).mean(0) / (rows * (rows + 1) / 2);
}

at::Tensor empty_row_share_of(const at::Tensor& magnitudes) {
  return mean_per_head(survivors(magnitudes).eq(0).to(at::kDouble));
}

at::Tensor sink_ratio_of(const at::Tensor& magnitudes, int64_t key) {
  const int64_t rows = magnitudes.size(2);
  if (key < 1 || key > rows) {
    throw std::invalid_argument(fmt::format("key: expected 1 to T = {}, got {}", rows, key));
  }
  const at::Tensor share = distributions(magnitudes).select(-1, key - 1).slice(-1, key - 1, rows);
  const at::Tensor uniform = visible_keys(magnitudes).slice(0, key - 1, rows).reciprocal().mean();
  return mean_per_head(share) / uniform;
}

at::Tensor effective_entropy_of(const at::Tensor& magnitudes) {
  const int64_t rows = magnitudes.size(2);
  if (rows < 2) {
    throw std::invalid_argument("weights: the entropy ratio needs at least two positions, got 1");
  }
  // xlogy(0, 0) = 0, as the limit wants.
  const at::Tensor p = distributions(magnitudes);
  const at::Tensor entropy = -at::xlogy(p, p).sum(-1);
  const at::Tensor ratio = entropy.slice(-1, 1, rows) / visible_keys(magnitudes).slice(0, 1, rows).log();
  return mean_per_head(ratio);
}

}  // namespace

at::Tensor exact_zero_share(const at::Tensor& weights) { return exact_zero_share_of(causal_magnitudes(weights)); }

at::Tensor empty_row_share(const at::Tensor& weights) { return empty_row_share_of(causal_magnitudes(weights)); }

at::Tensor survivors_per_row(const at::Tensor& weights) { return mean_per_head(survivors(causal_magnitudes(weights))); }

at::Tensor sink_ratio(const at::Tensor& weights, int64_t key) { return sink_ratio_of(causal_magnitudes(weights), key); }

at::Tensor effective_entropy(const at::Tensor& weights) { return effective_entropy_of(causal_magnitudes(weights)); }

MapStatistics map_statistics(const at::Tensor& weights) {
  const at::Tensor magnitudes = causal_magnitudes(weights);
  return {exact_zero_share_of(magnitudes), empty_row_share_of(magnitudes), mean_per_head(survivors(magnitudes)),
          sink_ratio_of(magnitudes, 1), effective_entropy_of(magnitudes)};
}

}  // namespace tda
