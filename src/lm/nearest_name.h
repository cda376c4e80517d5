#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace tda {

/// The candidate with the smallest edit distance (insertion, deletion, substitution, swap of neighbours) to `name`; the
/// first of equals. Nothing when even that one differs in more than half of the characters of `name`.
std::optional<std::string> nearest_name(std::string_view name, std::span<const std::string> candidates);

}  // namespace tda
