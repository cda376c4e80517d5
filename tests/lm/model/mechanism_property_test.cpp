// What must hold for a mechanism whatever its inputs, and how mechanisms turn into one another at the edges of their
// parameters. fp64.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "golden_input.h"
#include "lm/model/attention_mechanism.h"

namespace tda {
namespace {

using test::lcg;
using test::random_heads;
using test::random_parameters;

constexpr double kRounding = 1e-12;
constexpr std::int64_t kLength = 20;

ModelConfig property_config(const std::string& mechanism) {
  ModelConfig config;
  config.mechanism = mechanism;
  config.heads = 2;
  config.width = 16;
  config.beta = 0.5;
  return config;
}

ProjectedHeads detached(ProjectedHeads heads) {
  for (auto* group : {&heads.q, &heads.k}) {
    for (auto& tensor : *group) {
      if (tensor.defined()) tensor = tensor.detach();
    }
  }
  heads.v = heads.v.detach();
  heads.hidden = heads.hidden.detach();
  return heads;
}

struct Instance {
  explicit Instance(const ModelConfig& c)
      : config(c), mechanism(make_attention_mechanism(c)), heads(detached(random_heads(c, 2, kLength, kLength))) {
    for (const auto& value : random_parameters(c)) parameters.push_back(value.detach());
  }
  explicit Instance(const std::string& name) : Instance(property_config(name)) {}

  at::Tensor attend() const { return mechanism->attend(heads, parameters); }
  AttentionMaps maps() const { return mechanism->maps(heads, parameters); }

