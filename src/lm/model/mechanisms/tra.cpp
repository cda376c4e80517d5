// Threshold rectified attention: a = max(0, cos(q, k) - beta c_i)^p over j <= i, u = a v, RMSNorm of every head.
#include "lm/model/mechanisms/common_parameters.h"
#include "lm/model/mechanisms/rectified_map.h"
#include "lm/model/mechanisms/registry.h"
#include "lm/model/normalization.h"

namespace tda {
namespace {

class Tra final : public AttentionMechanism {
 public:
  explicit Tra(const ModelConfig& config) : config_(config), layout_(one_view_layout(config)) {}

  HeadLayout layout() const override { return layout_; }

  std::vector<ParameterSpec> parameters(std::int64_t) const override {
    return {head_norm_gain(layout_), threshold_factor(config_, layout_)};
  }

  at::Tensor attend(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) const override {
    const auto rows = threshold_rela(heads.q[0], heads.k[0], heads.v, parameters[1], options(heads));
    return head_rms_norm(rows, parameters[0], config_.head_norm_eps);
  }

  AttentionMaps maps(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) const override {
    const auto weights = rectified_map(heads.q[0], heads.k[0], parameters[1], options(heads));
    return {{weights}, weights};
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

std::unique_ptr<AttentionMechanism> make_tra(const ModelConfig& config) { return std::make_unique<Tra>(config); }

}  // namespace tda
