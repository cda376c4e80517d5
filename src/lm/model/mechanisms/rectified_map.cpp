#include "lm/model/mechanisms/rectified_map.h"

#include <ATen/ATen.h>

#include <cmath>

#include "lm/model/accumulation_type.h"
#include "lm/model/mechanisms/causal_positions.h"
#include "lm/model/mechanisms/unit_vectors.h"

namespace tda {

at::Tensor rectified_map(const at::Tensor& q, const at::Tensor& k, const at::Tensor& beta,
                         const ThresholdOptions& options) {
  auto queries = widened(q), keys = widened(k);
  if (options.normalize) {
    queries = unit_vectors(queries);
    keys = unit_vectors(keys);
  }
  const auto n = visible_keys(q, k);
  const auto c = ((n / options.kappa).log().clamp_min(0) * (2.0 / static_cast<double>(q.size(3)))).sqrt();
  const auto tau = widened(beta).reshape({-1, 1, 1}) * c.unsqueeze(-1);
  const auto excess = (at::matmul(queries, keys.transpose(-1, -2)) - tau).clamp_min(0).tril(k.size(2) - q.size(2));
  return options.power == 1.0 ? excess : excess.pow(options.power);
}

at::Tensor scaled_rectified_map(const at::Tensor& q, const at::Tensor& k) {
  const auto zero = at::zeros({}, q.options().dtype(at::kFloat));
  return rectified_map(q, k, zero, kUnscaledRectifier) / std::sqrt(static_cast<double>(q.size(3)));
}

}  // namespace tda
