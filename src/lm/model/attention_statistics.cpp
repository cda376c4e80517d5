#include "lm/model/attention_statistics.h"

#include <ATen/ops/add.h>

namespace tda {
namespace {

void accumulate(std::vector<std::vector<std::int64_t>>& sums, std::size_t layer, const at::Tensor& per_head) {
  const at::Tensor values = per_head.to(at::kCPU, at::kLong).contiguous();
  if (sums.size() <= layer) sums.resize(layer + 1);
  auto& row = sums[layer];
  row.resize(static_cast<std::size_t>(values.numel()), 0);
  const auto* data = values.const_data_ptr<std::int64_t>();
  for (std::size_t h = 0; h < row.size(); ++h) row[h] += data[h];
}

std::vector<std::vector<double>> shares(const std::vector<std::vector<std::int64_t>>& counts, std::int64_t of) {
  std::vector<std::vector<double>> result;
  for (const auto& row : counts) {
    auto& out = result.emplace_back();
    for (const auto count : row) out.push_back(of > 0 ? static_cast<double>(count) / static_cast<double>(of) : 0.0);
  }
  return result;
}

}  // namespace

void AttentionStatistics::add(std::int64_t layer, const WeightCounts& counts) {
  // Every layer sees the same pairs; they are counted once, with the first layer.
  if (layer == 0) {
    pairs += counts.pairs;
    rows += counts.rows;
  }
  accumulate(zeros, static_cast<std::size_t>(layer), counts.zeros);
  accumulate(empty_rows, static_cast<std::size_t>(layer), counts.empty_rows);
}

std::vector<std::vector<double>> AttentionStatistics::sparsity() const { return shares(zeros, pairs); }

std::vector<std::vector<double>> AttentionStatistics::empty_row_share() const { return shares(empty_rows, rows); }

}  // namespace tda
