// Scalable softmax (Nakanishi 2025): P = softmax(c_i q k^T / sqrt(D)) with c_i = scale_h ln n_i (+ bias_h), n_i the
// number of keys that row i sees. The factor goes into q, so that any softmax kernel serves.
//
// A start of 0.168 = 1 / mean(ln n, n = 1 .. 1024) makes c_i 1 on average over 1024 rows: the start of plain softmax.
#include <ATen/ATen.h>

#include "lm/model/accumulation_type.h"
#include "lm/model/mechanisms/causal_positions.h"
#include "lm/model/mechanisms/causal_softmax.h"
#include "lm/model/mechanisms/registry.h"

namespace tda {
namespace {

class ScalableSoftmax final : public AttentionMechanism {
 public:
  explicit ScalableSoftmax(const ModelConfig& config)
      : layout_(one_view_layout(config)), scale_(config.ssmax_scale), with_bias_(config.ssmax_bias) {}

  HeadLayout layout() const override { return layout_; }

  std::vector<ParameterSpec> parameters(std::int64_t) const override {
    std::vector<ParameterSpec> specs{{.name = "scale", .shape = {layout_.heads}, .mean = scale_}};
    if (with_bias_) specs.push_back({.name = "bias", .shape = {layout_.heads}});
    return specs;
  }

  at::ScalarType head_type(at::ScalarType compute, at::Device device) const override {
    return causal_softmax_type(compute, device);
  }

  at::Tensor attend(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) const override {
    return joined_heads(causal_softmax(scaled_queries(heads, parameters), heads.k[0], heads.v));
  }

  AttentionMaps maps(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) const override {
    const auto weights = causal_softmax_map(scaled_queries(heads, parameters), heads.k[0]);
    return {{weights}, weights};
  }

 private:
  static at::Tensor scaled_queries(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) {
    const auto& q = heads.q[0];
    auto factor = parameters[0].unsqueeze(-1) * visible_keys(q, heads.k[0]).log();  // (H, T_q)
    if (parameters.size() > 1) factor = factor + parameters[1].unsqueeze(-1);
    return (widened(q) * factor.unsqueeze(-1)).to(q.scalar_type());
  }

  HeadLayout layout_;
  double scale_;
  bool with_bias_;
};

}  // namespace

std::unique_ptr<AttentionMechanism> make_ssmax(const ModelConfig& config) {
  return std::make_unique<ScalableSoftmax>(config);
}

}  // namespace tda
