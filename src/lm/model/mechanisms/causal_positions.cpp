#include "lm/model/mechanisms/causal_positions.h"

#include <ATen/ATen.h>

#include "lm/model/accumulation_type.h"

namespace tda {

at::Tensor visible_keys(const at::Tensor& q, const at::Tensor& k) {
  const std::int64_t queries = q.size(2), keys = k.size(2);
  const auto type = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return at::arange(keys - queries + 1, keys + 1, q.options().dtype(type));
}

at::Tensor future_keys(std::int64_t queries, std::int64_t keys, at::Device device) {
  return at::ones({queries, keys}, at::TensorOptions().dtype(at::kBool).device(device)).triu(keys - queries + 1);
}

}  // namespace tda
