#include "lm/evaluation/score.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <cmath>

#include "../model/small_model.h"
#include "lm/error.h"

namespace tda {
namespace {

constexpr std::int32_t kEndOfText = 256;

std::vector<std::int32_t> random_text(std::int64_t length) {
  const auto ids = test::random_ids(1, length).flatten();
  std::vector<std::int32_t> text;
  for (std::int64_t i = 0; i < length; ++i) text.push_back(ids[i].item<std::int32_t>());
  return text;
}

// What the definition says, one window and one token at a time: position t is predicted from the tokens of its window.
std::vector<double> expected_logprobs(Gpt& model, const std::vector<std::int32_t>& text) {
  at::NoGradGuard no_gradient;
  const auto context = static_cast<std::size_t>(model.config().context);
  std::vector<std::int32_t> stream{kEndOfText};
  stream.insert(stream.end(), text.begin(), text.end());
  std::vector<double> result;
  for (std::size_t t = 0; t < text.size(); ++t) {
    const std::size_t window = t / context;
    const bool last = (window + 1) * context >= text.size();
    // Input ends just before the target; only the last window reaches back to be full.
    std::size_t begin = window * context;
    if (last) begin = text.size() >= context ? text.size() - context : 0;
    const std::vector<std::int32_t> input(stream.begin() + static_cast<std::ptrdiff_t>(begin),
                                          stream.begin() + static_cast<std::ptrdiff_t>(t) + 1);
    const auto ids = at::tensor(at::ArrayRef<std::int32_t>(input), at::kLong).unsqueeze(0);
    result.push_back(model.forward(ids)[0][-1].log_softmax(-1)[text[t]].item<double>());
  }
  return result;
}

class Score : public testing::TestWithParam<std::int64_t> {};

TEST_P(Score, PredictsEveryTokenOnceInDisjointWindows) {
  const auto model = test::small_model(test::small_config("tda"));
  const auto text = random_text(GetParam());
  std::vector<TokenScore> scores;
  const auto summary = score(*model, text, kEndOfText, [&](const TokenScore& s) { scores.push_back(s); });
  const auto expected = expected_logprobs(*model, text);
  ASSERT_EQ(scores.size(), text.size());
  double sum = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    EXPECT_EQ(scores[i].token, text[i]);
    // fp32 logits of magnitude 30 in another summation order.
    EXPECT_NEAR(scores[i].logprob, expected[i], 1e-3) << "token " << i;
    sum -= scores[i].logprob;
  }
  EXPECT_EQ(summary.tokens, GetParam());
  EXPECT_NEAR(summary.negative_log_likelihood, sum, 1e-9);
  EXPECT_DOUBLE_EQ(summary.loss(), summary.negative_log_likelihood / static_cast<double>(GetParam()));
  EXPECT_DOUBLE_EQ(summary.perplexity(), std::exp(summary.loss()));
  EXPECT_DOUBLE_EQ(summary.bits_per_byte(100), summary.negative_log_likelihood / 100 / std::log(2.0));
}

// The context is 32: shorter, exact, one more, many windows, more windows than a batch holds.
INSTANTIATE_TEST_SUITE_P(Lengths, Score, testing::Values(1, 31, 32, 33, 64, 100, 600));

TEST(Score, GreedyMarksTheMostProbableToken) {
  at::NoGradGuard no_gradient;
  const auto model = test::small_model(test::small_config("softmax"));
  const auto top = model->forward(at::full({1, 1}, kEndOfText, at::kLong)).argmax().item<std::int32_t>();
  std::vector<bool> greedy;
  for (const std::int32_t id : {top, (top + 1) % 256}) {
    score(*model, std::vector<std::int32_t>{id}, kEndOfText, [&](const TokenScore& s) { greedy.push_back(s.greedy); });
  }
  EXPECT_EQ(greedy, (std::vector<bool>{true, false}));
}

TEST(Score, RefusesAnEmptyText) {
  const auto model = test::small_model(test::small_config("softmax"));
  EXPECT_THROW(score(*model, {}, kEndOfText), Error);
}

}  // namespace
}  // namespace tda
