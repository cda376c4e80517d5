#include "lm/model/mechanisms/rectified_map.h"

#include <ATen/ATen.h>

namespace tda {
namespace {

constexpr double kSmallestNorm = 1e-12;

at::Tensor unit(const at::Tensor& x) { return x / x.norm(2, -1, true).clamp_min(kSmallestNorm); }

}  // namespace

at::Tensor rectified_map(const at::Tensor& q, const at::Tensor& k, const at::Tensor& beta,
                         const ThresholdOptions& options) {
  auto queries = q.to(at::kFloat), keys = k.to(at::kFloat);
  if (options.normalize) {
    queries = unit(queries);
    keys = unit(keys);
  }
  const std::int64_t query_length = q.size(2), key_length = k.size(2);
  const auto position = at::arange(key_length - query_length, key_length, queries.options());
  const auto c = (((position + 1) / options.kappa).log().clamp_min(0) * (2.0 / static_cast<double>(q.size(3)))).sqrt();
  const auto tau = beta.to(at::kFloat).reshape({-1, 1, 1}) * c.unsqueeze(-1);
  const auto excess = (at::matmul(queries, keys.transpose(-1, -2)) - tau).clamp_min(0).tril(key_length - query_length);
  return options.power == 1.0 ? excess : excess.pow(options.power);
}

}  // namespace tda
