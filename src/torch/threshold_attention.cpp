#include "torch/threshold_attention.h"

#include <ATen/ATen.h>

#include <cmath>

namespace tda {
namespace {

at::Tensor unit(const at::Tensor& x) { return x / x.norm(2, -1, true).clamp_min(1e-12); }

at::Tensor weights(const at::Tensor& q, const at::Tensor& k, const at::Tensor& beta, const ThresholdOptions& o) {
  const auto query_length = q.size(2), key_length = k.size(2), dim = q.size(3);
  const auto group = q.size(1) / k.size(1);
  const auto keys = (o.normalize ? unit(k) : k).repeat_interleave(group, 1);
  const auto scores = at::matmul(o.normalize ? unit(q) : q, keys.transpose(-1, -2));
  const auto position = at::arange(key_length - query_length, key_length, scores.options());
  const auto c = (((position + 1) / o.kappa).log().clamp_min(0) * (2.0 / static_cast<double>(dim))).sqrt();
  const auto tau = beta.reshape({-1, 1, 1}).to(scores.dtype()) * c.reshape({1, -1, 1});
  const auto r = at::tril((scores - tau).clamp_min(0), key_length - query_length);
  return o.power == 1.0 ? r : r.pow(o.power);
}

}  // namespace

at::Tensor threshold_rela(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& beta,
                          const ThresholdOptions& o) {
  return at::matmul(weights(q, k, beta, o), v.repeat_interleave(q.size(1) / v.size(1), 1));
}

at::Tensor differential_threshold_rela(const at::Tensor& q1, const at::Tensor& k1, const at::Tensor& q2,
                                       const at::Tensor& k2, const at::Tensor& v, const at::Tensor& lambda,
                                       const at::Tensor& beta, const ThresholdOptions& o) {
  const auto l = lambda.clamp(0, 1).reshape({-1, 1, 1}).to(q1.dtype());
  const auto a = weights(q1, k1, beta, o) - l * weights(q2, k2, beta, o);
  return at::matmul(a, v.repeat_interleave(q1.size(1) / v.size(1), 1));
}

}  // namespace tda
