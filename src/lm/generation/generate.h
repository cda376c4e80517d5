// Continuing a text token by token.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "lm/generation/sampler.h"
#include "lm/model/gpt.h"

namespace tda {

struct GenerationOptions {
  SamplingOptions sampling;
  std::int64_t max_tokens = 256;
  std::int64_t vocabulary = 0;   // real ids; padded ones are never sampled
  std::int32_t end_of_text = 0;  // ends the continuation and is not part of it
};

// Continues `prompt` (at least one id) by up to max_tokens ids, each passed to `on_token` as soon as it is chosen;
// `on_token` returns false to stop. Returns the new ids. Keys and values are cached, so a token costs one row.
//
// A continuation may run past config().context: positions keep counting, as RoPE and the thresholds allow, though the
// model has not been trained there.
std::vector<std::int32_t> generate(Gpt& model, std::span<const std::int32_t> prompt, const GenerationOptions& options,
                                   const std::function<bool(std::int32_t)>& on_token = {});

}  // namespace tda
