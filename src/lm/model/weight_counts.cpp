#include "lm/model/weight_counts.h"

#include <ATen/ATen.h>

namespace tda {

WeightCounts count_from_survivors(const at::Tensor& survivors, std::int64_t key_length) {
  const std::int64_t batch = survivors.size(0), heads = survivors.size(1), queries = survivors.size(2);
  WeightCounts counts;
  counts.rows = batch * queries;
  // sum over rows of key_length - queries + i + 1
  counts.pairs = batch * (queries * (key_length - queries) + queries * (queries + 1) / 2);
  const at::Tensor per_head = survivors.transpose(0, 1).reshape({heads, -1});
  counts.zeros = counts.pairs - per_head.sum(-1, false, at::kLong);
  counts.empty_rows = per_head.eq(0).sum(-1);
  return counts;
}

WeightCounts count_from_map(const at::Tensor& map) { return count_from_survivors(map.ne(0).sum(-1), map.size(-1)); }

}  // namespace tda
