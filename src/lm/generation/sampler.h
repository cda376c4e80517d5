// Choosing the next token from logits.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace tda {

struct SamplingOptions {
  double temperature = 1.0;  // >= 0; 0 is greedy, the smallest id among equals
  std::int64_t top_k = 0;    // keep the k most probable ids; 0 keeps all
  double top_p = 1.0;        // in (0, 1]: keep the most probable ids until their probabilities sum to p
  std::uint64_t seed = 0;
};

// Throws Error on an option out of range.
void check_sampling(const SamplingOptions& options);

// Seeded; the same logits and seed give the same ids on every machine. top_k applies first, then top_p.
class Sampler {
 public:
  // `vocabulary` is the number of real ids: the padded ones behind them are never chosen. Checks the options.
  Sampler(const SamplingOptions& options, std::int64_t vocabulary);

  // logits: (V), V >= vocabulary, any floating type. Throws std::runtime_error when they are not finite.
  std::int32_t sample(const at::Tensor& logits);

 private:
  double next_uniform();  // [0, 1)

  SamplingOptions options_;
  std::int64_t vocabulary_;
  std::uint64_t state_;
  std::vector<std::pair<double, std::int32_t>> candidates_;  // weight, id
};

}  // namespace tda
