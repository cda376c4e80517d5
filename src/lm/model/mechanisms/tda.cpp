// Threshold differential attention: u = (a1 - lambda a2) v with two rectified views that share v and the threshold,
// a = max(0, cos(q, k) - beta c_i)^p over j <= i, then RMSNorm of every head.
//
// view_heads = full:   H heads, query and key of each view (H*D, W), values of D.
// view_heads = halved: H/2 heads, query and key of each view (H/2*D, W), values of 2D, as in the Differential
//                      Transformer; the projections then hold 4 W^2 parameters, those of softmax.
#include <ATen/ATen.h>

#include "lm/model/mechanisms/common_parameters.h"
#include "lm/model/mechanisms/rectified_map.h"
#include "lm/model/mechanisms/registry.h"
#include "lm/model/normalization.h"

namespace tda {
namespace {

class Tda final : public AttentionMechanism {
 public:
  explicit Tda(const ModelConfig& config) : config_(config), layout_(two_view_layout(config, config.view_heads)) {}

  HeadLayout layout() const override { return layout_; }

  std::vector<ParameterSpec> parameters(std::int64_t) const override {
    return {head_norm_gain(layout_), threshold_factor(config_, layout_), second_view_factor(config_, layout_)};
  }

  at::Tensor attend(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) const override {
    const auto rows = differential_threshold_rela(heads.q[0], heads.k[0], heads.q[1], heads.k[1], heads.v,
                                                  parameters[2], parameters[1], options(heads));
    return head_rms_norm(rows, parameters[0], config_.head_norm_eps);
  }

  AttentionMaps maps(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) const override {
    const auto first = rectified_map(heads.q[0], heads.k[0], parameters[1], options(heads));
    const auto second = rectified_map(heads.q[1], heads.k[1], parameters[1], options(heads));
    const auto lambda = parameters[2].clamp(0, 1).reshape({-1, 1, 1});
    return {{first, second}, first - lambda * second};
  }

 private:
  ThresholdOptions options(const ProjectedHeads& heads) const {
    return {.kappa = config_.kappa,
            .power = config_.power,
            .normalize = true,
            .screening_counters = heads.screening_counters};
  }

  ModelConfig config_;
  HeadLayout layout_;
};

}  // namespace

std::unique_ptr<AttentionMechanism> make_tda(const ModelConfig& config) { return std::make_unique<Tda>(config); }

}  // namespace tda