  ModelConfig config;
  std::shared_ptr<AttentionMechanism> mechanism;
  ProjectedHeads heads;
  std::vector<at::Tensor> parameters;
};

double distance(const at::Tensor& a, const at::Tensor& b) { return (a - b).abs().max().item<double>(); }

TEST(MechanismProperty, RowsOfANormalizedMapSumToOne) {
  for (const char* name : {"softmax", "gated_softmax", "ssmax", "entmax", "lssar", "dex", "asentmax"}) {
    const auto weights = Instance(name).maps().views[0];
    EXPECT_LE(distance(weights.sum(-1), at::ones_like(weights.sum(-1))), kRounding) << name;
    EXPECT_GE(weights.min().item<double>(), 0) << name;
  }
}

TEST(MechanismProperty, RowsOfDifferentialSoftmaxSumToOneMinusLambda) {
  const Instance instance("diff_softmax");
  const auto& p = instance.parameters;
  const double lambda = std::exp(p[0].dot(p[1]).item<double>()) - std::exp(p[2].dot(p[3]).item<double>()) + 0.8 -
                        0.6 * std::exp(-0.3 * static_cast<double>(instance.heads.layer));
  const auto sums = instance.maps().effective.sum(-1);
  EXPECT_LE(distance(sums, at::full_like(sums, 1 - lambda)), kRounding);
}

// P / (P + N), with P and N the sums of |e^z - 1| over the keys with positive and negative scores.
TEST(MechanismProperty, RowsOfSoftpickSumToTheShareOfPositiveScores) {
  auto config = property_config("softpick");
  config.softpick_eps = 0;
  const Instance instance(config);
  const auto scores = at::matmul(instance.heads.q[0], instance.heads.k[0].transpose(-1, -2)) / std::sqrt(8.0);
  const auto signed_part = scores.expm1().tril();
  const auto positive = signed_part.clamp_min(0).sum(-1), total = signed_part.abs().sum(-1);
  const auto sums = instance.maps().effective.sum(-1);
  EXPECT_LE(distance(sums, positive / total), kRounding);
  EXPECT_LE(sums.max().item<double>(), 1 + kRounding);
  EXPECT_EQ(sums.min().item<double>(), 0);  // a row whose only key scores below 0
}

// A score shift of a whole row changes nothing, or sum_j dL/dz_ij = 0: the same vector added to every key shifts row i
// by its product with q_i.
TEST(MechanismProperty, AShiftOfAllKeysChangesOnlyMapsThatAreNoneOfDifferences) {
  const auto change = [](const std::string& name) {
    Instance instance(name);
    const auto before = instance.attend();
    for (auto& keys : instance.heads.k) {
      if (keys.defined()) keys = keys + lcg(99, {keys.size(-1)});
    }
    return distance(before, instance.attend());
  };
  for (const char* name : {"softmax", "gated_softmax", "ssmax", "entmax", "diff_softmax", "dex", "asentmax"}) {
    EXPECT_LE(change(name), 1e-11) << name;
  }
  for (const char* name : {"lssar", "rela", "diff_rela", "tra", "tda", "softpick"}) {
    EXPECT_GT(change(name), 1e-3) << name;
  }
}

TEST(MechanismProperty, LengthsOfQueriesAndKeysChangeOnlyMapsOfProducts) {
  const auto change = [](const std::string& name) {
    Instance instance(name);
    const auto before = instance.attend();
    const auto scaled = [](const at::Tensor& x) { return x * lcg(98, {x.size(2), 1}).exp(); };
    for (auto* group : {&instance.heads.q, &instance.heads.k}) {
      for (auto& tensor : *group) {
        if (tensor.defined()) tensor = scaled(tensor);
      }
    }
    return distance(before, instance.attend());
  };
  for (const char* name : {"lssar", "tra", "tda"}) EXPECT_LE(change(name), 1e-9) << name;
  for (const char* name : {"softmax", "gated_softmax", "ssmax", "entmax", "rela", "diff_softmax", "dex", "diff_rela",
                           "asentmax", "softpick"}) {
    EXPECT_GT(change(name), 1e-3) << name;
  }
}

// With threshold 0 and power 1, TRA is ReLA on cosines.
TEST(MechanismProperty, TraWithoutThresholdIsRelaOnCosines) {
  auto config = property_config("tra");
  config.power = 1;
  Instance by_beta(config);
  by_beta.parameters[1] = at::zeros_like(by_beta.parameters[1]);
  config.kappa = kLength;
  const Instance by_kappa(config);
  auto rela_config = property_config("rela");
  rela_config.rela_norm = "head_rms";
  Instance rela(rela_config);
  rela.parameters[0] = by_beta.parameters[0];
  const auto unit = [](const at::Tensor& x) { return x / x.norm(2, -1, true); };
  rela.heads.q[0] = unit(rela.heads.q[0]) * std::sqrt(8.0);
  rela.heads.k[0] = unit(rela.heads.k[0]);
  EXPECT_LE(distance(by_beta.attend(), by_kappa.attend()), kRounding);
  EXPECT_LE(distance(by_beta.attend(), rela.attend()), 1e-9);
}

TEST(MechanismProperty, TdaWithoutItsSecondViewIsTra) {
  Instance tda("tda"), tra("tra");
  tda.parameters[2] = at::zeros_like(tda.parameters[2]);
  tra.parameters = {tda.parameters[0], tda.parameters[1]};
  EXPECT_LE(distance(tda.attend(), tra.attend()), kRounding);
}

TEST(MechanismProperty, EqualViewsCancel) {
  for (const char* name : {"tda", "diff_rela"}) {
    Instance instance(name);
    instance.heads.q[1] = instance.heads.q[0];
    instance.heads.k[1] = instance.heads.k[0];
    instance.parameters.back() = at::ones_like(instance.parameters.back());
    EXPECT_EQ(instance.attend().abs().max().item<double>(), 0) << name;
  }
}

TEST(MechanismProperty, GatesAndFactorsThatDoNothingLeaveSoftmax) {
  const auto softmax = Instance("softmax").attend();
  Instance gated("gated_softmax");
  gated.parameters[0] = at::zeros_like(gated.parameters[0]);  // sigmoid(0) = 1/2
  EXPECT_LE(distance(2 * gated.attend(), softmax), kRounding);
  auto config = property_config("ssmax");
  config.ssmax_bias = true;
  Instance ssmax(config);
  ssmax.parameters = {at::zeros({2}, at::kDouble), at::ones({2}, at::kDouble)};
  EXPECT_LE(distance(ssmax.attend(), softmax), kRounding);
  Instance dex("dex");
  dex.parameters[2] = at::zeros_like(dex.parameters[2]);  // the first step
  EXPECT_LE(distance(dex.attend(), softmax), kRounding);
}

TEST(MechanismProperty, EntmaxNearOneIsSoftmax) {
  auto config = property_config("entmax");
  config.entmax_alpha = 1 + 1e-7;
  EXPECT_LE(distance(Instance(config).attend(), Instance("softmax").attend()), 1e-6);
}

// The threshold of sparsemax by sorting: k* is the largest k with k z_(k) > sum of the first k - 1.
TEST(MechanismProperty, SparsemaxIsTheProjectionOntoTheSimplex) {
  auto config = property_config("entmax");
  config.entmax_alpha = 2;
  Instance instance(config);
  instance.heads.q[0] = instance.heads.q[0] * 5;
  const auto map = instance.maps().effective[1][1];
  const auto scores = (at::matmul(instance.heads.q[0], instance.heads.k[0].transpose(-1, -2)) / std::sqrt(8.0))[1][1];
  EXPECT_GT(map.eq(0).sum().item<std::int64_t>(), kLength * (kLength - 1) / 2 + kLength);  // some within the triangle
  for (std::int64_t i = 0; i < kLength; ++i) {
    const auto row = scores[i].narrow(0, 0, i + 1);
    const auto sorted = std::get<0>(row.sort(-1, true));
    double sum = 0, tau = 0;
    for (std::int64_t k = 1; k <= i + 1; ++k) {
      const double z = sorted[k - 1].item<double>();
      if (static_cast<double>(k) * z <= sum - 1 + z) break;
      sum += z;
      tau = (sum - 1) / static_cast<double>(k);
    }
    EXPECT_LE(distance(map[i].narrow(0, 0, i + 1), (row - tau).clamp_min(0)), kRounding) << "row " << i;
  }
}

// Zeros are counted some rows after the others: 700 rows of 8 maps make three blocks.
TEST(MechanismProperty, BlocksOfRowsCountTheZerosOfTheWholeMap) {
  for (const auto& name : test::every_mechanism()) {
    auto config = property_config(name);
    config.heads = 4;
    config.width = 32;
    Instance instance(config);
    instance.heads = detached(random_heads(config, 2, 700, 710));
    const auto counts = instance.mechanism->count(instance.heads, instance.parameters);
    const auto map = instance.maps().effective;
    const auto zeros = map.eq(0).sum({0, 2, 3}) - 2 * (700 * 699 / 2);
    EXPECT_EQ(counts.pairs, 2 * (700 * 10 + 700 * 701 / 2)) << name;
    EXPECT_EQ(counts.rows, 2 * 700) << name;
    EXPECT_TRUE(at::equal(counts.zeros, zeros)) << name;
    EXPECT_TRUE(at::equal(counts.empty_rows, map.eq(0).all(-1).sum(at::IntArrayRef{0, 2}))) << name;
  }
}

// Scores that would overflow e^z or a power of n, all alike, or far below 0: finite values of the right size.
TEST(MechanismProperty, ExtremeScoresStayFinite) {
  for (const char* name : {"softmax", "ssmax", "entmax", "lssar", "asentmax", "softpick"}) {
    for (const double factor : {1e4, 0.0}) {
      for (const auto type : {at::kDouble, at::kFloat}) {
        Instance instance(name);
        auto q = (instance.heads.q[0] * factor).to(type).requires_grad_();
        instance.heads.q[0] = q;
        instance.heads.k[0] = instance.heads.k[0].to(type);
        instance.heads.v = instance.heads.v.to(type);
        for (auto& parameter : instance.parameters) parameter = parameter.to(type);
        instance.heads.hidden = instance.heads.hidden.to(type);
        const auto output = instance.attend();
        EXPECT_TRUE(output.isfinite().all().item<bool>()) << name << " " << factor;
        EXPECT_LE(output.abs().max().item<double>(), 1 + 1e-5) << name << " " << factor;
        output.sum().backward();
        EXPECT_TRUE(q.grad().isfinite().all().item<bool>()) << name << " " << factor;
      }
    }
  }
}

// Without differences between keys, every normalized map is the average.
TEST(MechanismProperty, EqualKeysGetEqualWeights) {
  const auto n = at::arange(1, kLength + 1, at::kDouble).unsqueeze(-1);
  const auto average = at::ones({kLength, kLength}, at::kDouble).tril() / n;
  for (const char* name : {"softmax", "ssmax", "entmax", "lssar", "asentmax"}) {
    Instance instance(name);
    instance.heads.k[0] = at::ones_like(instance.heads.k[0]);
    const auto map = instance.maps().effective;
    EXPECT_LE(distance(map, average.expand_as(map)), kRounding) << name;
  }
}

}  // namespace
}  // namespace tda
