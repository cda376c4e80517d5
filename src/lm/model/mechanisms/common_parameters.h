// Parameters that several mechanisms declare alike.
#pragma once

#include "lm/model/model_config.h"
#include "lm/model/parameter.h"

namespace tda {

struct HeadLayout;

// "head_norm.weight": the gain of the norm over every head, [H, D_v], or over all heads together, [H*D_v]; starts at 1.
ParameterSpec head_norm_gain(const HeadLayout& layout);
ParameterSpec joint_norm_gain(const HeadLayout& layout);

// "beta", [H]: the factor of the threshold.
ParameterSpec threshold_factor(const ModelConfig& config, const HeadLayout& layout);

// "lambda", [H]: the factor of the second view, in [0, 1].
ParameterSpec second_view_factor(const ModelConfig& config, const HeadLayout& layout);

// A matrix [rows, columns] that multiplies the layer's input, started and decayed like the other projections.
ParameterSpec projection(std::string name, std::int64_t rows, std::int64_t columns);

}  // namespace tda
