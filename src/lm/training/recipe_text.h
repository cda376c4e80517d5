// A recipe as text: the file a run keeps, the table printed before work starts, and the page of documentation.
#pragma once

#include <string>
#include <vector>

#include "lm/training/recipe.h"
#include "lm/training/recipe_field.h"

namespace tda {

// One value as TOML writes it: 3, 0.5, true, "text".
std::string to_toml(const RecipeValue& value);

// Every key with its value, section by section; the origin of each value that is not a default stands behind it as a
// comment. load_recipe() of this text gives the same values.
std::string recipe_toml(const ResolvedRecipe& recipe);

// The same for the eye: columns of key, value and origin.
std::string recipe_table(const ResolvedRecipe& recipe);

// Markdown tables of all keys with type, range, default, meaning, and what may change on resuming.
std::string recipe_reference();

struct RecipeChange {
  const RecipeField* field;
  std::string before, after;  // as TOML
};
std::vector<RecipeChange> recipe_changes(const Recipe& before, const Recipe& after);

}  // namespace tda
