// Whether a recipe fits what it meets: a dataset, a number of processes.
#pragma once

#include "lm/data/dataset.h"
#include "lm/training/recipe.h"

namespace tda {

// Takes the dataset's vocabulary where the recipe names none. Throws Error when the recipe's holds fewer ids.
void resolve_vocabulary(ResolvedRecipe& recipe, const Dataset& dataset);

// Throws Error unless the micro batches of a step can be dealt out evenly.
void require_equal_shares(const Recipe& recipe, int processes);

}  // namespace tda
