#include "lm/model/row_ranges.h"

#include <algorithm>

namespace tda {
namespace {

constexpr std::int64_t kScoresOnCpu = std::int64_t{1} << 20, kScoresOnGpu = std::int64_t{1} << 25;
constexpr std::int64_t kFewestRows = 16, kMostRows = 256;

}  // namespace

std::vector<RowRange> row_ranges(std::int64_t maps, std::int64_t queries, std::int64_t keys, c10::Device device) {
  const std::int64_t budget = device.is_cpu() ? kScoresOnCpu : kScoresOnGpu;
  const std::int64_t rows_of_block =
      std::clamp(budget / std::max<std::int64_t>(maps * keys, 1), kFewestRows, kMostRows);
  std::vector<RowRange> ranges;
  for (std::int64_t first = 0; first < queries; first += rows_of_block) {
    const std::int64_t rows = std::min(rows_of_block, queries - first);
    ranges.push_back({first, rows, keys - queries + first + rows});
  }
  return ranges;
}

std::int64_t maps_together(std::int64_t maps, std::int64_t keys, c10::Device device) {
  if (device.is_cpu() || maps == 0) return std::max<std::int64_t>(maps, 1);
  const std::int64_t most =
      std::clamp<std::int64_t>(kScoresOnGpu / (kMostRows * std::max<std::int64_t>(keys, 1)), 1, maps);
  const std::int64_t groups = (maps + most - 1) / most;
  return (maps + groups - 1) / groups;  // groups of one size
}

}  // namespace tda
