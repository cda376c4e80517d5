#include "lm/training/start_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string_view>

#include "lm/error.h"
#include "lm/model/mechanism_option.h"
#include "lm/model/model_files.h"
#include "lm/training/recipe_text.h"

namespace tda {
namespace {

constexpr std::array<std::string_view, 6> kMayDiffer = {"context", "rope_scaling", "beta",
                                                        "lambda",  "learn_beta",   "learn_lambda"};

bool may_differ(const std::string& key) {
  return std::find(kMayDiffer.begin(), kMayDiffer.end(), key) != kMayDiffer.end();
}

// config.json holds an option of single mechanisms for those only that read it.
bool is_read(const std::string& key, const std::string& mechanism) {
  const auto& options = mechanism_options();
  const auto option = std::find_if(options.begin(), options.end(), [&](const auto& each) { return each.key == key; });
  return option == options.end() || option->read_by(mechanism);
}

// Ids and names may agree where the ranks do not, so every id is looked at.
bool same_tokenizer(const Tokenizer& a, const Tokenizer& b) {
  if (a.name() != b.name() || a.vocabulary_size() != b.vocabulary_size()) return false;
  for (std::int32_t id = 0; id < a.vocabulary_size(); ++id) {
    if (a.decode({id}) != b.decode({id})) return false;
  }
  return true;
}

void require_same_tokenizer(const std::filesystem::path& step_directory, const Tokenizer& expected) {
  const std::unique_ptr<Tokenizer> found = load_tokenizer(step_directory);
  if (same_tokenizer(*found, expected)) return;
  const bool same_name = found->name() == expected.name();
  throw Error(fmt::format("--init-from {}: its model was trained with {} tokenizer {}, the dataset is of {}",
                          step_directory.string(), same_name ? "another" : "the", found->name(), expected.name()),
              "prepare the text with the checkpoint's tokenizer, or start from another checkpoint");
}

}  // namespace

std::vector<std::string> check_start_weights(const std::filesystem::path& step_directory, const ModelConfig& model,
                                             const Tokenizer& tokenizer) {
  Recipe before, now;
  before.model = load_model_config(step_directory);
  now.model = model;
  std::vector<std::string> differences;
  for (const RecipeChange& change : recipe_changes(before, now)) {
    const RecipeField& field = *change.field;
    // The tokenizer says more about the vocabulary than its size does.
    if (field.key == "vocabulary") require_same_tokenizer(step_directory, tokenizer);
    if (may_differ(field.key)) {
      differences.push_back(fmt::format("{} changes from {} to {}", field.name(), change.before, change.after));
    } else if (is_read(field.key, model.mechanism)) {
      throw Error(fmt::format("--init-from {}: {} is {} there and {} here, expected the same", step_directory.string(),
                              field.name(), change.before, change.after),
                  fmt::format("pass --{} {}, or start from another checkpoint", field.name(), change.before));
    }
  }
  require_same_tokenizer(step_directory, tokenizer);
  return differences;
}

}  // namespace tda
