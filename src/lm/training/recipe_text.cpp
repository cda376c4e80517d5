#include "lm/training/recipe_text.h"

#include <fmt/format.h>
#include <toml++/toml.h>

#include <algorithm>
#include <sstream>

#include "lm/utf8.h"

namespace tda {
namespace {

std::string origin_of(const ResolvedRecipe& recipe, const std::string& name) {
  const auto origin = recipe.origins.find(name);
  return origin == recipe.origins.end() ? "default" : origin->second;
}

const char* resume_rule(OnResume rule) {
  switch (rule) {
    case OnResume::kFixed:
      return "fixed";
    case OnResume::kFree:
      return "may change";
    case OnResume::kMayGrow:
      return "may grow";
  }
  return "";
}

}  // namespace

std::string to_toml(const RecipeValue& value) {
  if (const auto* flag = std::get_if<bool>(&value)) return *flag ? "true" : "false";
  if (const auto* integer = std::get_if<std::int64_t>(&value)) return fmt::format("{}", *integer);
  if (const auto* number = std::get_if<double>(&value)) {
    const std::string text = fmt::format("{}", *number);
    // TOML tells a float from an integer by its point or exponent.
    return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
  }
  // One kind of quotes and one line, whatever the text.
  const toml::value<std::string> text(std::get<std::string>(value));
  const auto flags = toml::toml_formatter::default_flags & ~toml::format_flags::allow_literal_strings &
                     ~toml::format_flags::allow_multi_line_strings;
  std::ostringstream quoted;
  quoted << toml::toml_formatter(text, flags);
  return quoted.str();
}

std::string recipe_toml(const ResolvedRecipe& recipe) {
  std::string text;
  std::string section;
  for (const RecipeField& field : recipe_fields()) {
    if (field.section != section) {
      text += fmt::format("{}[{}]\n", section.empty() ? "" : "\n", field.section);
      section = field.section;
    }
    const std::string origin = origin_of(recipe, field.name());
    text += fmt::format("{} = {}{}\n", field.key, to_toml(field.get(recipe.values)),
                        origin == "default" ? "" : fmt::format("  # {}", printable(origin)));
  }
  return text;
}

std::string recipe_table(const ResolvedRecipe& recipe) {
  std::size_t name_width = 0;
  std::size_t value_width = 0;
  for (const RecipeField& field : recipe_fields()) {
    name_width = std::max(name_width, field.name().size());
    value_width = std::max(value_width, to_toml(field.get(recipe.values)).size());
  }
  value_width = std::min<std::size_t>(value_width, 40);
  std::string text;
  for (const RecipeField& field : recipe_fields()) {
    text += fmt::format("{:<{}}  {:<{}}  {}\n", field.name(), name_width, to_toml(field.get(recipe.values)),
                        value_width, origin_of(recipe, field.name()));
  }
  return text;
}

std::string recipe_reference() {
  const Recipe defaults;
  std::string text;
  std::string section;
  for (const RecipeField& field : recipe_fields()) {
    if (field.section != section) {
      section = field.section;
      text += fmt::format("\n## [{}]\n\n| key | default | value | meaning | on resuming |\n|---|---|---|---|---|\n",
                          section);
    }
    text += fmt::format("| `{}` | `{}` | {} | {} | {} |\n", field.key, to_toml(field.get(defaults)), field.expected(),
                        field.meaning, resume_rule(field.on_resume));
  }
  return text;
}

std::vector<RecipeChange> recipe_changes(const Recipe& before, const Recipe& after) {
  std::vector<RecipeChange> changes;
  for (const RecipeField& field : recipe_fields()) {
    const RecipeValue old_value = field.get(before);
    const RecipeValue new_value = field.get(after);
    if (old_value != new_value) changes.push_back({&field, to_toml(old_value), to_toml(new_value)});
  }
  return changes;
}

}  // namespace tda
