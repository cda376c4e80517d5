// Cutting the rows of an attention map into blocks whose scores fit into a buffer of bounded size.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <vector>

namespace tda {

struct RowRange {
  std::int64_t first, rows;  // of the queries
  std::int64_t keys;         // that the last of these rows sees
};

// All `queries` rows, the last positions of `keys`, for `maps` maps (batch times heads) that are computed together. A
// few buffers with the scores of a block stay in the cache of a CPU; a block has at least 16 rows.
std::vector<RowRange> row_ranges(std::int64_t maps, std::int64_t queries, std::int64_t keys, c10::Device device);

// How many of `maps` maps to cut into blocks together. All on a CPU. On a GPU as many as leave a block its most rows:
// with fewer rows the products with keys and values read those more often than they use them.
std::int64_t maps_together(std::int64_t maps, std::int64_t keys, c10::Device device);

}  // namespace tda
