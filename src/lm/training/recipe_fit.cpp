#include "lm/training/recipe_fit.h"

#include <fmt/format.h>

#include "lm/data/tokenizer.h"
#include "lm/error.h"

namespace tda {

void resolve_vocabulary(ResolvedRecipe& recipe, const Dataset& dataset) {
  std::int64_t& vocabulary = recipe.values.model.vocabulary;
  const DatasetDescription& description = dataset.description();
  if (vocabulary == 0) {
    vocabulary = dataset.tokenizer()->padded_vocabulary_size();
    recipe.origins["model.vocabulary"] = "dataset";
  }
  if (vocabulary < description.vocabulary_size) {
    throw Error(fmt::format("model.vocabulary is {}, expected at least the {} ids of the dataset {}", vocabulary,
                            description.vocabulary_size, dataset.directory().string()),
                "leave it out to take the dataset's");
  }
}

void require_equal_shares(const Recipe& recipe, int processes) {
  if (recipe.micro_steps() % processes == 0) return;
  const std::int64_t together = processes * recipe.train.micro_batch * recipe.model.context;
  throw Error(
      fmt::format("train.tokens_per_step is {}, expected a multiple of processes x train.micro_batch x "
                  "model.context = {} x {} x {} = {}",
                  recipe.train.tokens_per_step, processes, recipe.train.micro_batch, recipe.model.context, together),
      "make train.micro_batch smaller, or start fewer processes");
}

}  // namespace tda
