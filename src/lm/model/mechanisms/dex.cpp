// Dex (Kong, Jang, Kwak 2025): o' = o - lambda(t) o W^T with o = softmax(q k^T / sqrt(D)) v and W (D, D) of the layer,
// shared by its heads and zero at the start. The map itself stays a softmax.
//
// lambda(t) = (1 - a) a lambda_init + a lambda_learned with a = min(1, t / dex_annealing_steps) after t optimizer
// steps. With W = 0 and lambda = 0 no gradient would ever flow: the term of lambda_init starts the training and then
// fades. t is kept beside the weights, so that a checkpoint from the midst of the annealing computes what was trained.
#include <ATen/ATen.h>

#include "lm/model/mechanisms/causal_softmax.h"
#include "lm/model/mechanisms/differential_lambda.h"
#include "lm/model/mechanisms/registry.h"

namespace tda {
namespace {

class Dex final : public AttentionMechanism {
 public:
  explicit Dex(const ModelConfig& config)
      : layout_(one_view_layout(config)), annealing_steps_(static_cast<double>(config.dex_annealing_steps)) {}

  HeadLayout layout() const override { return layout_; }

  std::vector<ParameterSpec> parameters(std::int64_t) const override {
    return {{.name = "differential.weight", .shape = {layout_.value_dim, layout_.value_dim}, .decay = true},
            {.name = "lambda_learned", .shape = {1}},
            {.name = "annealing_step", .shape = {1}, .trainable = false, .growth = 1.0}};
  }

  at::ScalarType head_type(at::ScalarType compute, at::Device device) const override {
    return causal_softmax_type(compute, device);
  }

  at::Tensor attend(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) const override {
    const auto rows = causal_softmax(heads.q[0], heads.k[0], heads.v);
    const auto progress = (parameters[2] / annealing_steps_).clamp_max(1);
    const auto lambda = (1 - progress) * progress * initial_lambda(heads.layer) + progress * parameters[1];
    return joined_heads(rows - at::linear(rows, (lambda * parameters[0]).to(rows.scalar_type())));
  }

  AttentionMaps maps(const ProjectedHeads& heads, std::span<const at::Tensor>) const override {
    const auto weights = causal_softmax_map(heads.q[0], heads.k[0]);
    return {{weights}, weights};
  }

 private:
  HeadLayout layout_;
  double annealing_steps_;
};

}  // namespace

std::unique_ptr<AttentionMechanism> make_dex(const ModelConfig& config) { return std::make_unique<Dex>(config); }

}  // namespace tda
