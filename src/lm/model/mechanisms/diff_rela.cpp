// Differential ReLA: u = (a1 - lambda a2) v with a = max(0, q k^T / sqrt(D)) over j <= i, then RMSNorm of every head.
// It is TDA without L2 norm, threshold and power: views, lambda and norm are the same (view_heads: see tda.cpp).
#include <ATen/ATen.h>

#include "lm/model/mechanisms/common_parameters.h"
#include "lm/model/mechanisms/rectified_map.h"
#include "lm/model/mechanisms/registry.h"
#include "lm/model/normalization.h"

namespace tda {
namespace {

class DiffRela final : public AttentionMechanism {
 public:
  explicit DiffRela(const ModelConfig& config) : config_(config), layout_(two_view_layout(config, config.view_heads)) {}

  HeadLayout layout() const override { return layout_; }

  std::vector<ParameterSpec> parameters(std::int64_t) const override {
    return {head_norm_gain(layout_), second_view_factor(config_, layout_)};
  }

  at::Tensor attend(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) const override {
    const auto zero = at::zeros({}, heads.q[0].options().dtype(at::kFloat));
    const auto rows = differential_threshold_rela(heads.q[0], heads.k[0], heads.q[1], heads.k[1], heads.v,
                                                  parameters[1], zero, kUnscaledRectifier);
    // The factor 1/sqrt(D) is taken out of the rectifier and into the norm, as in ReLA.
    return head_rms_norm(rows, parameters[0], config_.head_norm_eps * static_cast<double>(layout_.head_dim));
  }

  AttentionMaps maps(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) const override {
    const auto first = scaled_rectified_map(heads.q[0], heads.k[0]);
    const auto second = scaled_rectified_map(heads.q[1], heads.k[1]);
    const auto lambda = parameters[1].clamp(0, 1).reshape({-1, 1, 1});
    return {{first, second}, first - lambda * second};
  }

 private:
  ModelConfig config_;
  HeadLayout layout_;
};

}  // namespace

std::unique_ptr<AttentionMechanism> make_diff_rela(const ModelConfig& config) {
  return std::make_unique<DiffRela>(config);
}

}  // namespace tda
