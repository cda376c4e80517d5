// How well a model predicts a text.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "lm/model/gpt.h"

namespace tda {

struct TokenScore {
  std::int32_t token = 0;
  double logprob = 0;   // natural log
  bool greedy = false;  // no other token was more probable
};

struct ScoreSummary {
  std::int64_t tokens = 0;
  double negative_log_likelihood = 0;  // nats, summed

  double loss() const;  // nats per token
  double perplexity() const;
  double bits_per_byte(std::int64_t bytes) const;
};

// Scores every id of `tokens` (at least one), as if `end_of_text` stood before them, in disjoint windows of the model's
// context: each token is predicted once, a window's first token from the token before it alone, and the last window is
// filled up with tokens that were scored before. This is lm-evaluation-harness's loglikelihood_rolling. Probabilities
// are over all rows of the head, padded ids included, in fp32. `on_token` sees the tokens in order.
ScoreSummary score(Gpt& model, std::span<const std::int32_t> tokens, std::int32_t end_of_text,
                   const std::function<void(const TokenScore&)>& on_token = {});

}  // namespace tda
