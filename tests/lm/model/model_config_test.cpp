#include "lm/model/model_config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "lm/error.h"
#include "lm/model/attention_mechanism.h"
#include "lm/model/mechanism_option.h"

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

// Options of single mechanisms stand in the files of those alone; files from before an option have its default.
TEST(ModelConfig, OptionsAreWrittenForTheMechanismThatReadsThem) {
  ModelConfig config;
  config.mechanism = "entmax";
  config.entmax_alpha = 1.25;
  auto json = config.to_json();
  EXPECT_EQ(json["entmax_alpha"], 1.25);
  EXPECT_FALSE(json.contains("lssar_power"));
  EXPECT_EQ(ModelConfig::from_json(json, "config.json"), config);
  json.erase("entmax_alpha");
  EXPECT_EQ(ModelConfig::from_json(json, "config.json").entmax_alpha, 1.5);
  for (const auto& option : mechanism_options()) {
    for (const auto mechanism : option.mechanisms) {
      config.mechanism = mechanism;
      EXPECT_TRUE(config.to_json().contains(option.key)) << option.key;
      EXPECT_NO_THROW(make_attention_mechanism(config));
    }
  }
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
  refused([](auto& c) { c.entmax_alpha = 1; }, "model.entmax_alpha is 1, expected a number > 1, at most 2");
  refused([](auto& c) { c.softpick_eps = NAN; }, "model.softpick_eps is nan");
  refused([](auto& c) { c.dex_annealing_steps = 0; }, "model.dex_annealing_steps is 0, expected an integer >= 1");
  refused([](auto& c) { c.rela_norm = "rmsnorm"; }, "model.rela_norm is \"rmsnorm\", expected one of rms, layer");
  refused(
      [](auto& c) {
        c.heads = 3;
        c.view_heads = ViewHeads::kHalved;
      },
      "model.heads is 3");
}

TEST(ModelConfig, HalvedHeadsComeInPairs) {
  ModelConfig config;
  config.mechanism = "diff_softmax";
  config.heads = 3;
  expect_refusal([&] { make_attention_mechanism(config); }, "model.heads is 3, expected an even number");
}

// Each mechanism has its section, in the order of the list.
TEST(ModelConfig, MechanismsAreDocumentedInTheirOrder) {
  std::ifstream page(TDA_SOURCE_DIR "/docs/mechanisms.md");
  std::vector<std::string> sections, names;
  for (std::string line; std::getline(page, line);) {
    if (line.starts_with("## ")) sections.push_back(line.substr(3));
  }
  for (const auto name : attention_mechanism_names()) names.emplace_back(name);
  EXPECT_EQ(sections, names);
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
