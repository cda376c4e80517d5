#include "lm/sweep/grid.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "lm/error.h"
#include "lm/nearest_name.h"
#include "lm/training/recipe_field.h"
#include "lm/training/recipe_text.h"

namespace tda {
namespace {

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == separator) {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  return parts;
}

const RecipeField& field_of(const std::string& key) {
  if (const RecipeField* field = find_recipe_field(key)) return *field;
  std::vector<std::string> names;
  for (const RecipeField& field : recipe_fields()) names.push_back(field.name());
  const auto nearest = nearest_name(key, names);
  throw Error(fmt::format("--grid: unknown key {}", key), nearest
                                                              ? fmt::format("the nearest valid name is {}", *nearest)
                                                              : "docs/recipes.md lists the valid names");
}

// One spelling for one value, so that 1e-3 and 0.001 name the same run.
std::string canonical(const RecipeField& field, const std::string& text) {
  const auto value = field.parse(text);
  if (!value || !field.accepts(*value)) {
    throw Error(fmt::format("--grid: {} is \"{}\", expected {}", field.name(), text, field.expected()));
  }
  const auto* string = std::get_if<std::string>(&*value);
  return string != nullptr ? *string : to_toml(*value);
}

GridAxis parse_axis(const std::string& text) {
  const std::size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0 || equals + 1 == text.size()) {
    throw Error(fmt::format("--grid is \"{}\", expected section.key=a,b,…", text),
                "for example --grid train.learning_rate=1e-3,3e-3");
  }
  GridAxis axis{text.substr(0, equals), {}};
  const RecipeField& field = field_of(axis.key);
  for (const std::string& value : split(text.substr(equals + 1), ',')) {
    const std::string spelled = canonical(field, value);
    if (std::find(axis.values.begin(), axis.values.end(), spelled) != axis.values.end()) {
      throw Error(fmt::format("--grid: {} has the value {} twice", axis.key, spelled));
    }
    axis.values.push_back(spelled);
  }
  return axis;
}

// What any file system takes.
std::string file_name_part(const std::string& value) {
  std::string part;
  for (const char c : value) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
                       c == '-' || c == '+' || c == '_';
    part += plain ? c : '_';
  }
  return part;
}

// Without its section, unless another axis has the same key in another one.
std::string short_key(const std::string& key, const std::vector<GridAxis>& axes) {
  const auto last = [](const std::string& name) { return name.substr(name.find('.') + 1); };
  const auto same =
      std::count_if(axes.begin(), axes.end(), [&](const GridAxis& axis) { return last(axis.key) == last(key); });
  return same > 1 ? key : last(key);
}

}  // namespace

std::vector<GridAxis> parse_grid(const std::vector<std::string>& texts) {
  std::vector<GridAxis> axes;
  for (const std::string& text : texts) {
    axes.push_back(parse_axis(text));
    const auto same = [&](const GridAxis& axis) { return axis.key == axes.back().key; };
    if (std::count_if(axes.begin(), axes.end(), same) > 1) {
      throw Error(fmt::format("--grid: {} is given twice", axes.back().key), "put all its values into one --grid");
    }
  }
  return axes;
}

std::vector<GridPoint> grid_points(const std::vector<GridAxis>& axes) {
  std::vector<GridPoint> points(1);
  for (const GridAxis& axis : axes) {
    std::vector<GridPoint> longer;
    for (const GridPoint& point : points) {
      for (const std::string& value : axis.values) {
        GridPoint next = point;
        next.name +=
            fmt::format("{}{}={}", point.name.empty() ? "" : ",", short_key(axis.key, axes), file_name_part(value));
        next.overrides.push_back({axis.key, value});
        longer.push_back(std::move(next));
      }
    }
    points = std::move(longer);
  }
  std::set<std::string> names;
  for (const GridPoint& point : points) {
    if (!names.insert(point.name).second) {
      throw Error(fmt::format("--grid: two runs would have the name {}", point.name),
                  "values that differ in letters, digits or . _ + - only can stand side by side");
    }
  }
  return points;
}

}  // namespace tda
