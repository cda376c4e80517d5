// tda train: trains a model from a recipe.
#include <fmt/format.h>

#include <memory>
#include <string>
#include <vector>

#include "cli/command.h"
#include "lm/training/recipe_field.h"
#include "lm/training/recipe_text.h"
#include "lm/training/trainer.h"

namespace tda {
namespace {

struct TrainOptions {
  TrainingRequest request;
  bool list_keys = false;
  std::vector<std::string> values;  // one per recipe field
};

std::filesystem::path default_output(const std::filesystem::path& recipe) { return "runs" / recipe.stem(); }

}  // namespace

void add_train_command(CLI::App& program, Invocation& invocation) {
  auto options = std::make_shared<TrainOptions>();
  const std::vector<RecipeField>& fields = recipe_fields();
  options->values.resize(fields.size());

  CLI::App* command = program.add_subcommand("train", "Train a model from a recipe");
  auto* recipe = command->add_option("recipe", options->request.recipe, "TOML file, e.g. configs/cpu/tda.toml");
  command->add_option("--output", options->request.output, "run directory; default runs/NAME-OF-THE-RECIPE");
  command->add_flag("--resume", options->request.resume,
                    "go on with the run in the output, or start it when nothing is there");
  command->add_option(
      "--init-from", options->request.init_from,
      "run directory or step folder whose weights the run starts from, with a fresh optimizer at step 0; "
      "with --resume only where the output holds no checkpoint yet");
  auto* list_keys = command->add_flag("--list-keys", options->list_keys, "print every key of a recipe as Markdown");

  std::vector<CLI::Option*> overrides;
  for (std::size_t i = 0; i < fields.size(); ++i) {
    const RecipeField& field = fields[i];
    overrides.push_back(command
                            ->add_option("--" + field.name(), options->values[i],
                                         fmt::format("{}; {}", field.meaning, field.expected()))
                            ->group("Recipe keys of [" + field.section + "]")
                            ->take_last());
  }
  command->callback([options, overrides, recipe, list_keys, &invocation] {
    if (list_keys->count() == 0 && recipe->count() == 0) throw CLI::RequiredError("recipe");
    for (std::size_t i = 0; i < overrides.size(); ++i) {
      if (overrides[i]->count() == 0) continue;
      options->request.overrides.push_back({recipe_fields()[i].name(), options->values[i]});
    }
    if (options->request.output.empty()) options->request.output = default_output(options->request.recipe);
    invocation.run = [options] {
      if (!options->list_keys) return train(options->request);
      fmt::print("{}", recipe_reference());
      return 0;
    };
  });
}

}  // namespace tda
