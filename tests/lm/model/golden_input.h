// Inputs of mechanism tests: the generator of the published golden values, and heads made with it.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <string>
#include <vector>

#include "lm/model/attention_mechanism.h"

namespace tda::test {

// x <- (1664525 x + 1013904223) mod 2^32 from x = seed; values 2x/2^32 - 1 in (-1, 1), row-major.
inline at::Tensor lcg(std::uint32_t seed, at::IntArrayRef shape) {
  auto values = at::empty(shape, at::kDouble);
  std::uint32_t x = seed;
  for (std::int64_t i = 0; i < values.numel(); ++i) {
    x = 1664525u * x + 1013904223u;
    values.mutable_data_ptr<double>()[i] = 2.0 * x / 4294967296.0 - 1.0;
  }
  return values;
}

inline std::vector<std::string> every_mechanism() {
  const auto names = attention_mechanism_names();
  return {names.begin(), names.end()};
}

// fp64 leaves for a mechanism of `config`, with `batch` texts, `queries` last positions of `keys`.
inline ProjectedHeads random_heads(const ModelConfig& config, std::int64_t batch, std::int64_t queries,
                                   std::int64_t keys) {
  const auto layout = make_attention_mechanism(config)->layout();
  const auto leaf = [&](std::uint32_t seed, std::int64_t length, std::int64_t dim) {
    return lcg(seed, {batch, layout.heads, length, dim}).set_requires_grad(true);
  };
  ProjectedHeads heads;
  for (int view = 0; view < layout.views; ++view) {
    heads.q[view] = leaf(1 + 3 * view, queries, layout.head_dim);
    heads.k[view] = leaf(2 + 3 * view, keys, layout.head_dim);
  }
  heads.v = leaf(3, keys, layout.value_dim);
  heads.hidden = lcg(21, {batch, queries, config.width}).set_requires_grad(true);
  heads.layer = 2;
  return heads;
}

// fp64 values that differ from head to head, near the start values; a clock stands in the midst of its schedule.
inline std::vector<at::Tensor> random_parameters(const ModelConfig& config) {
  std::vector<at::Tensor> parameters;
  std::uint32_t seed = 31;
  for (const auto& spec : make_attention_mechanism(config)->parameters(2)) {
    const auto start = spec.growth != 0 ? 0.4 * static_cast<double>(config.dex_annealing_steps) : spec.mean;
    const auto value =
        spec.growth != 0 ? at::full(spec.shape, start, at::kDouble) : start + 0.3 * lcg(seed++, spec.shape);
    parameters.push_back(value.set_requires_grad(spec.trainable));
  }
  return parameters;
}

}  // namespace tda::test
