// Which keys of a recipe may differ between the stop of a run and its resumption.
#pragma once

#include <string>
#include <vector>

#include "lm/training/recipe.h"

namespace tda {

// Throws Error naming the first key that may not change, its old and its new value. Returns a line for each change that
// is accepted. `step` is where the run stands.
std::vector<std::string> check_resumable(const Recipe& before, const Recipe& now, std::int64_t step);

}  // namespace tda
