// Softmax attention: P = softmax(q k^T / sqrt(D)) over j <= i, output P v. No parameters, no norm.
#include "lm/model/mechanisms/causal_softmax.h"
#include "lm/model/mechanisms/registry.h"

namespace tda {
namespace {

class Softmax final : public AttentionMechanism {
 public:
  explicit Softmax(const ModelConfig& config) : layout_(one_view_layout(config)) {}

  HeadLayout layout() const override { return layout_; }
  std::vector<ParameterSpec> parameters(std::int64_t) const override { return {}; }

  at::ScalarType head_type(at::ScalarType compute, at::Device device) const override {
    return causal_softmax_type(compute, device);
  }

  at::Tensor attend(const ProjectedHeads& heads, std::span<const at::Tensor>) const override {
    return joined_heads(causal_softmax(heads.q[0], heads.k[0], heads.v));
  }

  AttentionMaps maps(const ProjectedHeads& heads, std::span<const at::Tensor>) const override {
    const auto weights = causal_softmax_map(heads.q[0], heads.k[0]);
    return {{weights}, weights};
  }

 private:
  HeadLayout layout_;
};

}  // namespace

std::unique_ptr<AttentionMechanism> make_softmax(const ModelConfig& config) {
  return std::make_unique<Softmax>(config);
}

}  // namespace tda
