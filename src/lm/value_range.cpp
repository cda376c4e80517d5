#include "lm/value_range.h"

#include <fmt/format.h>

#include <cmath>

namespace tda {

bool ValueRange::contains(double value) const {
  if (!std::isfinite(value)) return false;
  if (minimum && (minimum_excluded ? value <= *minimum : value < *minimum)) return false;
  return !maximum || value <= *maximum;
}

std::string ValueRange::text(const std::string& noun) const {
  if (minimum && maximum && minimum_excluded) return fmt::format("{} > {}, at most {}", noun, *minimum, *maximum);
  if (minimum && maximum) return fmt::format("{} from {} to {}", noun, *minimum, *maximum);
  if (minimum) return fmt::format("{} {} {}", noun, minimum_excluded ? ">" : ">=", *minimum);
  return noun;
}

}  // namespace tda
