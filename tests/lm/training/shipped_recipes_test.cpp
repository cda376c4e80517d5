// The recipes of configs/: every one loads, and those of the paper hold the paper's figures.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "lm/durable_file.h"
#include "lm/model/attention_mechanism.h"
#include "lm/model/gpt.h"
#include "lm/training/recipe.h"
#include "lm/training/recipe_text.h"

namespace tda {
namespace {

namespace fs = std::filesystem;

const fs::path kConfigs = fs::path(TDA_SOURCE_DIR) / "configs";

// Beyond the 162,220,800 of softmax, at 12 layers, 12 heads of 64 channels and width 768: docs/mechanisms.md derives
// each.
const std::map<std::string, std::int64_t> kAddedParameters = {{"softmax", 0},
                                                              {"gated_softmax", 110592},
                                                              {"ssmax", 144},
                                                              {"entmax", 0},
                                                              {"lssar", 0},
                                                              {"rela", 9216},
                                                              {"dex", 49164},
                                                              {"diff_softmax", 4608},
                                                              {"diff_rela", 14165136},
                                                              {"tra", 9360},
                                                              {"softpick", 0},
                                                              {"tda", 14165280},
                                                              {"asentmax", 221472}};

Recipe load(const std::string& name) { return load_recipe(kConfigs / name).values; }

std::string with_commas(std::int64_t value) {
  std::string text = std::to_string(value);
  for (auto at = static_cast<std::ptrdiff_t>(text.size()) - 3; at > 0; at -= 3) {
    text.insert(static_cast<std::size_t>(at), ",");
  }
  return text;
}

std::vector<std::string> changed_keys(const Recipe& before, const Recipe& after) {
  std::vector<std::string> keys;
  for (const RecipeChange& change : recipe_changes(before, after)) keys.push_back(change.field->name());
  return keys;
}

// Section 6 and appendix E.3 of the paper.
void expect_the_papers_model(const ModelConfig& model) {
  EXPECT_EQ(model.layers, 12);
  EXPECT_EQ(model.heads, 12);
  EXPECT_EQ(model.width, 768);
  EXPECT_EQ(model.vocabulary, 50304);
  EXPECT_EQ(model.rope_theta, 10000.0);
  EXPECT_EQ(model.kappa, 1.0);
  EXPECT_EQ(model.beta, 1.0);
  EXPECT_EQ(model.power, 2.0);
  EXPECT_TRUE(model.learn_beta);
  EXPECT_EQ(model.view_heads, ViewHeads::kFull);
}

TEST(ShippedRecipes, EveryOneLoads) {
  int count = 0;
  for (const auto& entry : fs::recursive_directory_iterator(kConfigs)) {
    if (!entry.is_regular_file()) continue;
    EXPECT_EQ(entry.path().extension(), ".toml") << entry.path();
    EXPECT_NO_THROW(load_recipe(entry.path())) << entry.path();
    ++count;
  }
  EXPECT_GE(count, 13 * 3 + 2);
}

TEST(ShippedRecipes, ThePapersRecipeForEveryMechanism) {
  for (const std::string_view name : attention_mechanism_names()) {
    SCOPED_TRACE(name);
    const Recipe recipe = load(fmt::format("paper/{}-162m.toml", name));
    EXPECT_EQ(recipe.model.mechanism, name);
    expect_the_papers_model(recipe.model);
    EXPECT_EQ(recipe.model.context, 1024);
    EXPECT_EQ(recipe.model.rope_scaling, 1.0);
    EXPECT_EQ(recipe.train.steps, 190730);
    EXPECT_EQ(recipe.train.tokens_per_step, 524288);
    EXPECT_EQ(recipe.train.micro_batch, 16);
    EXPECT_EQ(recipe.train.learning_rate, 1e-3);
    EXPECT_EQ(recipe.train.minimum_learning_rate, 1e-4);
    EXPECT_EQ(recipe.train.warmup_steps, 715);
    EXPECT_EQ(recipe.train.weight_decay, 0.1);
    EXPECT_EQ(recipe.train.seed, 1337);
    EXPECT_EQ(recipe.validation.every, 250);
    EXPECT_EQ(recipe.validation.batches, 20);
    EXPECT_EQ(changed_keys(load("paper/softmax-162m.toml"), recipe),
              name == "softmax" ? std::vector<std::string>{} : std::vector<std::string>{"model.mechanism"});
  }
}

TEST(ShippedRecipes, TheSmallOnesAreThePapersModelOnThirtyMillionTokens) {
  for (const std::string_view name : attention_mechanism_names()) {
    SCOPED_TRACE(name);
    const Recipe recipe = load(fmt::format("small/{}.toml", name));
    EXPECT_EQ(recipe.model, load(fmt::format("paper/{}-162m.toml", name)).model);
    EXPECT_EQ(recipe.train.steps, 458);
    EXPECT_EQ(recipe.train.tokens_per_step, 65536);
    EXPECT_EQ(recipe.train.warmup_steps, 50);
    EXPECT_EQ(recipe.train.learning_rate, 1e-3);
    EXPECT_EQ(recipe.train.minimum_learning_rate, 1e-4);
    EXPECT_EQ(recipe.train.weight_decay, 0.1);
    EXPECT_EQ(recipe.train.seed, 1337);
    EXPECT_EQ(recipe.train.precision, Precision::kBFloat16);
    EXPECT_EQ(changed_keys(load("small/softmax.toml"), recipe),
              name == "softmax" ? std::vector<std::string>{} : std::vector<std::string>{"model.mechanism"});
  }
}

TEST(ShippedRecipes, TheExtensionScalesThePapersModel) {
  const Recipe recipe = load("paper/extend-4096.toml");
  ModelConfig model = recipe.model;
  EXPECT_EQ(model.context, 4096);
  EXPECT_EQ(model.rope_scaling, 4.0);
  model.context = 1024;
  model.rope_scaling = 1.0;
  EXPECT_EQ(model, load("paper/tda-162m.toml").model);
  EXPECT_EQ(recipe.train.steps, 500);
  EXPECT_EQ(recipe.train.tokens_per_step, 524288);
  EXPECT_EQ(recipe.train.micro_batch * recipe.model.context, 16 * 1024);
  for (const std::string_view name : attention_mechanism_names()) {
    EXPECT_NO_THROW(load_recipe(kConfigs / "paper/extend-4096.toml", {{"model.mechanism", std::string(name)}}));
  }
}

TEST(ShippedRecipes, ParameterCountsAreTheDocumentedOnes) {
  const std::string page = read_file(std::string(TDA_SOURCE_DIR) + "/docs/paper-recipe.md");
  for (const std::string_view name : attention_mechanism_names()) {
    const std::int64_t count = 162220800 + kAddedParameters.at(std::string(name));
    EXPECT_EQ(Gpt(load(fmt::format("paper/{}-162m.toml", name)).model).parameter_count().total, count) << name;
    const std::string row = fmt::format("| `{}` | {} |", name, with_commas(count));
    EXPECT_NE(page.find(row), std::string::npos) << "docs/paper-recipe.md lacks the row " << row;
  }
}

}  // namespace
}  // namespace tda
