// The one table of options that belong to single mechanisms: recipes, config.json, validation and docs/recipes.md read
// it, so that a new option is one line there and one member of ModelConfig.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "lm/model/model_config.h"
#include "lm/value_range.h"

namespace tda {

struct MechanismOption {
  using Member =
      std::variant<bool ModelConfig::*, std::int64_t ModelConfig::*, double ModelConfig::*, std::string ModelConfig::*>;

  const char* key;  // of `[model]` in a recipe and of config.json
  Member member;
  const char* meaning;
  std::vector<std::string_view> mechanisms;  // that read it
  ValueRange range = {};
  std::vector<std::string> choices = {};  // of a string

  bool read_by(std::string_view mechanism) const;
};

// In the order of recipes.
const std::vector<MechanismOption>& mechanism_options();

}  // namespace tda
