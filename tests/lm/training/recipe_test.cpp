#include "lm/training/recipe.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "lm/durable_file.h"
#include "lm/error.h"
#include "lm/model/attention_mechanism.h"
#include "lm/training/recipe_field.h"
#include "lm/training/recipe_text.h"
#include "lm/training/resume_rules.h"
#include "temporary_directory.h"

namespace tda {
namespace {

constexpr const char* kSmall = R"([model]
mechanism = "tra"
layers = 2
heads = 2
width = 16
context = 8
beta = 1

[data]
path = "some/where"

[train]
steps = 20
tokens_per_step = 64
micro_batch = 4
warmup_steps = 3
learning_rate = 0.01
minimum_learning_rate = 1e-3
)";

class RecipeTest : public ::testing::Test {
 protected:
  ResolvedRecipe load(const std::string& text, const std::vector<RecipeOverride>& overrides = {}) const {
    std::ofstream(file_) << text;
    return load_recipe(file_, overrides);
  }

  std::string error_of(const std::string& text, const std::vector<RecipeOverride>& overrides = {}) const {
    try {
      load(text, overrides);
    } catch (const Error& error) {
      const std::string message = error.what();
      EXPECT_EQ(message.find('\n'), std::string::npos) << message;
      return message;
    }
    return "no error";
  }

  TemporaryDirectory directory_;
  std::filesystem::path file_ = directory_.path() / "recipe.toml";
};

void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "\"" << text << "\" lacks \"" << part << "\"";
}

TEST_F(RecipeTest, FileThenCommandLineThenDefaults) {
  const ResolvedRecipe recipe = load(kSmall, {{"train.steps", "30"}, {"model.beta", "-0.5"}, {"train.steps", "40"}});
  EXPECT_EQ(recipe.values.train.steps, 40);
  EXPECT_EQ(recipe.values.model.beta, -0.5);
  EXPECT_EQ(recipe.values.model.mechanism, "tra");
  EXPECT_EQ(recipe.values.train.adam_beta2, 0.95);
  EXPECT_EQ(recipe.values.micro_steps(), 2);
  EXPECT_EQ(recipe.origins.at("train.steps"), "command line");
  EXPECT_EQ(recipe.origins.at("model.layers"), file_.string() + ":3");
  EXPECT_EQ(recipe.origins.count("train.adam_beta2"), 0U);
}

TEST_F(RecipeTest, UnknownNamesAreRefusedWithTheNearest) {
  std::string message = error_of(std::string(kSmall) + "learning_rat = 1.0\n");
  expect_contains(message, file_.string() + ":19: unknown key train.learning_rat");
  expect_contains(message, "nearest valid name is train.learning_rate");
  expect_contains(error_of("[trian]\nsteps = 3\n"), ":1: unknown section [trian]; the nearest valid name is train");
  expect_contains(error_of("steps = 3\n"), ":1: unknown key steps; the nearest valid name is train.steps");
  expect_contains(error_of("[train]\nlayers = 3\n"),
                  "unknown key train.layers; the nearest valid name is model.layers");
  expect_contains(error_of(kSmall, {{"model.wdith", "3"}}),
                  "command line: unknown key model.wdith; the nearest valid name is model.width");
}

