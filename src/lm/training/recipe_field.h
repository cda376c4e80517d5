// The one table of recipe keys. Parsing, overriding, printing, documentation and the rules of resuming all read it.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "lm/training/recipe.h"
#include "lm/value_range.h"

namespace tda {

using RecipeValue = std::variant<bool, std::int64_t, double, std::string>;

// What may happen to a key between the stop of a run and its resumption.
enum class OnResume {
  kFixed,    // refused: the run would be another one
  kFree,     // accepted, and said so
  kMayGrow,  // accepted when larger
};

struct RecipeField {
  std::string section, key;
  std::function<RecipeValue(const Recipe&)> get;  // the alternative held is the type of the key
  std::function<void(Recipe&, const RecipeValue&)> set;
  ValueRange range;                  // of a number
  std::vector<std::string> choices;  // of a string; empty: any
  OnResume on_resume = OnResume::kFixed;
  std::string meaning;

  std::string name() const { return section + "." + key; }
  // "an integer >= 1", "true or false", "one of fp32, bf16".
  std::string expected() const;
  bool accepts(const RecipeValue& value) const;
  // The value that `text` of a command line stands for; nullopt when it has another type. Ranges are not looked at.
  std::optional<RecipeValue> parse(const std::string& text) const;
};

// In the order of sections and keys that files and tables use.
const std::vector<RecipeField>& recipe_fields();

// nullptr when there is none.
const RecipeField* find_recipe_field(const std::string& name);

}  // namespace tda
