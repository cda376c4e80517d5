// Rectified linear attention: a = max(0, q k^T / sqrt(D)) over j <= i, u = a v, one RMSNorm over all heads together.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "lm/model/mechanisms/rectified_map.h"
#include "lm/model/mechanisms/registry.h"
#include "lm/model/normalization.h"
#include "lm/model/weight_counts.h"

namespace tda {
namespace {

// beta = 0 puts the threshold at 0: with p = 1 and no normalization the operator is ReLU(q k^T) v.
constexpr ThresholdOptions kRectifier{.kappa = 1.0, .power = 1.0, .normalize = false};

class Rela final : public AttentionMechanism {
 public:
  explicit Rela(const ModelConfig& config)
      : layout_{1, config.heads, config.head_dim(), config.head_dim()}, eps_(config.head_norm_eps) {}

  HeadLayout layout() const override { return layout_; }

  std::vector<ParameterSpec> parameters(std::int64_t) const override {
    return {{.name = "head_norm.weight",
             .shape = {layout_.heads * layout_.value_dim},
             .role = ParameterRole::kNorm,
             .mean = 1.0}};
  }

  at::Tensor attend(const ProjectedHeads& heads, std::span<const at::Tensor> parameters,
                    WeightCounts* counts) const override {
    const auto zero = at::zeros({}, heads.q[0].options().dtype(at::kFloat));
    const auto rows = threshold_rela(heads.q[0], heads.k[0], heads.v, zero, kRectifier);
    if (counts != nullptr) {
      at::NoGradGuard no_gradient;
      *counts = count_from_map(rectified_map(heads.q[0], heads.k[0], zero, kRectifier));
    }
    // The factor 1/sqrt(D) is taken out of the rectifier and into the norm:
    // RMSNorm(u / sqrt(D); eps) = RMSNorm(u; D * eps).
    return joint_rms_norm(rows, parameters[0], eps_ * static_cast<double>(layout_.head_dim));
  }

  AttentionMaps maps(const ProjectedHeads& heads, std::span<const at::Tensor>) const override {
    const auto zero = at::zeros({}, heads.q[0].options().dtype(at::kFloat));
    const auto weights =
        rectified_map(heads.q[0], heads.k[0], zero, kRectifier) / std::sqrt(static_cast<double>(layout_.head_dim));
    return {{weights}, weights};
  }

 private:
  HeadLayout layout_;
  double eps_;
};

}  // namespace

std::unique_ptr<AttentionMechanism> make_rela(const ModelConfig& config) { return std::make_unique<Rela>(config); }

}  // namespace tda
