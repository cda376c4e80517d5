// Trains a model as a recipe says, into a run directory that can be resumed bit for bit.
#pragma once

#include <filesystem>
#include <optional>
#include <stdexcept>
#include <vector>

#include "lm/training/recipe.h"

namespace tda {

struct TrainingRequest {
  std::filesystem::path recipe;
  std::vector<RecipeOverride> overrides;
  std::filesystem::path output;
  bool resume = false;
  // A run directory or step folder whose weights the run starts from; absent: from random ones. Not looked at when
  // `resume` finds a checkpoint of the run itself.
  std::optional<std::filesystem::path> init_from;
};

// A loss or gradient that is not finite: training stopped before the update that would have spoiled the weights. The
// message names the step and the last good checkpoint. No bad input, so the program exits with 1.
class DivergenceError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Returns the exit code: 0 when the last step is done, 130 or 143 when SIGINT or SIGTERM ended it after a checkpoint.
// Throws Error for bad input before anything is written, and when the disk refuses.
int train(const TrainingRequest& request);

}  // namespace tda
