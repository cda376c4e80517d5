// Loss and gradients of each mechanism against published float64 values: one head, T = 8, D = 8, inputs from a linear
// congruential generator, loss = sum(output * W).
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <string>
#include <vector>

#include "lm/model/attention_mechanism.h"

namespace tda {
namespace {

constexpr std::int64_t kSize = 8;

// x <- (1664525 x + 1013904223) mod 2^32 from x = seed; values 2x/2^32 - 1 in (-1, 1), row-major.
at::Tensor lcg(std::uint32_t seed, at::IntArrayRef shape) {
  auto values = at::empty(shape, at::kDouble);
  std::uint32_t x = seed;
  for (std::int64_t i = 0; i < values.numel(); ++i) {
    x = 1664525u * x + 1013904223u;
    values.mutable_data_ptr<double>()[i] = 2.0 * x / 4294967296.0 - 1.0;
  }
  return values;
}

struct GoldenCase {
  std::string name;
  ModelConfig config;
  double loss;
  std::vector<double> gradients;  // norms for q k v q2 k2 gain; signed values for beta, lambda
};

ModelConfig config(const std::string& mechanism, double power = 2, double kappa = 1, double beta = 0.5) {
  ModelConfig config;
  config.mechanism = mechanism;
  config.heads = 1;
  config.width = kSize;
  config.power = power;
  config.kappa = kappa;
  config.beta = beta;
  config.lambda = 0.6;
  return config;
}

class MechanismGolden : public testing::TestWithParam<GoldenCase> {};

TEST_P(MechanismGolden, LossAndGradients) {
  const auto& golden = GetParam();
  const auto mechanism = make_attention_mechanism(golden.config);
  const auto input = [](std::uint32_t seed) { return lcg(seed, {1, 1, kSize, kSize}).set_requires_grad(true); };
  ProjectedHeads heads;
  heads.q[0] = input(1);
  heads.k[0] = input(2);
  heads.v = input(3);
  std::vector<at::Tensor> inputs{heads.q[0], heads.k[0], heads.v};
  if (mechanism->layout().views == 2) {
    heads.q[1] = input(4);
    heads.k[1] = input(5);
    inputs.insert(inputs.end(), {heads.q[1], heads.k[1]});
  }
  std::vector<at::Tensor> parameters;
  for (const auto& spec : mechanism->parameters(0)) {
    auto value = at::full(spec.shape, spec.mean, at::kDouble);
    if (spec.name == "head_norm.weight") value += 0.1 * lcg(11, spec.shape);
    parameters.push_back(value.set_requires_grad(true));
    inputs.push_back(parameters.back());
  }
  const auto output = mechanism->attend(heads, parameters);
  const auto loss = (output * lcg(6, {1, kSize, kSize})).sum();
  EXPECT_NEAR(loss.item<double>(), golden.loss, 1e-9);
  const auto gradients = torch::autograd::grad({loss}, inputs);
  ASSERT_EQ(gradients.size(), golden.gradients.size());
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    const double found = gradients[i].numel() == 1 ? gradients[i].item<double>() : gradients[i].norm().item<double>();
    EXPECT_NEAR(found, golden.gradients[i], 2e-8 * std::abs(golden.gradients[i])) << "gradient " << i;
  }
}

// Order of gradients: q k v [q2 k2] and the mechanism's parameters: gain beta lambda.
INSTANTIATE_TEST_SUITE_P(
    Published, MechanismGolden,
    testing::Values(
        GoldenCase{"softmax", config("softmax"), 2.0357613508, {.481012972, .511985243, 2.60463747}},
        GoldenCase{"rela", config("rela"), 1.7068473582, {8.65028546, 10.1414842, 6.44001691, 3.15108309}},
        GoldenCase{"tra", config("tra"), -.7433800257, {17.7235553, 24.1614671, 4.82156799, 1.77925689, -21.7431366}},
        GoldenCase{"tda",
                   config("tda"),
                   -2.6135660552,
                   {16.6892368, 22.8167227, 7.60849009, 6.7645971, 7.60649882, 2.58964818, -18.029704, .00907496468}},
        GoldenCase{"tda_cubic",
                   config("tda", 3, 2, 0.3),
                   -.4677171792,
                   {13.1122471, 16.9601497, 7.62570466, 4.93689024, 5.7133052, 2.71353895, -2.54183346, -.0814883334}},
        GoldenCase{"tda_linear",
                   config("tda", 1),
                   -.7868311117,
                   {17.6772412, 22.6772558, 7.80770650, 7.11155933, 8.20619763, 2.67942136, -16.290368, -.403523984}}),
    [](const auto& golden) { return golden.param.name; });

// The dense maps that analysis reads are the weights that attend() applies: without the norm, effective * V is u, and a
// norm does not change the direction of a row.
class MechanismMaps : public testing::TestWithParam<std::string> {};

TEST_P(MechanismMaps, EffectiveMapTimesValuesIsTheOutput) {
  const auto mechanism = make_attention_mechanism(config(GetParam()));
  ProjectedHeads heads;
  for (std::uint32_t i = 0; i < 2; ++i) {
    heads.q[i] = lcg(1 + 3 * i, {1, 1, kSize, kSize}).to(at::kFloat);
    heads.k[i] = lcg(2 + 3 * i, {1, 1, kSize, kSize}).to(at::kFloat);
  }
  heads.v = lcg(3, {1, 1, kSize, kSize}).to(at::kFloat);
  std::vector<at::Tensor> parameters;
  for (const auto& spec : mechanism->parameters(0)) parameters.push_back(at::full(spec.shape, spec.mean, at::kFloat));
  const auto counts = mechanism->count(heads, parameters);
  const auto output = mechanism->attend(heads, parameters)[0];
  const auto maps = mechanism->maps(heads, parameters);
  ASSERT_EQ(static_cast<int>(maps.views.size()), mechanism->layout().views);
  EXPECT_EQ(maps.effective.triu(1).abs().max().item<float>(), 0);
  const auto rows = at::matmul(maps.effective, heads.v)[0][0];
  const auto cosine = at::cosine_similarity(rows, output, -1, 1e-12);
  const auto empty = maps.effective[0][0].eq(0).all(-1);
  EXPECT_TRUE(cosine.masked_select(empty.logical_not()).gt(1 - 1e-5).all().item<bool>());
  EXPECT_TRUE(output.index({empty}).eq(0).all().item<bool>());

  EXPECT_EQ(counts.pairs, kSize * (kSize + 1) / 2);
  EXPECT_EQ(counts.rows, kSize);
  EXPECT_EQ(counts.zeros.item<std::int64_t>(), counts.pairs - maps.effective.count_nonzero().item<std::int64_t>());
  EXPECT_EQ(counts.empty_rows.item<std::int64_t>(), empty.sum().item<std::int64_t>());
}

INSTANTIATE_TEST_SUITE_P(All, MechanismMaps, testing::Values("softmax", "rela", "tra", "tda"));

}  // namespace
}  // namespace tda
