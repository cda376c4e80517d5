// Seeded start values of parameters.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>

namespace tda {

// Fills a contiguous fp32 CPU tensor with normal(mean, deviation). The values depend on seed, name and position only:
// neither the other parameters of the model nor the number of threads matter, so two models that differ in their
// mechanism start with the same embedding, MLP and head.
void fill_normal(const at::Tensor& tensor, std::uint64_t seed, std::string_view name, double mean, double deviation);

}  // namespace tda
