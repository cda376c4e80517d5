// Softmax attention: P = softmax(q k^T / sqrt(D)) over j <= i, output P v. No parameters, no norm.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "lm/model/mechanisms/registry.h"
#include "lm/model/weight_counts.h"

namespace tda {
namespace {

class Softmax final : public AttentionMechanism {
 public:
  explicit Softmax(const ModelConfig& config) : layout_{1, config.heads, config.head_dim(), config.head_dim()} {}

  HeadLayout layout() const override { return layout_; }
  std::vector<ParameterSpec> parameters(std::int64_t) const override { return {}; }

  // On the CPU, SDPA in bf16 is slower than in fp32 at the lengths of small models
  // (docs/experiments/2026-11-22-training-step.md).
  at::ScalarType head_type(at::ScalarType compute, at::Device device) const override {
    return device.is_cpu() ? at::kFloat : compute;
  }

  at::Tensor attend(const ProjectedHeads& heads, std::span<const at::Tensor> parameters,
                    WeightCounts* counts) const override {
    const auto& q = heads.q[0];
    const std::int64_t queries = q.size(2), keys = heads.k[0].size(2);
    // SDPA aligns its causal mask to the top left; with cached keys the mask is spelled out, unless one row sees all.
    c10::optional<at::Tensor> mask;
    if (queries != keys && queries > 1) {
      mask = at::ones({queries, keys}, q.options().dtype(at::kBool)).tril(keys - queries);
    }
    const auto output =
        at::scaled_dot_product_attention(q, heads.k[0], heads.v, mask, 0.0, queries == keys && queries > 1);
    if (counts != nullptr) {
      at::NoGradGuard no_gradient;
      *counts = count_from_map(maps(heads, parameters).effective);
    }
    return output.transpose(1, 2).flatten(2);
  }

  AttentionMaps maps(const ProjectedHeads& heads, std::span<const at::Tensor>) const override {
    const auto q = heads.q[0].to(at::kFloat), k = heads.k[0].to(at::kFloat);
    const std::int64_t queries = q.size(2), keys = k.size(2);
    const auto future = at::ones({queries, keys}, q.options().dtype(at::kBool)).triu(keys - queries + 1);
    const auto scores = at::matmul(q, k.transpose(-1, -2)) / std::sqrt(static_cast<double>(layout_.head_dim));
    const auto weights = scores.masked_fill(future, -INFINITY).softmax(-1);
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
