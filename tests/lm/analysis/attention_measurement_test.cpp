#include "lm/analysis/attention_measurement.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <string>

#include "../model/golden_input.h"
#include "lm/analysis/heads_dump.h"
#include "lm/error.h"
#include "lm/model/safetensors.h"

namespace tda {
namespace {

constexpr std::int64_t kLayers = 2, kHeads = 2, kLength = 24;

ModelConfig small_config(const std::string& mechanism) {
  ModelConfig config;
  config.mechanism = mechanism;
  config.layers = kLayers;
  config.heads = kHeads;
  config.width = 32;
  config.context = 32;
  config.vocabulary = 64;
  config.beta = 0.3;  // enough survivors to count
  return config;
}

Gpt small_model(const ModelConfig& config) {
  Gpt model(config);
  model.initialize(7);
  return model;
}

at::Tensor some_ids(std::int64_t windows) {
  at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(3);
  return at::randint(0, 64, {windows, kLength}, generator, at::TensorOptions().dtype(at::kLong));
}

TEST(AttentionMeasurement, SoftmaxIsDense) {
  Gpt model = small_model(small_config("softmax"));
  const auto views = measure_attention(model, some_ids(3));
  ASSERT_EQ(views.size(), 1u);
  EXPECT_EQ(views[0].name, "effective");
  ASSERT_EQ(views[0].sparsity.size(), static_cast<std::size_t>(kLayers));
  for (std::size_t layer = 0; layer < kLayers; ++layer) {
    ASSERT_EQ(views[0].sparsity[layer].size(), static_cast<std::size_t>(kHeads));
    for (std::size_t head = 0; head < kHeads; ++head) {
      EXPECT_EQ(views[0].sparsity[layer][head], 0.0);
      EXPECT_EQ(views[0].empty_rows[layer][head], 0.0);
      EXPECT_DOUBLE_EQ(views[0].survivors_per_row[layer][head], (kLength + 1) / 2.0);
    }
  }
}

// The model counts zeros for its validation by another way: through the operator, without dense maps.
TEST(AttentionMeasurement, AgreesWithWhatValidationCounts) {
  for (const auto& mechanism : test::every_mechanism()) {
    Gpt model = small_model(small_config(mechanism));
    const at::Tensor ids = some_ids(4);
    AttentionStatistics counted;
    {
      const at::NoGradGuard no_gradient;
      model.loss(ids, ids, &counted);
    }
    const auto views = measure_attention(model, ids, 3);
    for (std::size_t layer = 0; layer < kLayers; ++layer) {
      ASSERT_EQ(views[0].sparsity[layer].size(), counted.sparsity()[layer].size()) << mechanism;
      for (std::size_t head = 0; head < views[0].sparsity[layer].size(); ++head) {
        EXPECT_NEAR(views[0].sparsity[layer][head], counted.sparsity()[layer][head], 1e-12) << mechanism;
        EXPECT_NEAR(views[0].empty_rows[layer][head], counted.empty_row_share()[layer][head], 1e-12) << mechanism;
      }
    }
  }
}

TEST(AttentionMeasurement, BatchSizeChangesNothing) {
  Gpt model = small_model(small_config("tda"));
  const at::Tensor ids = some_ids(5);
  const auto one = measure_attention(model, ids, 1);
  const auto many = measure_attention(model, ids, 4);
  ASSERT_EQ(one.size(), 3u);
  for (std::size_t view = 0; view < one.size(); ++view) {
    EXPECT_EQ(one[view].name, many[view].name);
    for (std::size_t layer = 0; layer < kLayers; ++layer) {
      for (std::size_t head = 0; head < kHeads; ++head) {
        EXPECT_NEAR(one[view].effective_entropy[layer][head], many[view].effective_entropy[layer][head], 1e-6);
        EXPECT_NEAR(one[view].sink_ratio[layer][head], many[view].sink_ratio[layer][head], 1e-6);
      }
    }
  }
}

TEST(AttentionMeasurement, WithoutASecondViewTheEffectiveMapIsTheFirst) {
  ModelConfig config = small_config("tda");
  config.lambda = 0;
  Gpt model = small_model(config);
  const auto views = attention_maps(model, some_ids(1)[0]);
  ASSERT_EQ(views.size(), 3u);
  EXPECT_EQ(views[1].name, "view 1");
  EXPECT_EQ(views[2].name, "view 2");
  for (std::size_t layer = 0; layer < kLayers; ++layer) {
    EXPECT_TRUE(views[0].maps[layer].equal(views[1].maps[layer]));
    EXPECT_FALSE(views[0].maps[layer].equal(views[2].maps[layer]));
  }
}

TEST(AttentionMeasurement, TheEffectiveMapIsTheSignedDifference) {
  Gpt model = small_model(small_config("tda"));
  const auto views = attention_maps(model, some_ids(1)[0]);
  for (std::size_t layer = 0; layer < kLayers; ++layer) {
    const at::Tensor difference = views[1].maps[layer] - 0.5 * views[2].maps[layer];
    EXPECT_LT((difference - views[0].maps[layer]).abs().max().item<float>(), 1e-6f);
    EXPECT_TRUE(views[0].maps[layer].lt(0).any().item<bool>());
    EXPECT_TRUE(views[0].maps[layer].equal(views[0].maps[layer].tril()));
  }
}

class HeadsDump : public ::testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove(file_); }
  // Tests run beside each other, so each has a file of its own.
  std::filesystem::path file_ =
      std::filesystem::path(::testing::TempDir()) /
      (std::string("tda_heads_dump_") + ::testing::UnitTest::GetInstance()->current_test_info()->name());
};

