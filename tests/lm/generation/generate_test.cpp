#include "lm/generation/generate.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include "../model/golden_input.h"
#include "../model/small_model.h"
#include "lm/error.h"

namespace tda {
namespace {

using test::random_ids;
using test::small_config;
using test::small_model;

class CachedForward : public testing::TestWithParam<std::string> {};

// Prefill, several rows at once, then single rows: every logit equals that of one forward pass over everything, past
// the trained context too. The tolerance is that of another summation order over 64 + 256 terms in fp32.
TEST_P(CachedForward, EqualsForwardWithoutCache) {
  at::NoGradGuard no_gradient;
  const auto model = small_model(small_config(GetParam()));
  const auto ids = random_ids(2, 80);
  const auto expected = model->forward(ids);
  const auto weights = model->prepare();
  KeyValueCache cache(model->config().layers);
  std::vector<at::Tensor> pieces;
  std::int64_t position = 0;
  for (const std::int64_t rows : {20, 1, 7, 1, 30, 1, 1, 19}) {
    pieces.push_back(model->forward(weights, ids.narrow(1, position, rows), {.cache = &cache}));
    position += rows;
    ASSERT_EQ(cache.length(), position);
  }
  const double error = (at::cat(pieces, 1) - expected).abs().max().item<double>();
  EXPECT_LE(error, 2e-5 * expected.abs().max().item<double>());
}

TEST_P(CachedForward, ContinuesFromATruncatedCache) {
  at::NoGradGuard no_gradient;
  const auto model = small_model(small_config(GetParam()));
  const auto ids = random_ids(1, 24);
  const auto weights = model->prepare();
  KeyValueCache cache(model->config().layers);
  model->forward(weights, random_ids(1, 24, 2), {.cache = &cache});
  cache.truncate(0);
  model->forward(weights, ids.narrow(1, 0, 20), {.cache = &cache});
  const auto rest = model->forward(weights, ids.narrow(1, 20, 4), {.cache = &cache, .last_row_only = true});
  const auto expected = model->forward(ids).narrow(1, 23, 1);
  EXPECT_LE((rest - expected).abs().max().item<double>(), 2e-5 * expected.abs().max().item<double>());
}

INSTANTIATE_TEST_SUITE_P(Mechanisms, CachedForward, testing::ValuesIn(test::every_mechanism()),
                         [](const auto& name) { return name.param; });

GenerationOptions byte_options(double temperature) {
  return {.sampling = {.temperature = temperature, .seed = 3}, .max_tokens = 40, .vocabulary = 257, .end_of_text = 256};
}

TEST(Generate, GreedyFollowsTheArgmaxOfTheUncachedModel) {
  at::NoGradGuard no_gradient;
  const auto model = small_model(small_config("tda"));
  std::vector<std::int32_t> text{256, 65, 66};
  const auto continuation = generate(*model, text, byte_options(0));
  ASSERT_FALSE(continuation.empty());
  for (const auto id : continuation) {
    const auto ids = at::tensor(at::ArrayRef<std::int32_t>(text), at::kLong).unsqueeze(0);
    const auto logits = model->forward(ids)[0][-1].narrow(0, 0, 257);
    ASSERT_EQ(logits.argmax().item<std::int64_t>(), id);
    text.push_back(id);
  }
}

TEST(Generate, IsRepeatableAndDependsOnTheSeed) {
  const auto model = small_model(small_config("softmax"));
  const std::vector<std::int32_t> prompt{256, 65};
  auto options = byte_options(1.0);
  const auto first = generate(*model, prompt, options);
  EXPECT_EQ(first, generate(*model, prompt, options));
  options.sampling.seed = 4;
  EXPECT_NE(first, generate(*model, prompt, options));
}

TEST(Generate, StopsAtEndOfTextWithoutReturningIt) {
  const auto model = small_model(small_config("tda"));
  const std::vector<std::int32_t> prompt{256, 65};
  auto options = byte_options(0);
  const auto all = generate(*model, prompt, options);
  ASSERT_GE(all.size(), 1u);
  options.end_of_text = all.back();
  const auto cut = generate(*model, prompt, options);
  const auto first = std::find(all.begin(), all.end(), all.back());
  EXPECT_EQ(cut, std::vector<std::int32_t>(all.begin(), first));
}

TEST(Generate, StopsWhenTheReaderSaysSo) {
  const auto model = small_model(small_config("softmax"));
  std::vector<std::int32_t> seen;
  const auto made = generate(*model, std::vector<std::int32_t>{256}, byte_options(1.0), [&](std::int32_t id) {
    seen.push_back(id);
    return seen.size() < 3;
  });
  EXPECT_EQ(made.size(), 3u);
  EXPECT_EQ(made, seen);
}

TEST(Generate, RefusesWhatItCannotDo) {
  const auto model = small_model(small_config("softmax"));
  EXPECT_THROW(generate(*model, {}, byte_options(1)), Error);
  EXPECT_THROW(generate(*model, std::vector<std::int32_t>{320}, byte_options(1)), Error);
  auto options = byte_options(1);
  options.vocabulary = 321;
  EXPECT_THROW(generate(*model, std::vector<std::int32_t>{1}, options), Error);
}

}  // namespace
}  // namespace tda
