#include "lm/model/mechanisms/row_mechanism.h"

#include <ATen/ATen.h>

#include <cmath>

namespace tda {

RowMechanism::RowMechanism(const ModelConfig& config, RowMapPointer map)
    : layout_(one_view_layout(config)), map_(std::move(map)) {}

at::Tensor RowMechanism::attend(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) const {
  const auto [q, k] = score_factors(heads, parameters);
  return joined_heads(row_attention(q, k, heads.v, map_));
}

AttentionMaps RowMechanism::maps(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) const {
  const auto [q, k] = score_factors(heads, parameters);
  const auto weights = row_attention_map(q, k, *map_);
  return {{weights}, weights};
}

RowMechanism::Factors RowMechanism::score_factors(const ProjectedHeads& heads, std::span<const at::Tensor>) const {
  return {heads.q[0] / std::sqrt(static_cast<double>(layout_.head_dim)), heads.k[0]};
}

}  // namespace tda