TEST_F(RecipeTest, WrongTypesAndRangesNameValueAndExpectation) {
  const auto with = [](const std::string& line) { return "[train]\n" + line + "\n"; };
  expect_contains(error_of(with("steps = \"many\"")), ":2: train.steps is \"many\", expected an integer >= 1");
  expect_contains(error_of(with("steps = 0")), "train.steps is 0, expected an integer >= 1");
  expect_contains(error_of(with("steps = 3.0")), "train.steps is 3.0, expected an integer");
  expect_contains(error_of(with("steps = [3]")), "train.steps is [ 3 ], expected an integer");
  expect_contains(error_of(with("steps = {a = 3}")), "train.steps is a table, expected an integer");
  expect_contains(error_of(with("learning_rate = nan")), "expected a number > 0");
  expect_contains(error_of(with("adam_beta1 = 1.5")), "train.adam_beta1 is 1.5, expected a number from 0 to 1");
  expect_contains(error_of(with("precision = \"fp8\"")), "expected one of fp32, bf16");
  expect_contains(error_of("[model]\nlearn_beta = 1"), "model.learn_beta is 1, expected true or false");
  expect_contains(error_of("train = 3"), ":1: train is 3, expected a section [train]");
  expect_contains(error_of(kSmall, {{"train.steps", "1e3"}}),
                  "command line: train.steps is \"1e3\", expected an integer");
  expect_contains(error_of(kSmall, {{"train.steps", ""}}), "expected an integer");
  expect_contains(error_of(kSmall, {{"train.learning_rate", "0.1x"}}), "expected a number > 0");
  expect_contains(error_of(kSmall, {{"model.learn_beta", "yes"}}), "expected true or false");
  expect_contains(error_of("[train\nsteps = 3"), ":1:");
}

TEST_F(RecipeTest, OptionsOfMechanismsAreKeys) {
  const auto refused = [&](const char* name, const char* value) { return error_of(kSmall, {{name, value}}); };
  expect_contains(refused("model.gate", "heads"), "model.gate is \"heads\", expected one of head, element");
  expect_contains(refused("model.entmax_alpha", "1"), "model.entmax_alpha is \"1\", expected a number > 1, at most 2");
  expect_contains(refused("model.entmax_alpha", "2.5"), "expected a number > 1, at most 2");
  expect_contains(refused("model.lssar_offset", "2"), "model.lssar_offset is \"2\", expected a number from 0 to 1");
  expect_contains(refused("model.lssar_power", "0.5"), "expected a number >= 1");
  expect_contains(refused("model.dex_annealing_steps", "0"), "expected an integer >= 1");
  expect_contains(refused("model.ssmax_bias", "1"), "expected true or false");
  expect_contains(refused("model.softpick_eps", "-1"), "expected a number >= 0");
  expect_contains(refused("model.rela_norm", "rmsnorm"), "expected one of rms, layer, gated_rms, head_rms");
  expect_contains(refused("model.entmax_alfa", "1.5"), "the nearest valid name is model.entmax_alpha");
  const auto recipe = load(kSmall, {{"model.rela_norm", "layer"}, {"model.entmax_alpha", "2"}});
  EXPECT_EQ(recipe.values.model.rela_norm, "layer");
  EXPECT_EQ(recipe.values.model.entmax_alpha, 2.0);
  expect_contains(recipe_toml(recipe), "entmax_alpha = 2.0  # command line");
}

TEST_F(RecipeTest, KeysThatContradictEachOtherAreRefused) {
  expect_contains(error_of(kSmall, {{"train.tokens_per_step", "65"}}),
                  "train.tokens_per_step is 65, expected a multiple of train.micro_batch x model.context = 4 x 8 = 32");
  expect_contains(error_of(kSmall, {{"train.minimum_learning_rate", "0.02"}}), "train.minimum_learning_rate is 0.02");
  expect_contains(error_of(kSmall, {{"train.warmup_steps", "21"}}), "train.warmup_steps is 21");
  expect_contains(error_of(kSmall, {{"model.heads", "3"}}), "width");
  expect_contains(error_of(kSmall, {{"model.heads", "1"}, {"model.mechanism", "diff_softmax"}}), "model.heads is 1");
  expect_contains(error_of(kSmall, {{"model.mechanism", "softmux"}}), "mechanism");
  expect_contains(error_of("[model]\nlayers = 2\n"), "data.path is missing");
  try {
    load_recipe(directory_.path() / "absent.toml");
    FAIL();
  } catch (const Error& error) {
    expect_contains(error.what(), "absent.toml");
  }
}

