// A mechanism of one's own: one class and one line, and the model trains it, decodes with it and counts its zeros.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "lm/error.h"
#include "lm/generation/generate.h"
#include "small_model.h"

namespace tda {
namespace {

using test::random_ids;
using test::small_config;
using test::small_model;

// Every key that a row sees weighs the same: output = strength_h * mean of v.
class UniformAverage final : public AttentionMechanism {
 public:
  explicit UniformAverage(const ModelConfig& config) : layout_(one_view_layout(config)) {}

  HeadLayout layout() const override { return layout_; }

  std::vector<ParameterSpec> parameters(std::int64_t) const override {
    return {{.name = "strength", .shape = {layout_.heads}, .mean = 1.0}};
  }

  at::Tensor attend(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) const override {
    return joined_heads(at::matmul(maps(heads, parameters).effective, heads.v));
  }

  AttentionMaps maps(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) const override {
    const std::int64_t queries = heads.q[0].size(2), keys = heads.k[0].size(2);
    const auto visible = at::ones({queries, keys}, heads.v.options()).tril(keys - queries);
    const auto map = (visible / visible.sum(-1, true)) * parameters[0].reshape({-1, 1, 1});
    const auto all = map.expand({heads.v.size(0), layout_.heads, queries, keys});
    return {{all}, all};
  }

 private:
  HeadLayout layout_;
};

std::unique_ptr<AttentionMechanism> make_uniform_average(const ModelConfig& config) {
  return std::make_unique<UniformAverage>(config);
}

TEST(OwnMechanism, OneClassAndOneLineMakeAModel) {
  const RegisteredMechanism registered("uniform_average", make_uniform_average);
  EXPECT_EQ(attention_mechanism_names().back(), "uniform_average");

  const auto model = small_model(small_config("uniform_average"));
  const auto ids = random_ids(2, 32);
  AttentionStatistics statistics;
  model->loss(ids, ids, &statistics).backward();
  for (const auto& parameter : model->parameters()) {
    // Queries and keys have no part in it.
    const bool unused = parameter.name.ends_with("query.weight") || parameter.name.ends_with("key.weight");
    EXPECT_EQ(parameter.tensor.grad().abs().max().item<float>() > 0, !unused) << parameter.name;
  }
  EXPECT_EQ(statistics.sparsity()[1][3], 0);

  at::NoGradGuard no_gradient;
  KeyValueCache cache(model->config().layers);
  const auto weights = model->prepare();
  model->forward(weights, ids.narrow(1, 0, 20), {.cache = &cache});
  const auto rest = model->forward(weights, ids.narrow(1, 20, 12), {.cache = &cache});
  const auto expected = model->forward(ids).narrow(1, 20, 12);
  EXPECT_LE((rest - expected).abs().max().item<double>(), 2e-5 * expected.abs().max().item<double>());
}

TEST(OwnMechanism, ANameIsTakenOnceAndFreeAgainAfterwards) {
  const auto before = attention_mechanism_names().size();
  {
    const RegisteredMechanism registered("uniform_average", make_uniform_average);
    EXPECT_THROW(RegisteredMechanism("uniform_average", make_uniform_average), Error);
    EXPECT_EQ(attention_mechanism_names().size(), before + 1);
  }
  EXPECT_EQ(attention_mechanism_names().size(), before);
  EXPECT_THROW(RegisteredMechanism("tda", make_uniform_average), Error);
  EXPECT_THROW(make_attention_mechanism(small_config("uniform_average")), Error);
}

}  // namespace
}  // namespace tda
