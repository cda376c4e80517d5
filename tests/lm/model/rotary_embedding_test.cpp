#include "lm/model/rotary_embedding.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

namespace tda {
namespace {

// (D/2) cosines and sines of the angles by which a head's pairs turn at `position`: the query is 1 in the first half of
// its channels and 0 in the second, so that channel c becomes the cosine and c + D/2 the sine.
struct Turn {
  at::Tensor cosine, sine;
};
Turn turn_at(std::int64_t position, std::int64_t head_dim, double theta, double scaling) {
  RotaryEmbedding rotary(head_dim, theta, scaling);
  auto joined = at::zeros({1, 1, 3 * head_dim});  // query, key, value
  joined.narrow(2, 0, head_dim / 2).fill_(1.0);
  const HeadLayout layout{.views = 1, .heads = 1, .head_dim = head_dim, .value_dim = head_dim};
  const auto halves = rotary.split(joined, layout, position, at::kFloat).q[0].flatten().chunk(2);
  return {halves[0], halves[1]};
}

// Pair c turns by position * base^(-2c/D).
void expect_frequencies(const Turn& turn, std::int64_t position, std::int64_t head_dim, double base) {
  for (std::int64_t c = 0; c < head_dim / 2; ++c) {
    const double angle =
        static_cast<double>(position) * std::pow(base, -2.0 * static_cast<double>(c) / static_cast<double>(head_dim));
    EXPECT_NEAR(turn.cosine[c].item<double>(), std::cos(angle), 1e-6) << c;
    EXPECT_NEAR(turn.sine[c].item<double>(), std::sin(angle), 1e-6) << c;
  }
}

TEST(RotaryEmbedding, WithoutScalingTheBaseIsTheta) {
  for (const std::int64_t position : {1, 1023, 65535}) {
    expect_frequencies(turn_at(position, 64, 10000, 1), position, 64, 10000);
  }
}

// base' = theta * s^(D/(D-2)); the listed bases are those of theta = 10,000 and D = 64.
TEST(RotaryEmbedding, NtkAwareScalingChangesTheBase) {
  const std::pair<double, double> bases[] = {{2, 20452.2}, {4, 41829.4}, {8, 85550.4}};
  for (const auto& [scaling, rounded] : bases) {
    const double base = 10000 * std::pow(scaling, 64.0 / 62.0);
    EXPECT_NEAR(base, rounded, 0.05);
    for (const std::int64_t position : {1, 1023, 4095}) {
      expect_frequencies(turn_at(position, 64, 10000, scaling), position, 64, base);
    }
  }
}

// What the formula is made for: the slowest pair turns s times slower, as if positions were divided by s, and the
// fastest one as before.
TEST(RotaryEmbedding, NtkAwareScalingInterpolatesTheSlowestPairOnly) {
  for (const std::int64_t head_dim : {4, 64, 128}) {
    const auto plain = turn_at(1000, head_dim, 10000, 1), scaled = turn_at(4000, head_dim, 10000, 4);
    EXPECT_NEAR(scaled.sine[-1].item<double>(), plain.sine[-1].item<double>(), 1e-6) << head_dim;
    EXPECT_NEAR(scaled.cosine[-1].item<double>(), plain.cosine[-1].item<double>(), 1e-6) << head_dim;
    EXPECT_NEAR(scaled.sine[0].item<double>(), std::sin(4000.0), 1e-6) << head_dim;
  }
}

}  // namespace
}  // namespace tda