// Softmax of the dumped heads has to be the map that the model reports for the same text.
TEST_F(HeadsDump, HoldsWhatAttentionSaw) {
  Gpt model = small_model(small_config("softmax"));
  const at::Tensor ids = some_ids(1);
  dump_heads(model, ids, 1, file_);
  const SafetensorsFile dump(file_);
  EXPECT_EQ(dump.metadata().at("layer"), "1");
  EXPECT_EQ(dump.entries().size(), 3u);
  const at::Tensor q = dump.tensor("q"), k = dump.tensor("k");
  ASSERT_EQ(q.sizes(), (at::IntArrayRef{1, kHeads, kLength, 16}));
  ASSERT_EQ(q.scalar_type(), at::kFloat);
  const at::Tensor future = at::ones({kLength, kLength}, at::kBool).triu(1);
  const at::Tensor map = at::softmax((q.matmul(k.transpose(-2, -1)) / 4).masked_fill(future, -INFINITY), -1);
  EXPECT_LT((map[0] - attention_maps(model, ids[0])[0].maps[1]).abs().max().item<float>(), 1e-5f);
}

TEST_F(HeadsDump, HoldsBothViewsAndTheScalars) {
  Gpt model = small_model(small_config("tda"));
  dump_heads(model, some_ids(2), 0, file_);
  const SafetensorsFile dump(file_);
  for (const char* name : {"q1", "k1", "q2", "k2", "v"}) {
    EXPECT_EQ(dump.tensor(name).sizes(), (at::IntArrayRef{2, kHeads, kLength, 16})) << name;
  }
  // Before the L2 norm: these rows have no unit length.
  EXPECT_GT((dump.tensor("q1").norm(2, {-1}) - 1).abs().max().item<float>(), 1e-3f);
  EXPECT_TRUE(dump.tensor("beta").equal(at::full({kHeads}, 0.3f)));
  EXPECT_TRUE(dump.tensor("lambda").equal(at::full({kHeads}, 0.5f)));
}

TEST_F(HeadsDump, RefusesALayerThatTheModelLacks) {
  Gpt model = small_model(small_config("tda"));
  EXPECT_THROW(dump_heads(model, some_ids(1), kLayers, file_), Error);
  EXPECT_THROW(dump_heads(model, some_ids(1), -1, file_), Error);
  EXPECT_FALSE(std::filesystem::exists(file_));
}

}  // namespace
}  // namespace tda
