#include "lm/model/normalization.h"

#include <ATen/ATen.h>

namespace tda {
namespace {

constexpr double kLayerNormEps = 1e-5;

at::Tensor rms_normalize(const at::Tensor& x, double eps) { return x * (x.square().mean(-1, true) + eps).rsqrt(); }

}  // namespace

at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& gain, at::ScalarType type) {
  return at::layer_norm(x, gain.sizes(), gain, {}, kLayerNormEps).to(type);
}

at::Tensor head_rms_norm(const at::Tensor& u, const at::Tensor& gain, double eps) {
  const auto rows = u.transpose(1, 2);
  const auto wide = u.scalar_type() == at::kDouble ? rows : rows.to(at::kFloat);
  return (rms_normalize(wide, eps) * gain).to(u.dtype()).flatten(2);
}

at::Tensor joint_rms_norm(const at::Tensor& u, const at::Tensor& gain, double eps) {
  const auto rows = u.transpose(1, 2).flatten(2);
  const auto wide = u.scalar_type() == at::kDouble ? rows : rows.to(at::kFloat);
  return (rms_normalize(wide, eps) * gain).to(u.dtype());
}

}  // namespace tda
