#include "lm/model/gpt.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <set>

#include "golden_input.h"
#include "lm/error.h"
#include "small_model.h"

namespace tda {
namespace {

using test::random_ids;
using test::small_config;
using test::small_model;

class EveryMechanism : public testing::TestWithParam<std::string> {};

TEST_P(EveryMechanism, FutureTokensChangeNothing) {
  at::NoGradGuard no_gradient;
  const auto model = small_model(small_config(GetParam()));
  const auto ids = random_ids(2, 32);
  auto changed = ids.clone();
  changed.narrow(1, 20, 12).copy_(random_ids(2, 12, 2));
  const auto before = model->forward(ids), after = model->forward(changed);
  EXPECT_TRUE(at::equal(before.narrow(1, 0, 20), after.narrow(1, 0, 20)));
  EXPECT_GT((before.narrow(1, 20, 12) - after.narrow(1, 20, 12)).abs().min().item<float>(), 0);
}

// Length terms use the row's own position, never T. Another T means other blocks in the matrix products, hence
// rounding.
TEST_P(EveryMechanism, RowsOfAPrefixEqualThoseOfTheWhole) {
  at::NoGradGuard no_gradient;
  const auto model = small_model(small_config(GetParam()));
  const auto ids = random_ids(2, 32);
  const auto whole = model->forward(ids);
  const auto prefix = model->forward(ids.narrow(1, 0, 13).contiguous());
  EXPECT_LE((prefix - whole.narrow(1, 0, 13)).abs().max().item<double>(), 2e-5 * whole.abs().max().item<double>());
}

// Each bf16 rounding is off by at most 2^-9; about ten stand one after another in each of the two layers. A wrong
// formula in the bf16 path is off by the size of the logits.
TEST_P(EveryMechanism, Bf16IsCloseToFp32) {
  at::NoGradGuard no_gradient;
  auto config = small_config(GetParam());
  const auto model = std::make_unique<Gpt>(config);
  model->initialize(3);
  const auto ids = random_ids(4, 32);
  const auto exact = model->forward(ids);
  model->set_precision(Precision::kBFloat16);
  const auto rounded = model->forward(ids);
  EXPECT_EQ(rounded.scalar_type(), at::kBFloat16);
  const double error = (rounded.to(at::kFloat) - exact).norm().item<double>() / exact.norm().item<double>();
  EXPECT_LT(error, 20 * 0x1p-9);
  EXPECT_GT(error, 0);
}

TEST_P(EveryMechanism, StatisticsCountEveryHeadOfEveryLayer) {
  at::NoGradGuard no_gradient;
  const auto model = small_model(small_config(GetParam()));
  const auto head_count = model->mechanism().layout().heads;
  const auto ids = random_ids(2, 32);
  AttentionStatistics statistics;
  std::vector<std::vector<double>> expected;
  for (int pass = 0; pass < 2; ++pass) model->loss(ids, ids, &statistics);
  model->forward(model->prepare(), ids, {.observer = [&](auto, const auto& heads, auto parameters) {
                   const auto map = model->mechanism().maps(heads, parameters).effective;
                   const auto nonzero = map.ne(0).sum({0, 2, 3}).to(at::kDouble) / (2 * 32 * 33 / 2.0);
                   auto& row = expected.emplace_back();
                   for (std::int64_t h = 0; h < head_count; ++h) row.push_back(1 - nonzero[h].template item<double>());
                 }});
  const auto sparsity = statistics.sparsity();
  EXPECT_EQ(statistics.pairs, 2 * 2 * 32 * 33 / 2);
  EXPECT_EQ(statistics.rows, 2 * 2 * 32);
  ASSERT_EQ(sparsity.size(), 2u);
  ASSERT_EQ(statistics.empty_row_share().size(), 2u);
  for (std::size_t layer = 0; layer < 2; ++layer) {
    ASSERT_EQ(sparsity[layer].size(), static_cast<std::size_t>(head_count));
    for (std::size_t h = 0; h < sparsity[layer].size(); ++h) EXPECT_NEAR(sparsity[layer][h], expected[layer][h], 1e-3);
  }
  const std::set<std::string> dense{"softmax", "gated_softmax", "ssmax", "diff_softmax", "dex"};
  if (dense.contains(GetParam())) {
    EXPECT_EQ(sparsity[0][0], 0.0);
  } else {
    EXPECT_GT(sparsity[0][0], 0.1);
  }
}

INSTANTIATE_TEST_SUITE_P(Mechanisms, EveryMechanism, testing::ValuesIn(test::every_mechanism()),
                         [](const auto& name) { return name.param; });

// What a mechanism adds to the parameters of softmax, 12 layers of 12 heads of 64.
std::int64_t added_parameters(const std::function<void(ModelConfig&)>& change) {
  ModelConfig softmax, other;
  softmax.mechanism = "softmax";
  change(other);
  return Gpt(other).parameter_count().total - Gpt(softmax).parameter_count().total;
}

TEST(Gpt, CountsParametersAsPublished) {
  ModelConfig config;
  config.mechanism = "softmax";
  const auto softmax = Gpt(config).parameter_count();
  EXPECT_EQ(softmax.attention + softmax.mlp, 12 * 12 * 768 * 768);
  EXPECT_EQ(softmax.embedding, 50304 * 768);
  EXPECT_EQ(softmax.head, 50304 * 768);
  EXPECT_EQ(softmax.norm, 25 * 768);
  EXPECT_EQ(softmax.total, 12 * 12 * 768 * 768 + 2 * 50304 * 768 + 25 * 768);

  const auto added = [](const char* mechanism) { return added_parameters([&](auto& c) { c.mechanism = mechanism; }); };
  EXPECT_EQ(added("gated_softmax"), 110592);
  EXPECT_EQ(added("ssmax"), 144);
  EXPECT_EQ(added("entmax"), 0);
  EXPECT_EQ(added("lssar"), 0);
  EXPECT_EQ(added("rela"), 9216);
  EXPECT_EQ(added("diff_softmax"), 4608);
  EXPECT_EQ(added("dex"), 49164);
  EXPECT_EQ(added("diff_rela"), 12 * (2 * 768 * 768 + 768 + 12));
  EXPECT_EQ(added("tra"), 9216 + 144);
  // Two more matrices and a gain of 768 a layer, beta and lambda of every head.
  EXPECT_EQ(added("tda"), 12 * (2 * 768 * 768 + 768 + 24));
  EXPECT_EQ(added("asentmax"), 221472);
  EXPECT_EQ(added("softpick"), 0);
}

TEST(Gpt, CountsParametersOfOptions) {
  const auto added = [](const char* mechanism, auto change) {
    return added_parameters([&](auto& c) {
      c.mechanism = mechanism;
      change(c);
    });
  };
  const auto halved = [](auto& c) { c.view_heads = ViewHeads::kHalved; };
  EXPECT_EQ(added("tda", halved), 12 * (768 + 12));
  EXPECT_EQ(added("diff_rela", halved), 12 * (768 + 6));
  EXPECT_EQ(added("gated_softmax", [](auto& c) { c.gate = "element"; }), 12 * 768 * 768);
  EXPECT_EQ(added("ssmax", [](auto& c) { c.ssmax_bias = true; }), 288);
  EXPECT_EQ(added("asentmax", [](auto& c) { c.asentmax_bias = false; }), 12 * 2 * 12 * 768);
  EXPECT_EQ(added("rela", [](auto& c) { c.rela_norm = "gated_rms"; }), 18432);
}

TEST(Gpt, StartsTheSameForTheSameSeed) {
  const auto first = small_model(small_config("tda"), 5), second = small_model(small_config("tda"), 5);
  const auto other = small_model(small_config("tda"), 6), softmax = small_model(small_config("softmax"), 5);
  EXPECT_TRUE(at::equal(first->parameters()[0].tensor, second->parameters()[0].tensor));
  EXPECT_FALSE(at::equal(first->parameters()[0].tensor, other->parameters()[0].tensor));
  // What two mechanisms share starts equal, so that comparisons differ in the mechanism alone.
  EXPECT_TRUE(at::equal(first->parameters()[0].tensor, softmax->parameters()[0].tensor));
}

TEST(Gpt, StartsWithThePrescribedDeviations) {
  auto config = small_config("tda");
  config.width = 256;
  Gpt model(config);
  model.initialize(1);
  for (const auto& parameter : model.parameters()) {
    if (!parameter.decay) continue;
    const bool into_residual = parameter.name.ends_with("output.weight") || parameter.name.ends_with("down.weight");
    const double expected = into_residual ? 0.02 / std::sqrt(2.0 * 2) : 0.02;
    // The standard error of a deviation over n values is 1/sqrt(2n); n >= 65536.
    EXPECT_NEAR(parameter.tensor.std().item<double>(), expected, 0.015 * expected) << parameter.name;
    EXPECT_NEAR(parameter.tensor.mean().item<double>(), 0, 5 * expected / 256) << parameter.name;
  }
}

TEST(Gpt, ProjectsLambdaAfterTheOptimizer) {
  const auto model = small_model(small_config("tda"));
  for (const auto& parameter : model->parameters()) {
    at::NoGradGuard no_gradient;
    auto tensor = parameter.tensor;
    if (parameter.name.ends_with(".lambda")) tensor.copy_(at::tensor({-0.5f, 0.25f, 1.0f, 1.5f}));
    if (parameter.name.ends_with(".beta")) tensor.fill_(-3);
  }
  model->after_optimizer_step();
  for (const auto& parameter : model->parameters()) {
    if (parameter.name.ends_with(".lambda")) {
      EXPECT_TRUE(at::equal(parameter.tensor.detach(), at::tensor({0.0f, 0.25f, 1.0f, 1.0f})));
    }
    if (parameter.name.ends_with(".beta")) {
      EXPECT_EQ(parameter.tensor.max().item<float>(), -3);
    }
  }
}

// W = 0 and lambda = 0 have no gradient; what starts the training is the schedule.
TEST(Gpt, StepsOfTheOptimizerStartDex) {
  const auto model = small_model(small_config("dex"));
  const auto find = [&](const char* name) {
    return std::find_if(model->parameters().begin(), model->parameters().end(),
                        [&](const auto& parameter) { return parameter.name.ends_with(name); })
        ->tensor;
  };
  const auto ids = random_ids(2, 32);
  const auto weight = find("differential.weight");
  model->loss(ids, ids).backward();
  EXPECT_EQ(weight.grad().abs().max().item<float>(), 0);
  model->after_optimizer_step();
  EXPECT_EQ(find("annealing_step").item<float>(), 1);
  EXPECT_FALSE(find("annealing_step").requires_grad());
  model->loss(ids, ids).backward();
  EXPECT_GT(weight.grad().abs().max().item<float>(), 0);
}

TEST(Gpt, FixesWhatIsNotLearned) {
  auto config = small_config("tda");
  config.learn_beta = false;
  config.learn_lambda = false;
  const auto model = small_model(config);
  const auto ids = random_ids(2, 32);
  model->loss(ids, ids).backward();
  for (const auto& parameter : model->parameters()) {
    const bool fixed = parameter.name.ends_with(".beta") || parameter.name.ends_with(".lambda");
    EXPECT_EQ(parameter.tensor.requires_grad(), !fixed) << parameter.name;
    EXPECT_EQ(parameter.tensor.grad().defined(), !fixed) << parameter.name;
  }
}

// Training repeats bit for bit only if the gradients do.
TEST(Gpt, GradientsAreBitwiseRepeatable) {
  for (const auto precision : {Precision::kFloat32, Precision::kBFloat16}) {
    std::vector<at::Tensor> first;
    for (int pass = 0; pass < 2; ++pass) {
      const auto model = small_model(small_config("tda"));
      model->set_precision(precision);
      const auto ids = random_ids(4, 32);
      model->loss(ids, ids).backward();
      for (std::size_t i = 0; i < model->parameters().size(); ++i) {
        const auto gradient = model->parameters()[i].tensor.grad();
        if (pass == 0) first.push_back(gradient);
        EXPECT_TRUE(at::equal(gradient, first[i])) << model->parameters()[i].name;
      }
    }
  }
}

// Which heads a forward screens follows from the counters of the layer's last call. On the CPU none is screened, and
// the operator writes zeros over whatever they hold: that is how to see that it gets them.
TEST(Gpt, KeepsScreeningCountersForEachLayer) {
  at::NoGradGuard no_gradient;
  for (const std::string mechanism : {"tra", "tda"}) {
    SCOPED_TRACE(mechanism);
    const auto model = small_model(small_config(mechanism));
    const auto weights = model->prepare();
    std::vector<at::Tensor> counters;
    const auto fill = [&](std::int64_t, const ProjectedHeads& heads, std::span<const at::Tensor>) {
      counters.push_back(heads.screening_counters.value().fill_(77));
    };
    for (int call = 0; call < 2; ++call) model->forward(weights, random_ids(2, 32), {.observer = fill});
    ASSERT_EQ(counters.size(), 4);
    EXPECT_TRUE(counters[2].is_same(counters[0]));
    EXPECT_TRUE(counters[3].is_same(counters[1]));
    EXPECT_FALSE(counters[1].is_same(counters[0]));
    for (const auto& layer : counters) EXPECT_EQ(layer.count_nonzero().item<std::int64_t>(), 0);

    KeyValueCache cache(model->config().layers);
    const auto expect_none = [](std::int64_t, const ProjectedHeads& heads, std::span<const at::Tensor>) {
      EXPECT_FALSE(heads.screening_counters.has_value());
    };
    model->forward(weights, random_ids(2, 32), {.cache = &cache, .observer = expect_none});
  }
}

TEST(Gpt, RefusesBadInput) {
  const auto model = small_model(small_config("tda"));
  EXPECT_THROW(model->forward(at::full({1, 3}, 320, at::kLong)), Error);
  EXPECT_THROW(model->forward(at::full({1, 3}, -1, at::kLong)), Error);
  EXPECT_THROW(model->forward(at::zeros({3}, at::kLong)), Error);
  EXPECT_THROW(model->forward(at::zeros({1, 3}, at::kFloat)), Error);
  EXPECT_THROW(model->loss(random_ids(1, 4), random_ids(1, 5)), Error);
  EXPECT_THROW(model->loss(random_ids(1, 4), at::full({1, 4}, 320, at::kLong)), Error);
  try {
    model->forward(at::full({1, 3}, 400, at::kLong));
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "token id 400 is out of range, expected 0 to 319");
  }
}

}  // namespace
}  // namespace tda
