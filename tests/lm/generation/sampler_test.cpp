#include "lm/generation/sampler.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "lm/error.h"

namespace tda {
namespace {

std::map<std::int32_t, int> draw(const SamplingOptions& options, const at::Tensor& logits, std::int64_t vocabulary,
                                 int times) {
  Sampler sampler(options, vocabulary);
  std::map<std::int32_t, int> counts;
  for (int i = 0; i < times; ++i) ++counts[sampler.sample(logits)];
  return counts;
}

TEST(Sampler, FollowsTheDistributionAtATemperature) {
  const auto logits = at::tensor({0.0, 1.0, 2.0, 0.5});
  const int times = 40000;
  const auto counts = draw({.temperature = 2.0, .seed = 5}, logits, 4, times);
  const auto expected = (logits / 2.0).softmax(-1);
  // Chi-square with 3 degrees of freedom exceeds 21.1 with probability 1e-4; the seed is fixed.
  double chi_square = 0;
  for (std::int32_t id = 0; id < 4; ++id) {
    const double mean = times * expected[id].item<double>();
    chi_square += std::pow(counts.at(id) - mean, 2) / mean;
  }
  EXPECT_LT(chi_square, 21.1);
}

TEST(Sampler, NeverChoosesPaddedIds) {
  const auto logits = at::tensor({0.0, 0.0, 50.0, 60.0});
  for (const double temperature : {0.0, 1.0}) {
    const auto counts = draw({.temperature = temperature}, logits, 2, 500);
    EXPECT_LT(counts.rbegin()->first, 2);
  }
}

TEST(Sampler, GreedyTakesTheSmallestOfEquals) {
  EXPECT_EQ(draw({.temperature = 0}, at::tensor({1.0, 3.0, 3.0}), 3, 3), (std::map<std::int32_t, int>{{1, 3}}));
}

TEST(Sampler, TopKKeepsTheMostProbable) {
  const auto counts = draw({.temperature = 1, .top_k = 2}, at::tensor({1.0, 3.0, 2.0, 0.0}), 4, 2000);
  EXPECT_EQ(counts.size(), 2u);
  EXPECT_TRUE(counts.contains(1) && counts.contains(2));
}

TEST(Sampler, TopPKeepsTheSmallestSetThatHoldsTheShare) {
  const auto logits = at::tensor({0.5, 0.3, 0.15, 0.05}).log();
  EXPECT_EQ(draw({.temperature = 1, .top_p = 0.7}, logits, 4, 2000).size(), 2u);
  EXPECT_EQ(draw({.temperature = 1, .top_p = 0.9}, logits, 4, 2000).size(), 3u);
  EXPECT_EQ(draw({.temperature = 1, .top_p = 0.01}, logits, 4, 50), (std::map<std::int32_t, int>{{0, 50}}));
}

TEST(Sampler, RefusesOptionsOutOfRangeAndLogitsThatAreNotFinite) {
  EXPECT_THROW(Sampler({.temperature = -1}, 4), Error);
  EXPECT_THROW(Sampler({.temperature = NAN}, 4), Error);
  EXPECT_THROW(Sampler({.top_k = -1}, 4), Error);
  EXPECT_THROW(Sampler({.top_p = 0}, 4), Error);
  EXPECT_THROW(Sampler({.top_p = 1.5}, 4), Error);
  EXPECT_THROW(Sampler({}, 2).sample(at::tensor({0.0, NAN})), std::runtime_error);
}

}  // namespace
}  // namespace tda
