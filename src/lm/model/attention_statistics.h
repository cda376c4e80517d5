// Exact zeros and empty rows of the effective attention map, by layer and head.
#pragma once

#include <cstdint>
#include <vector>

#include "lm/model/attention_mechanism.h"

namespace tda {

// Sums over any number of forward passes; two sums of different processes can be added field by field.
struct AttentionStatistics {
  std::int64_t pairs = 0;                             // causal pairs seen by each head
  std::int64_t rows = 0;                              // query rows seen by each head
  std::vector<std::vector<std::int64_t>> zeros;       // [layer][head] pairs with weight exactly 0
  std::vector<std::vector<std::int64_t>> empty_rows;  // [layer][head] rows whose every weight is 0

  void add(std::int64_t layer, const WeightCounts& counts);

  // Shares in [0, 1]; zero when nothing was counted.
  std::vector<std::vector<double>> sparsity() const;
  std::vector<std::vector<double>> empty_row_share() const;
};

}  // namespace tda
