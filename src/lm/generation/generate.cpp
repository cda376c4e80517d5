#include "lm/generation/generate.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include "lm/error.h"

namespace tda {

std::vector<std::int32_t> generate(Gpt& model, std::span<const std::int32_t> prompt, const GenerationOptions& options,
                                   const std::function<bool(std::int32_t)>& on_token) {
  if (prompt.empty()) throw Error("the prompt holds no token, expected at least one");
  if (options.max_tokens < 0) {
    throw Error(fmt::format("max-tokens is {}, expected a whole number of at least 0", options.max_tokens));
  }
  if (options.vocabulary < 1 || options.vocabulary > model.config().vocabulary) {
    throw Error(fmt::format("the tokenizer has {} ids, the model {}", options.vocabulary, model.config().vocabulary));
  }
  at::NoGradGuard no_gradient;
  Sampler sampler(options.sampling, options.vocabulary);
  const auto weights = model.prepare();
  KeyValueCache cache(model.config().layers);
  auto ids = at::tensor(at::ArrayRef<std::int32_t>(prompt.data(), prompt.size()), at::kLong).unsqueeze(0);
  std::vector<std::int32_t> continuation;
  while (static_cast<std::int64_t>(continuation.size()) < options.max_tokens) {
    const auto logits = model.forward(weights, ids.to(model.device()), {.cache = &cache, .last_row_only = true});
    const std::int32_t id = sampler.sample(logits.flatten());
    if (id == options.end_of_text) break;
    continuation.push_back(id);
    if (on_token && !on_token(id)) break;
    ids = at::full({1, 1}, id, at::kLong);
  }
  return continuation;
}

}  // namespace tda
