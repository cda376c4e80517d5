#include "lm/analysis/run_names.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>

namespace tda {

std::vector<std::string> unique_names(std::vector<std::string> names) {
  const std::vector<std::string> given = names;
  for (std::size_t index = 0; index < names.size(); ++index) {
    if (std::count(given.begin(), given.end(), given[index]) > 1) names[index] += fmt::format(" ({})", index + 1);
  }
  return names;
}

}  // namespace tda
