// Adaptive scalable entmax (Vasylenko et al. 2025): P = alpha-entmax(c_i q k^T / sqrt(D)) with a factor that every
// query learns for itself, c_i = 1 + beta_i L_i^gamma_i, L_i = ln(n_i + 1), n_i the number of keys that row i sees,
//   beta_i = softplus(W_beta x_i + b_beta),  gamma_i = 2 tanh(W_gamma x_i + b_gamma)
// for each head, x_i the input of the query projection.
#include <ATen/ATen.h>

#include <cmath>

#include "lm/model/accumulation_type.h"
#include "lm/model/mechanisms/causal_positions.h"
#include "lm/model/mechanisms/common_parameters.h"
#include "lm/model/mechanisms/entmax_rows.h"
#include "lm/model/mechanisms/registry.h"
#include "lm/model/mechanisms/row_mechanism.h"

namespace tda {
namespace {

class AdaptiveScalableEntmax final : public RowMechanism {
 public:
  explicit AdaptiveScalableEntmax(const ModelConfig& config)
      : RowMechanism(config, make_entmax_rows(config.entmax_alpha)),
        width_(config.width),
        with_bias_(config.asentmax_bias) {}

  std::vector<ParameterSpec> parameters(std::int64_t) const override {
    const std::int64_t heads = layout().heads;
    std::vector<ParameterSpec> specs{projection("beta.weight", heads, width_),
                                     projection("gamma.weight", heads, width_)};
    if (with_bias_) {
      specs.push_back({.name = "beta.bias", .shape = {heads}});
      specs.push_back({.name = "gamma.bias", .shape = {heads}});
    }
    return specs;
  }

 protected:
  Factors score_factors(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) const override {
    const auto& q = heads.q[0];
    const auto logits = [&](std::size_t index) {  // (B, H, T_q)
      const auto weight = parameters[index].to(heads.hidden.scalar_type());
      const auto product = widened(at::linear(heads.hidden, weight));
      return (with_bias_ ? product + parameters[index + 2] : product).transpose(1, 2);
    };
    const auto beta = at::softplus(logits(0)), gamma = 2 * logits(1).tanh();
    // L^gamma as exp(gamma ln L): ln L is a constant of the row and finite, since L_i >= ln 2.
    const auto length = (visible_keys(q, heads.k[0]) + 1).log().log();
    const auto factor = (1 + beta * (gamma * length).exp()) / std::sqrt(static_cast<double>(layout().head_dim));
    return {widened(q) * factor.unsqueeze(-1), heads.k[0]};
  }

 private:
  std::int64_t width_;
  bool with_bias_;
};

}  // namespace

std::unique_ptr<AttentionMechanism> make_asentmax(const ModelConfig& config) {
  return std::make_unique<AdaptiveScalableEntmax>(config);
}

}  // namespace tda
