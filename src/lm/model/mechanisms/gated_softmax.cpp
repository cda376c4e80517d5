// Gated softmax (Qiu et al. 2025): softmax attention whose output is multiplied by sigmoid(W_g x), x the input of the
// query projection, before the output matrix. gate = head: one gate a head; element: one for each channel of a head.
#include <ATen/ATen.h>

#include "lm/model/accumulation_type.h"
#include "lm/model/mechanisms/causal_softmax.h"
#include "lm/model/mechanisms/common_parameters.h"
#include "lm/model/mechanisms/registry.h"

namespace tda {
namespace {

class GatedSoftmax final : public AttentionMechanism {
 public:
  explicit GatedSoftmax(const ModelConfig& config)
      : layout_(one_view_layout(config)), width_(config.width), per_head_(config.gate == "head") {}

  HeadLayout layout() const override { return layout_; }

  std::vector<ParameterSpec> parameters(std::int64_t) const override {
    return {projection("gate.weight", layout_.heads * (per_head_ ? 1 : layout_.value_dim), width_)};
  }

  at::ScalarType head_type(at::ScalarType compute, at::Device device) const override {
    return causal_softmax_type(compute, device);
  }

  at::Tensor attend(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) const override {
    const auto rows = causal_softmax(heads.q[0], heads.k[0], heads.v).transpose(1, 2);
    return (rows * gates(heads, parameters[0]).to(rows.scalar_type())).flatten(2);
  }

  // A gate of the head scales the whole row of its map. Gates of single channels have no map: P stands for it.
  AttentionMaps maps(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) const override {
    const auto weights = causal_softmax_map(heads.q[0], heads.k[0]);
    if (!per_head_) return {{weights}, weights};
    return {{weights}, weights * gates(heads, parameters[0]).transpose(1, 2)};
  }

 private:
  // (B, T_q, H, 1) or (B, T_q, H, D)
  at::Tensor gates(const ProjectedHeads& heads, const at::Tensor& weight) const {
    const auto logits = at::linear(heads.hidden, weight.to(heads.hidden.scalar_type()));
    return widened(logits).sigmoid().unflatten(-1, {layout_.heads, per_head_ ? 1 : layout_.value_dim});
  }

  HeadLayout layout_;
  std::int64_t width_;
  bool per_head_;
};

}  // namespace

std::unique_ptr<AttentionMechanism> make_gated_softmax(const ModelConfig& config) {
  return std::make_unique<GatedSoftmax>(config);
}

}  // namespace tda
