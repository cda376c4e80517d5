// The numbers that a setting may take.
#pragma once

#include <optional>
#include <string>

namespace tda {

struct ValueRange {
  std::optional<double> minimum = std::nullopt, maximum = std::nullopt;
  bool minimum_excluded = false;

  // False for NaN and infinities, whatever the range.
  bool contains(double value) const;
  // `noun` with the range behind it: "a number", "an integer >= 1", "a number from 0 to 1", "a number > 1, at most 2".
  std::string text(const std::string& noun) const;
};

}  // namespace tda