TEST_F(RecipeTest, WrittenRecipeReadsBackAsTheSame) {
  const ResolvedRecipe recipe = load(kSmall, {{"sample.prompt", "In the \"beginning\"\n\\ \x01 é"},
                                              {"model.rope_theta", "1e6"},
                                              {"train.adam_epsilon", "1.1e-12"},
                                              {"model.view_heads", "halved"},
                                              {"model.learn_beta", "false"}});
  const ResolvedRecipe again = load(recipe_toml(recipe));
  EXPECT_TRUE(recipe_changes(recipe.values, again.values).empty());
  for (const RecipeField& field : recipe_fields()) {
    EXPECT_EQ(field.get(recipe.values), field.get(again.values)) << field.name();
  }
  expect_contains(recipe_toml(recipe), "rope_theta = 1000000.0  # command line");
}

TEST_F(RecipeTest, EveryFixedKeyExists) {
  for (const char* name : {"model.mechanism",
                           "model.layers",
                           "model.heads",
                           "model.width",
                           "model.context",
                           "model.vocabulary",
                           "model.rope_theta",
                           "model.rope_scaling",
                           "model.view_heads",
                           "model.beta",
                           "model.lambda",
                           "model.learn_beta",
                           "model.learn_lambda",
                           "model.kappa",
                           "model.power",
                           "model.head_norm_eps",
                           "data.path",
                           "train.steps",
                           "train.tokens_per_step",
                           "train.micro_batch",
                           "train.learning_rate",
                           "train.minimum_learning_rate",
                           "train.warmup_steps",
                           "train.weight_decay",
                           "train.adam_beta1",
                           "train.adam_beta2",
                           "train.adam_epsilon",
                           "train.gradient_clip",
                           "train.seed",
                           "train.precision",
                           "train.device",
                           "validation.every",
                           "validation.batches",
                           "checkpoint.every",
                           "checkpoint.keep",
                           "sample.every",
                           "sample.prompt"}) {
    EXPECT_NE(find_recipe_field(name), nullptr) << name;
  }
}

// `tda train --list-keys` prints what the page must hold.
TEST_F(RecipeTest, DocumentationIsTheTable) {
  expect_contains(read_file(std::string(TDA_SOURCE_DIR) + "/docs/recipes.md"), recipe_reference());
}

TEST_F(RecipeTest, ShippedRecipesAreValid) {
  std::vector<Recipe> recipes;
  for (const std::string_view name : attention_mechanism_names()) {
    const std::string file = fmt::format("{}/configs/cpu/{}.toml", TDA_SOURCE_DIR, name);
    recipes.push_back(load_recipe(file).values);
    EXPECT_EQ(recipes.back().model.mechanism, name);
    // A comparison of mechanisms is one of nothing else; beta is a key that only TRA and TDA read.
    for (const RecipeChange& change : recipe_changes(recipes.front(), recipes.back())) {
      const std::string key = change.field->name();
      EXPECT_TRUE(key == "model.mechanism" || key == "model.beta") << key;
    }
  }
}

TEST_F(RecipeTest, ResumingKeepsWhatMakesTheRunTheRun) {
  const Recipe before = load(kSmall).values;
  const auto changed = [&](const char* name, const char* value) { return load(kSmall, {{name, value}}).values; };
  EXPECT_TRUE(check_resumable(before, before, 5).empty());
  const auto lines = check_resumable(before, changed("train.steps", "25"), 5);
  ASSERT_EQ(lines.size(), 1U);
  EXPECT_EQ(lines.front(), "train.steps changes from 20 to 25 at step 5");
  EXPECT_EQ(check_resumable(before, changed("checkpoint.every", "7"), 5).size(), 1U);
  EXPECT_THROW(check_resumable(before, changed("train.steps", "15"), 5), Error);
  for (const auto& [name, value] : {std::pair{"model.layers", "3"}, std::pair{"train.seed", "1"},
                                    std::pair{"train.tokens_per_step", "128"}, std::pair{"model.kappa", "2"}}) {
    try {
      check_resumable(before, changed(name, value), 5);
      ADD_FAILURE() << name;
    } catch (const Error& error) {
      expect_contains(error.what(), name);
      expect_contains(error.what(), "not change on resuming");
    }
  }
}

}  // namespace
}  // namespace tda
