#include "lm/model/model_config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>

#include "lm/error.h"
#include "lm/model/attention_mechanism.h"

namespace tda {
namespace {

TEST(ModelConfig, SurvivesJson) {
  ModelConfig config;
  config.mechanism = "tra";
  config.layers = 3;
  config.rope_scaling = 4;
  config.view_heads = ViewHeads::kHalved;
  config.learn_beta = false;
  config.kappa = 2.5;
  EXPECT_EQ(ModelConfig::from_json(config.to_json(), "config.json"), config);
  EXPECT_EQ(config.to_json()["num_hidden_layers"], 3);
  EXPECT_EQ(config.to_json()["max_position_embeddings"], 1024);
}

void expect_refusal(const std::function<void()>& action, const std::string& part) {
  try {
    action();
    FAIL() << "expected an error with: " << part;
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST(ModelConfig, NamesTheMissingKeyAndTheFile) {
  const nlohmann::json complete = ModelConfig().to_json();
  for (const auto& [key, value] : complete.items()) {
    // What other programs read is not needed to rebuild the model, and an absent rope_scaling is none.
    if (key == "model_type" || key == "intermediate_size" || key == "hidden_act" || key == "layer_norm_eps" ||
        key == "tie_word_embeddings" || key == "rope_scaling") {
      continue;
    }
    auto json = ModelConfig().to_json();
    json.erase(key);
    expect_refusal([&] { ModelConfig::from_json(json, "a/config.json"); },
                   "a/config.json: the key \"" + key + "\" is missing");
    json[key] = nlohmann::json::array();
    expect_refusal([&] { ModelConfig::from_json(json, "a/config.json"); }, "a/config.json: \"" + key + "\" is []");
  }
}

TEST(ModelConfig, RefusesValuesOutOfRange) {
  const auto refused = [](auto change, const std::string& part) {
    ModelConfig config;
    change(config);
    expect_refusal([&] { config.validate(); }, part);
  };
  refused([](auto& c) { c.layers = 0; }, "model.layers is 0");
  refused([](auto& c) { c.width = 770; }, "expected a multiple of model.heads");
  refused([](auto& c) { c.width = 12 * 3; }, "even head dimension");
  refused([](auto& c) { c.width = 12 * 258; }, "even head dimension");
  refused([](auto& c) { c.power = 0.5; }, "model.power is 0.5");
  refused([](auto& c) { c.kappa = 0; }, "model.kappa is 0");
  refused([](auto& c) { c.beta = NAN; }, "model.beta is nan");
  refused([](auto& c) { c.lambda = 1.5; }, "model.lambda is 1.5");
  refused([](auto& c) { c.rope_scaling = 0.5; }, "model.rope_scaling is 0.5");
  refused([](auto& c) { c.rope_theta = 0; }, "model.rope_theta is 0");
  refused(
      [](auto& c) {
        c.heads = 3;
        c.view_heads = ViewHeads::kHalved;
      },
      "model.heads is 3");
}

TEST(ModelConfig, OffersTheNearestMechanism) {
  ModelConfig config;
  config.mechanism = "sofmax";
  try {
    make_attention_mechanism(config);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("model.mechanism is \"sofmax\""), std::string::npos);
    EXPECT_NE(error.hint().find("softmax"), std::string::npos);
  }
}

}  // namespace
}  // namespace tda
