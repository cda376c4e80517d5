// A recipe: everything a training run is made of, read from a TOML file and the command line. The keys, their types,
// ranges, defaults and meanings stand in one table (recipe_field.cpp, printed in docs/recipes.md).
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "lm/model/model_config.h"

namespace tda {

struct DataSettings {
  std::string path;
};

struct TrainSettings {
  std::int64_t steps = 19073;
  std::int64_t tokens_per_step = 524288;
  std::int64_t micro_batch = 16;  // windows of context + 1 tokens in one forward and backward pass
  double learning_rate = 1e-3;
  double minimum_learning_rate = 1e-4;
  std::int64_t warmup_steps = 715;
  double weight_decay = 0.1;
  double adam_beta1 = 0.9;
  double adam_beta2 = 0.95;
  double adam_epsilon = 1e-8;
  double gradient_clip = 1.0;  // 0 does not clip
  std::int64_t seed = 1337;
  Precision precision = Precision::kBFloat16;
  std::string device = "auto";
  std::int64_t threads = 0;     // 0: as many as LibTorch takes by itself
  std::int64_t stop_after = 0;  // 0: steps
};

struct ValidationSettings {
  std::int64_t every = 250;  // 0: only after the last step
  std::int64_t batches = 20;
};

struct CheckpointSettings {
  std::int64_t every = 1000;  // 0: only after the last step
  std::int64_t keep = 3;      // 0: all
};

struct SampleSettings {
  std::int64_t every = 1000;  // 0: never
  std::string prompt;
  std::int64_t tokens = 128;
  double temperature = 0.8;
};

struct LogSettings {
  bool tensorboard = true;
};

// How many processes train is no part of a recipe: the launcher says it.
struct DistributedSettings {
  std::string backend = "auto";
  double bucket_megabytes = 25.0;
  bool shard_optimizer = false;
  double timeout = 45.0;  // seconds
};

struct Recipe {
  Recipe() { model.vocabulary = 0; }

  ModelConfig model;  // vocabulary 0: the padded vocabulary of the dataset
  DataSettings data;
  TrainSettings train;
  ValidationSettings validation;
  CheckpointSettings checkpoint;
  SampleSettings sample;
  LogSettings log;
  DistributedSettings distributed;

  std::int64_t micro_steps() const { return train.tokens_per_step / (train.micro_batch * model.context); }
  // The step after which this process ends.
  std::int64_t last_step() const {
    return train.stop_after > 0 && train.stop_after < train.steps ? train.stop_after : train.steps;
  }
};

// `--section.key value` of a command line.
struct RecipeOverride {
  std::string name;  // "section.key"
  std::string value;
};

struct ResolvedRecipe {
  Recipe values;
  std::map<std::string, std::string> origins;  // "section.key" -> "FILE:LINE" or "command line"; absent: default
};

// Reads `file`, applies the overrides in order and validates the whole. Throws Error with one line that names the file
// and line (or the command line), the key, its value and what was expected; for an unknown key or section also the
// nearest valid name.
ResolvedRecipe load_recipe(const std::filesystem::path& file, const std::vector<RecipeOverride>& overrides = {});

// What no single key can tell: divisibility of tokens_per_step, orders of rates, the model's own rules.
void validate_recipe(const Recipe& recipe);

}  // namespace tda
