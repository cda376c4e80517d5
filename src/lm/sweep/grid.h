// A grid over recipe keys: every combination of the values given for each.
#pragma once

#include <string>
#include <vector>

#include "lm/training/recipe.h"

namespace tda {

struct GridAxis {
  std::string key;                  // "section.key"
  std::vector<std::string> values;  // as TOML writes them, strings without quotes
};

struct GridPoint {
  std::string name;                       // of its run: "mechanism=tda,learning_rate=0.001"
  std::vector<RecipeOverride> overrides;  // one for each axis, in their order
};

// `texts`: "section.key=a,b,…" each. Throws Error on another form, an unknown key (with the nearest valid name), a
// value of the wrong type or out of range, a value or key that is given twice.
std::vector<GridAxis> parse_grid(const std::vector<std::string>& texts);

// The first axis varies slowest. Throws Error when two points would have the same name.
std::vector<GridPoint> grid_points(const std::vector<GridAxis>& axes);

}  // namespace tda
