// Differential softmax (Ye et al. 2025, the first version of their code): A = softmax(q1 k1^T / sqrt(D)) - lambda
// softmax(q2 k2^T / sqrt(D)) for H/2 heads with queries and keys of D = width/H and values of 2D, then per head
// (1 - lambda_init) RMSNorm(A v) with one gain of 2D for all heads.
//
// lambda = exp(<lambda_query1, lambda_key1>) - exp(<lambda_query2, lambda_key2>) + lambda_init, one for all heads of a
// layer, not clamped. The fixed factor (1 - lambda_init) keeps the size of the gradients that softmax would have.
#include <ATen/ATen.h>

#include "lm/model/accumulation_type.h"
#include "lm/model/mechanisms/causal_softmax.h"
#include "lm/model/mechanisms/differential_lambda.h"
#include "lm/model/mechanisms/registry.h"
#include "lm/model/normalization.h"

namespace tda {
namespace {

constexpr double kHeadNormEps = 1e-5;  // of the published code
constexpr double kLambdaDeviation = 0.1;

class DifferentialSoftmax final : public AttentionMechanism {
 public:
  explicit DifferentialSoftmax(const ModelConfig& config) : layout_(two_view_layout(config, ViewHeads::kHalved)) {}

  HeadLayout layout() const override { return layout_; }

  std::vector<ParameterSpec> parameters(std::int64_t) const override {
    std::vector<ParameterSpec> specs;
    for (const char* name : {"lambda_query1", "lambda_key1", "lambda_query2", "lambda_key2"}) {
      specs.push_back({.name = name, .shape = {layout_.head_dim}, .deviation = kLambdaDeviation});
    }
    specs.push_back(
        {.name = "head_norm.weight", .shape = {layout_.value_dim}, .role = ParameterRole::kNorm, .mean = 1.0});
    return specs;
  }

  at::ScalarType head_type(at::ScalarType compute, at::Device device) const override {
    return causal_softmax_type(compute, device);
  }

  at::Tensor attend(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) const override {
    const auto first = causal_softmax(heads.q[0], heads.k[0], heads.v);
    const auto second = causal_softmax(heads.q[1], heads.k[1], heads.v);
    const auto rows = widened(first) - lambda(heads.layer, parameters) * widened(second);
    const auto gain = parameters[4] * (1 - initial_lambda(heads.layer));
    const auto gains = gain.expand({layout_.heads, layout_.value_dim});
    return head_rms_norm(rows, gains, kHeadNormEps).to(heads.v.scalar_type());
  }

  AttentionMaps maps(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) const override {
    const auto first = causal_softmax_map(heads.q[0], heads.k[0]);
    const auto second = causal_softmax_map(heads.q[1], heads.k[1]);
    return {{first, second}, first - lambda(heads.layer, parameters) * second};
  }

 private:
  static at::Tensor lambda(std::int64_t layer, std::span<const at::Tensor> parameters) {
    return (parameters[0] * parameters[1]).sum().exp() - (parameters[2] * parameters[3]).sum().exp() +
           initial_lambda(layer);
  }

  HeadLayout layout_;
};

}  // namespace

std::unique_ptr<AttentionMechanism> make_diff_softmax(const ModelConfig& config) {
  return std::make_unique<DifferentialSoftmax>(config);
}

}  // namespace tda
