// A small seeded model of any mechanism for tests.
#pragma once

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>

#include <memory>
#include <string>

#include "lm/model/gpt.h"

namespace tda::test {

inline ModelConfig small_config(const std::string& mechanism) {
  ModelConfig config;
  config.mechanism = mechanism;
  config.layers = 2;
  config.heads = 4;
  config.width = 64;
  config.context = 32;
  config.vocabulary = 320;
  config.beta = 0.6;  // at 1 nearly every row of an untrained model is empty
  return config;
}

// Weights ten times the usual start: attention then differs from key to key and the logits from token to token.
inline std::unique_ptr<Gpt> small_model(const ModelConfig& config, std::uint64_t seed = 7) {
  auto model = std::make_unique<Gpt>(config);
  model->initialize(seed);
  at::NoGradGuard no_gradient;
  for (const auto& parameter : model->parameters()) {
    auto tensor = parameter.tensor;
    if (parameter.decay) tensor.mul_(10);
  }
  return model;
}

inline at::Tensor random_ids(std::int64_t batch, std::int64_t length, std::uint64_t seed = 1) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randint(0, 257, {batch, length}, generator, at::kLong);
}

}  // namespace tda::test
