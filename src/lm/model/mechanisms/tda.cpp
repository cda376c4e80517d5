// Threshold differential attention: u = (a1 - lambda a2) v with two rectified views that share v and the threshold,
// a = max(0, cos(q, k) - beta c_i)^p over j <= i, then RMSNorm of every head.
//
// view_heads = full:   H heads, query and key of each view (H*D, W), values of D.
// view_heads = halved: H/2 heads, query and key of each view (H/2*D, W), values of 2D, as in the Differential
//                      Transformer; the projections then hold 4 W^2 parameters, those of softmax.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "lm/model/mechanisms/rectified_map.h"
#include "lm/model/mechanisms/registry.h"
#include "lm/model/normalization.h"
#include "lm/model/weight_counts.h"

namespace tda {
namespace {

HeadLayout two_view_layout(const ModelConfig& config) {
  const std::int64_t dim = config.head_dim();
  if (config.view_heads == ViewHeads::kHalved) return {2, config.heads / 2, dim, 2 * dim};
  return {2, config.heads, dim, dim};
}

class Tda final : public AttentionMechanism {
 public:
  explicit Tda(const ModelConfig& config) : config_(config), layout_(two_view_layout(config)) {}

  HeadLayout layout() const override { return layout_; }

  std::vector<ParameterSpec> parameters(std::int64_t) const override {
    return {{.name = "head_norm.weight",
             .shape = {layout_.heads, layout_.value_dim},
             .role = ParameterRole::kNorm,
             .mean = 1.0},
            {.name = "beta", .shape = {layout_.heads}, .mean = config_.beta, .trainable = config_.learn_beta},
            // Outside [0, 1] the clamp has no gradient and lambda would stay there for good.
            {.name = "lambda",
             .shape = {layout_.heads},
             .mean = config_.lambda,
             .trainable = config_.learn_lambda,
             .bounds = std::pair{0.0, 1.0}}};
  }

  at::Tensor attend(const ProjectedHeads& heads, std::span<const at::Tensor> parameters,
                    WeightCounts* counts) const override {
    const auto rows = differential_threshold_rela(heads.q[0], heads.k[0], heads.q[1], heads.k[1], heads.v,
                                                  parameters[2], parameters[1], options());
    if (counts != nullptr) {
      at::NoGradGuard no_gradient;
      *counts = count_from_map(maps(heads, parameters).effective);
    }
    return head_rms_norm(rows, parameters[0], config_.head_norm_eps);
  }

  AttentionMaps maps(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) const override {
    const auto first = rectified_map(heads.q[0], heads.k[0], parameters[1], options());
    const auto second = rectified_map(heads.q[1], heads.k[1], parameters[1], options());
    const auto lambda = parameters[2].clamp(0, 1).reshape({-1, 1, 1});
    return {{first, second}, first - lambda * second};
  }

 private:
  ThresholdOptions options() const { return {.kappa = config_.kappa, .power = config_.power, .normalize = true}; }

  ModelConfig config_;
  HeadLayout layout_;
};

}  // namespace

std::unique_ptr<AttentionMechanism> make_tda(const ModelConfig& config) { return std::make_unique<Tda>(config); }

}  // namespace tda
