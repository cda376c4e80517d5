// Threshold rectified attention: a = max(0, cos(q, k) - beta c_i)^p over j <= i, u = a v, RMSNorm of every head.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "lm/model/mechanisms/rectified_map.h"
#include "lm/model/mechanisms/registry.h"
#include "lm/model/normalization.h"
#include "lm/model/weight_counts.h"

namespace tda {
namespace {

class Tra final : public AttentionMechanism {
 public:
  explicit Tra(const ModelConfig& config)
      : config_(config), layout_{1, config.heads, config.head_dim(), config.head_dim()} {}

  HeadLayout layout() const override { return layout_; }

  std::vector<ParameterSpec> parameters(std::int64_t) const override {
    return {{.name = "head_norm.weight",
             .shape = {layout_.heads, layout_.value_dim},
             .role = ParameterRole::kNorm,
             .mean = 1.0},
            {.name = "beta", .shape = {layout_.heads}, .mean = config_.beta, .trainable = config_.learn_beta}};
  }

  at::Tensor attend(const ProjectedHeads& heads, std::span<const at::Tensor> parameters,
                    WeightCounts* counts) const override {
    const auto rows = threshold_rela(heads.q[0], heads.k[0], heads.v, parameters[1], options());
    if (counts != nullptr) {
      at::NoGradGuard no_gradient;
      *counts = count_from_map(maps(heads, parameters).effective);
    }
    return head_rms_norm(rows, parameters[0], config_.head_norm_eps);
  }

  AttentionMaps maps(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) const override {
    const auto weights = rectified_map(heads.q[0], heads.k[0], parameters[1], options());
    return {{weights}, weights};
  }

 private:
  ThresholdOptions options() const { return {.kappa = config_.kappa, .power = config_.power, .normalize = true}; }

  ModelConfig config_;
  HeadLayout layout_;
};

}  // namespace

std::unique_ptr<AttentionMechanism> make_tra(const ModelConfig& config) { return std::make_unique<Tra>(config); }

}  // namespace tda
