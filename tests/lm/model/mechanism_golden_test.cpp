// Loss and gradients of each mechanism against published float64 values: one head, T = 8, D = 8, inputs from a linear
// congruential generator, loss = sum(output * W).
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <string>
#include <vector>

#include "golden_input.h"
#include "lm/model/attention_mechanism.h"

namespace tda {
namespace {

using test::every_mechanism;
using test::lcg;

constexpr std::int64_t kSize = 8;
constexpr double kUnpublished = NAN;

struct GoldenCase {
  std::string name;
  ModelConfig config;
  double loss;
  // Norms for q k v [q2 k2] and the mechanism's parameters in their order; of single numbers the signed value.
  std::vector<double> gradients;
  double score_factor = 1;  // the published case multiplies its scores by this
};

void PrintTo(const GoldenCase& c, std::ostream* out) { *out << c.name; }

ModelConfig base(const std::string& mechanism) {
  ModelConfig config;
  config.mechanism = mechanism;
  config.heads = 1;
  config.width = kSize;
  config.beta = 0.5;
  config.lambda = 0.6;
  config.ssmax_bias = true;
  config.ssmax_scale = 0.3;
  config.asentmax_bias = false;
  config.softpick_eps = 0;
  return config;
}

// base() with changes.
template <typename Change>
ModelConfig with(const std::string& mechanism, Change change) {
  auto config = base(mechanism);
  change(config);
  return config;
}

ModelConfig threshold(const std::string& mechanism, double power, double kappa, double beta) {
  return with(mechanism, [&](auto& c) {
    c.power = power;
    c.kappa = kappa;
    c.beta = beta;
  });
}

// Two heads, of which differential softmax makes one with values of 16.
ModelConfig diff_softmax() {
  return with("diff_softmax", [](auto& c) {
    c.heads = 2;
    c.width = 2 * kSize;
  });
}

double published_lambda() {
  const auto vector = [](std::uint32_t seed) { return 0.3 * lcg(seed, {kSize}); };
  const double first = vector(13).dot(vector(14)).item<double>(), second = vector(15).dot(vector(16)).item<double>();
  return std::exp(first) - std::exp(second) + 0.8 - 0.6 * std::exp(-0.6);
}

ModelConfig diff_rela() {
  return with("diff_rela", [](auto& c) {
    c.lambda = published_lambda();
    c.head_norm_eps = 1e-5;
  });
}

ModelConfig entmax(double alpha) {
  return with("entmax", [&](auto& c) { c.entmax_alpha = alpha; });
}

ModelConfig lssar(double power) {
  return with("lssar", [&](auto& c) { c.lssar_power = power; });
}

// The published tensors act on rows as x M; ours are [out, in].
at::Tensor golden_parameter(const ParameterSpec& spec, const ModelConfig& config) {
  const auto of_hidden = [&](std::uint32_t seed) { return lcg(seed, {kSize, spec.shape[0]}).t().contiguous(); };
  if (spec.name == "head_norm.weight") return 1 + 0.1 * lcg(11, spec.shape);
  if (spec.name == "head_norm.gate") return lcg(12, spec.shape);
  if (spec.name == "gate.weight") return of_hidden(7);
  if (spec.name == "beta.weight") return of_hidden(8);
  if (spec.name == "gamma.weight") return of_hidden(9);
  if (spec.name == "lambda_query1") return 0.3 * lcg(13, spec.shape);
  if (spec.name == "lambda_key1") return 0.3 * lcg(14, spec.shape);
  if (spec.name == "lambda_query2") return 0.3 * lcg(15, spec.shape);
  if (spec.name == "lambda_key2") return 0.3 * lcg(16, spec.shape);
  if (spec.name == "differential.weight") return 0.2 * lcg(17, spec.shape).t().contiguous();
  if (spec.name == "lambda_learned") return at::full(spec.shape, 0.3, at::kDouble);
  // At the end of the annealing lambda is the learned one.
  if (spec.name == "annealing_step") return at::full(spec.shape, config.dex_annealing_steps, at::kDouble);
  if (spec.name == "bias") return at::full(spec.shape, 0.2, at::kDouble);
  return at::full(spec.shape, spec.mean, at::kDouble);
}

class MechanismGolden : public testing::TestWithParam<GoldenCase> {};

TEST_P(MechanismGolden, LossAndGradients) {
  const auto& golden = GetParam();
  const auto mechanism = make_attention_mechanism(golden.config);
  const auto value_dim = mechanism->layout().value_dim;
  std::vector<at::Tensor> inputs;
  const auto input = [&](std::uint32_t seed, std::int64_t dim) {
    return inputs.emplace_back(lcg(seed, {1, 1, kSize, dim}).set_requires_grad(true));
  };
  ProjectedHeads heads;
  heads.q[0] = input(1, kSize) * golden.score_factor;
  heads.k[0] = input(2, kSize);
  heads.v = input(3, value_dim);
  if (mechanism->layout().views == 2) {
    heads.q[1] = input(4, kSize);
    heads.k[1] = input(5, kSize);
  }
  heads.hidden = at::eye(kSize, at::kDouble).unsqueeze(0);  // a weight is then a value for each position
  heads.layer = 2;
  std::vector<at::Tensor> parameters;
  for (const auto& spec : mechanism->parameters(2)) {
    parameters.push_back(golden_parameter(spec, golden.config).set_requires_grad(spec.trainable));
    if (spec.trainable) inputs.push_back(parameters.back());
  }
  const auto output = mechanism->attend(heads, parameters);
  const auto loss = (output * lcg(6, {1, kSize, value_dim})).sum();
  EXPECT_NEAR(loss.item<double>(), golden.loss, 1e-9);
  const auto gradients = torch::autograd::grad({loss}, inputs);
  ASSERT_EQ(gradients.size(), golden.gradients.size());
  for (std::size_t i = 0; i < gradients.size(); ++i) {
    if (std::isnan(golden.gradients[i])) continue;
    const double found = gradients[i].numel() == 1 ? gradients[i].item<double>() : gradients[i].norm().item<double>();
    EXPECT_NEAR(found, golden.gradients[i], 2e-8 * std::abs(golden.gradients[i])) << "gradient " << i;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Published, MechanismGolden,
    testing::Values(
        GoldenCase{"softmax", base("softmax"), 2.0357613508, {.481012972, .511985243, 2.60463747}},
        GoldenCase{
            "gated_softmax", base("gated_softmax"), .7608013262, {.227595056, .245038295, 1.21860827, .36023399}},
        GoldenCase{"gated_softmax_element",
                   with("gated_softmax", [](auto& c) { c.gate = "element"; }),
                   .7641669069,
                   {.247343985, .277270752, 1.53928827, .370083687}},
        GoldenCase{
            "ssmax_bias", base("ssmax"), 1.9743339652, {.344250846, .359471689, 2.58253129, .243368806, .174159137}},
        GoldenCase{"ssmax",
                   with("ssmax",
                        [](auto& c) {
                          c.ssmax_bias = false;
                          c.ssmax_scale = 0.168;
                        }),
                   1.9036397977,
                   {.140770643, .145546212, 2.55927456, .269332128}},
        GoldenCase{"entmax", entmax(1.5), 2.3277388137, {2.91087184, 3.09876104, 3.36293210}, 4},
        GoldenCase{"entmax_sparsemax", entmax(2), 2.2053101093, {4.00823646, 4.86156096, 3.68463555}, 4},
        GoldenCase{"entmax_near_softmax", entmax(1.25), 2.2865009128, {2.25187613, 2.35067129, 3.17763474}, 4},
        GoldenCase{
            "asentmax", base("asentmax"), 2.2732768907, {1.62568924, 1.73156000, 3.07393241, .057596935, .0620774664}},
        GoldenCase{"lssar", lssar(15), 1.5909794768, {5.38384054, 5.57093064, 4.14797794}},
        GoldenCase{"lssar_cubic", lssar(3), 2.0604686328, {5.44658457, 6.58381950, 3.74518499}},
        GoldenCase{"rela", base("rela"), 1.7068473582, {8.65028546, 10.1414842, 6.44001691, 3.15108309}},
        // Of a single head, the norm of every head is the norm of all heads together.
        GoldenCase{"rela_head_rms",
                   with("rela", [](auto& c) { c.rela_norm = "head_rms"; }),
                   1.7068473582,
                   {8.65028546, 10.1414842, 6.44001691, 3.15108309}},
        GoldenCase{"rela_gated",
                   with("rela", [](auto& c) { c.rela_norm = "gated_rms"; }),
                   .9923326306,
                   {4.47955099, 5.01343645, 3.17227909, 1.65881882, .247977736}},
        GoldenCase{"diff_softmax",
                   diff_softmax(),
                   1.7316940526,
                   {2.66505218, 3.96756126, 6.03662814, 1.17780169, 1.02016796, .0451211842, .0579943882, .0537488737,
                    .0535509395, 3.03745505}},
        GoldenCase{"diff_rela",
                   diff_rela(),
                   1.3452754210,
                   {5.92950836, 8.47289232, 7.22638046, 3.34099990, 4.68951354, 2.79462458, kUnpublished}},
        GoldenCase{"dex", base("dex"), 2.0242725962, {.516571354, .536777231, 2.52768529, 1.18075744, -.0382958487}},
        GoldenCase{"tra", base("tra"), -.7433800257, {17.7235553, 24.1614671, 4.82156799, 1.77925689, -21.7431366}},
        GoldenCase{"tda",
                   base("tda"),
                   -2.6135660552,
                   {16.6892368, 22.8167227, 7.60849009, 6.7645971, 7.60649882, 2.58964818, -18.029704, .00907496468}},
        GoldenCase{"tda_cubic",
                   threshold("tda", 3, 2, 0.3),
                   -.4677171792,
                   {13.1122471, 16.9601497, 7.62570466, 4.93689024, 5.7133052, 2.71353895, -2.54183346, -.0814883334}},
        GoldenCase{"tda_linear",
                   threshold("tda", 1, 1, 0.5),
                   -.7868311117,
                   {17.6772412, 22.6772558, 7.80770650, 7.11155933, 8.20619763, 2.67942136, -16.290368, -.403523984}},
        GoldenCase{"softpick", base("softpick"), .7996678390, {1.56246271, 1.78250888, 1.85966422}, 3}),
    [](const auto& golden) { return golden.param.name; });

// The published case has 15 keys below the average of their row.
TEST(Lssar, KeysBelowTheAverageOfTheirRowAreExactlyZero) {
  for (const double power : {3.0, 15.0}) {
    ProjectedHeads heads;
    heads.q[0] = lcg(1, {1, 1, kSize, kSize});
    heads.k[0] = lcg(2, {1, 1, kSize, kSize});
    heads.v = lcg(3, {1, 1, kSize, kSize});
    const auto counts = make_attention_mechanism(lssar(power))->count(heads, {});
    EXPECT_EQ(counts.pairs, 36);
    EXPECT_EQ(counts.zeros.item<std::int64_t>(), 15);
  }
}

// The dense maps that analysis reads are the weights that attend() applies: without the norm, effective * V is u, and a
// norm of the head does not change the direction of a row.
class MechanismMaps : public testing::TestWithParam<std::string> {};

TEST_P(MechanismMaps, EffectiveMapTimesValuesIsTheOutput) {
  const auto config = GetParam() == "diff_softmax" ? diff_softmax() : base(GetParam());
  const auto mechanism = make_attention_mechanism(config);
  const auto value_dim = mechanism->layout().value_dim;
  ProjectedHeads heads;
  for (std::uint32_t i = 0; i < 2; ++i) {
    heads.q[i] = lcg(1 + 3 * i, {1, 1, kSize, kSize}).to(at::kFloat);
    heads.k[i] = lcg(2 + 3 * i, {1, 1, kSize, kSize}).to(at::kFloat);
  }
  heads.v = lcg(3, {1, 1, kSize, value_dim}).to(at::kFloat);
  heads.hidden = lcg(7, {1, kSize, config.width}).to(at::kFloat);
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
  if (mechanism->parameters(0).empty()) {
    EXPECT_LE((rows - output).abs().max().item<float>(), 1e-5);
  }

  EXPECT_EQ(counts.pairs, kSize * (kSize + 1) / 2);
  EXPECT_EQ(counts.rows, kSize);
  EXPECT_EQ(counts.zeros.item<std::int64_t>(), counts.pairs - maps.effective.count_nonzero().item<std::int64_t>());
  EXPECT_EQ(counts.empty_rows.item<std::int64_t>(), empty.sum().item<std::int64_t>());
}

INSTANTIATE_TEST_SUITE_P(All, MechanismMaps, testing::ValuesIn(every_mechanism()),
                         [](const auto& name) { return name.param; });

}  // namespace
}  // namespace tda
