// Rectified linear attention: a = max(0, q k^T / sqrt(D)) over j <= i, u = a v, then the norm that `rela_norm` names:
//   rms        gain * u / RMS(u) over all heads together (Zhang, Titov, Sennrich 2021, without their gate)
//   gated_rms  the same times sigmoid(gate * u), as their code has it
//   layer      LayerNorm without bias over all heads together, as the TDA paper writes ReLA
//   head_rms   RMSNorm of every head
#include <ATen/ATen.h>

#include <cmath>

#include "lm/model/accumulation_type.h"
#include "lm/model/mechanisms/common_parameters.h"
#include "lm/model/mechanisms/rectified_map.h"
#include "lm/model/mechanisms/registry.h"
#include "lm/model/normalization.h"

namespace tda {
namespace {

class Rela final : public AttentionMechanism {
 public:
  explicit Rela(const ModelConfig& config)
      : layout_(one_view_layout(config)), norm_(config.rela_norm), eps_(config.head_norm_eps) {}

  HeadLayout layout() const override { return layout_; }

  std::vector<ParameterSpec> parameters(std::int64_t) const override {
    if (norm_ == "head_rms") return {head_norm_gain(layout_)};
    if (norm_ != "gated_rms") return {joint_norm_gain(layout_)};
    const std::int64_t size = layout_.heads * layout_.value_dim;
    // The published start is uniform with this deviation.
    return {joint_norm_gain(layout_),
            {.name = "head_norm.gate",
             .shape = {size},
             .role = ParameterRole::kNorm,
             .deviation = 1 / std::sqrt(static_cast<double>(size))}};
  }

  at::Tensor attend(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) const override {
    const auto zero = at::zeros({}, heads.q[0].options().dtype(at::kFloat));
    const auto rows = threshold_rela(heads.q[0], heads.k[0], heads.v, zero, kUnscaledRectifier);
    // The factor 1/sqrt(D) is taken out of the rectifier and into the norm: RMSNorm(u / sqrt(D); eps) =
    // RMSNorm(u; D * eps), and the same for LayerNorm.
    const auto& gain = parameters[0];
    const double eps = eps_ * static_cast<double>(layout_.head_dim);
    if (norm_ == "head_rms") return head_rms_norm(rows, gain, eps);
    if (norm_ == "layer") return joint_layer_norm(rows, gain, eps);
    const auto normalized = joint_rms_norm(rows, gain, eps);
    if (norm_ == "rms") return normalized;
    const auto u = widened(joined_heads(rows)) / std::sqrt(static_cast<double>(layout_.head_dim));
    return (widened(normalized) * (parameters[1] * u).sigmoid()).to(rows.scalar_type());
  }

  AttentionMaps maps(const ProjectedHeads& heads, std::span<const at::Tensor>) const override {
    const auto weights = scaled_rectified_map(heads.q[0], heads.k[0]);
    return {{weights}, weights};
  }

 private:
  HeadLayout layout_;
  std::string norm_;
  double eps_;
};

}  // namespace

std::unique_ptr<AttentionMechanism> make_rela(const ModelConfig& config) { return std::make_unique<Rela>(config); }

}  // namespace tda
