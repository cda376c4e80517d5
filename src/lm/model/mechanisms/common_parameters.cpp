#include "lm/model/mechanisms/common_parameters.h"

#include "lm/model/attention_mechanism.h"

namespace tda {
namespace {

ParameterSpec norm_gain(std::vector<std::int64_t> shape) {
  return {.name = "head_norm.weight", .shape = std::move(shape), .role = ParameterRole::kNorm, .mean = 1.0};
}

}  // namespace

ParameterSpec head_norm_gain(const HeadLayout& layout) { return norm_gain({layout.heads, layout.value_dim}); }
ParameterSpec joint_norm_gain(const HeadLayout& layout) { return norm_gain({layout.heads * layout.value_dim}); }

ParameterSpec threshold_factor(const ModelConfig& config, const HeadLayout& layout) {
  return {.name = "beta", .shape = {layout.heads}, .mean = config.beta, .trainable = config.learn_beta};
}

ParameterSpec second_view_factor(const ModelConfig& config, const HeadLayout& layout) {
  // Outside [0, 1] the clamp has no gradient and lambda would stay there for good.
  return {.name = "lambda",
          .shape = {layout.heads},
          .mean = config.lambda,
          .trainable = config.learn_lambda,
          .bounds = std::pair{0.0, 1.0}};
}

ParameterSpec projection(std::string name, std::int64_t rows, std::int64_t columns) {
  return {.name = std::move(name),
          .shape = {rows, columns},
          .role = ParameterRole::kAttention,
          .deviation = kInitialDeviation,
          .decay = true};
}

}  // namespace tda
