#include "lm/training/recipe.h"

#include <fmt/format.h>
#include <toml++/toml.h>

#include <algorithm>
#include <optional>
#include <sstream>

#include "lm/durable_file.h"
#include "lm/error.h"
#include "lm/model/attention_mechanism.h"
#include "lm/nearest_name.h"
#include "lm/training/recipe_field.h"
#include "lm/training/recipe_text.h"
#include "lm/utf8.h"

namespace tda {
namespace {

std::string toml_text(const toml::node& node) {
  std::ostringstream text;
  if (node.is_table()) return "a table";
  if (const auto* value = node.as_string()) return to_toml(value->get());
  node.visit([&](const auto& value) { text << value; });
  return text.str();
}

// An integer is welcome where a number is expected, nothing else is converted.
std::optional<RecipeValue> toml_value(const toml::node& node, const RecipeField& field) {
  if (const auto* value = node.as_boolean()) return value->get();
  if (const auto* value = node.as_string()) return value->get();
  if (const auto* value = node.as_floating_point()) return value->get();
  if (const auto* value = node.as_integer()) {
    if (std::holds_alternative<double>(field.get(Recipe()))) return static_cast<double>(value->get());
    return value->get();
  }
  return std::nullopt;
}

std::vector<std::string> section_names() {
  std::vector<std::string> names;
  for (const RecipeField& field : recipe_fields()) {
    if (names.empty() || names.back() != field.section) names.push_back(field.section);
  }
  return names;
}

std::vector<std::string> key_names() {
  std::vector<std::string> names;
  for (const RecipeField& field : recipe_fields()) names.push_back(field.name());
  return names;
}

std::string suggestion(const std::optional<std::string>& nearest) {
  return nearest ? fmt::format("the nearest valid name is {}", *nearest) : "docs/recipes.md lists the valid names";
}

[[noreturn]] void throw_unknown_key(const std::string& where, const std::string& name) {
  const std::string key = name.substr(name.find('.') + 1);
  std::optional<std::string> nearest;
  // The right key in the wrong section is the likeliest slip of all.
  for (const RecipeField& field : recipe_fields()) {
    if (field.key == key) nearest = field.name();
  }
  if (!nearest) nearest = nearest_name(name, key_names());
  throw Error(fmt::format("{}: unknown key {}; {}", where, name, suggestion(nearest)));
}

void set_checked(ResolvedRecipe& recipe, const RecipeField& field, const std::optional<RecipeValue>& value,
                 const std::string& text, const std::string& where, const std::string& origin) {
  if (value && std::holds_alternative<std::string>(*value) && !is_utf8(std::get<std::string>(*value))) {
    throw Error(fmt::format("{}: {} is {}, expected UTF-8: recipe.toml could not hold it", where, field.name(), text));
  }
  if (!value || !field.accepts(*value)) {
    throw Error(fmt::format("{}: {} is {}, expected {}", where, field.name(), text, field.expected()));
  }
  field.set(recipe.values, *value);
  recipe.origins[field.name()] = origin;
}

toml::table parse_toml(const std::filesystem::path& file) {
  std::error_code error;
  if (std::filesystem::is_directory(file, error)) {
    throw Error(fmt::format("recipe {} is a folder, expected a TOML file", file.string()));
  }
  const std::string content = read_file(file);
  try {
    return toml::parse(content, file.string());
  } catch (const toml::parse_error& failure) {
    throw Error(fmt::format("{}:{}: {}", file.string(), failure.source().begin.line, failure.description()));
  }
}

void read_section(ResolvedRecipe& recipe, const std::string& section, const toml::table& keys,
                  const std::filesystem::path& file) {
  for (const auto& [key, node] : keys) {
    const std::string name = fmt::format("{}.{}", section, key.str());
    const std::string where = fmt::format("{}:{}", file.string(), key.source().begin.line);
    const RecipeField* field = find_recipe_field(name);
    if (field == nullptr) throw_unknown_key(where, name);
    set_checked(recipe, *field, toml_value(node, *field), toml_text(node), where, where);
  }
}

void read_file_into(ResolvedRecipe& recipe, const std::filesystem::path& file) {
  const toml::table document = parse_toml(file);
  const std::vector<std::string> sections = section_names();
  for (const auto& [key, node] : document) {
    const std::string section(key.str());
    const std::string where = fmt::format("{}:{}", file.string(), key.source().begin.line);
    if (std::find(sections.begin(), sections.end(), section) == sections.end()) {
      if (!node.is_table()) throw_unknown_key(where, section);
      throw Error(
          fmt::format("{}: unknown section [{}]; {}", where, section, suggestion(nearest_name(section, sections))));
    }
    if (!node.is_table()) {
      throw Error(fmt::format("{}: {} is {}, expected a section [{}]", where, section, toml_text(node), section));
    }
    read_section(recipe, section, *node.as_table(), file);
  }
}

}  // namespace

ResolvedRecipe load_recipe(const std::filesystem::path& file, const std::vector<RecipeOverride>& overrides) {
  ResolvedRecipe recipe;
  read_file_into(recipe, file);
  for (const RecipeOverride& item : overrides) {
    const RecipeField* field = find_recipe_field(item.name);
    if (field == nullptr) throw_unknown_key("command line", item.name);
    set_checked(recipe, *field, field->parse(item.value), fmt::format("\"{}\"", printable(item.value)), "command line",
                "command line");
  }
  try {
    validate_recipe(recipe.values);
  } catch (const Error& error) {
    throw Error(fmt::format("{}: {}", file.string(), error.what()), error.hint());
  }
  return recipe;
}

void validate_recipe(const Recipe& recipe) {
  const TrainSettings& train = recipe.train;
  if (recipe.data.path.empty()) {
    throw Error("data.path is missing, expected a folder that `tda data prepare` wrote",
                "add it to the recipe, or pass --data.path DIR");
  }
  const std::int64_t micro_tokens = train.micro_batch * recipe.model.context;
  if (train.tokens_per_step % micro_tokens != 0) {
    const std::int64_t multiple = std::max<std::int64_t>(train.tokens_per_step / micro_tokens, 1) * micro_tokens;
    throw Error(fmt::format("train.tokens_per_step is {}, expected a multiple of train.micro_batch x model.context = "
                            "{} x {} = {}",
                            train.tokens_per_step, train.micro_batch, recipe.model.context, micro_tokens),
                fmt::format("for example {}", multiple));
  }
  if (train.minimum_learning_rate > train.learning_rate) {
    throw Error(fmt::format("train.minimum_learning_rate is {}, expected at most train.learning_rate = {}",
                            train.minimum_learning_rate, train.learning_rate));
  }
  if (train.warmup_steps > train.steps) {
    throw Error(
        fmt::format("train.warmup_steps is {}, expected at most train.steps = {}", train.warmup_steps, train.steps));
  }
  if (train.adam_beta1 == 1.0 || train.adam_beta2 == 1.0) {
    throw Error("train.adam_beta1 and train.adam_beta2 are expected below 1; the moments would never move");
  }
  ModelConfig model = recipe.model;
  // Not known before the dataset is open; whatever is valid stands in for it.
  if (model.vocabulary == 0) model.vocabulary = 1;
  model.validate();
  make_attention_mechanism(model);  // throws what a mechanism refuses
}

}  // namespace tda
