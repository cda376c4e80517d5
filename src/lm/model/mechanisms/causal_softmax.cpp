#include "lm/model/mechanisms/causal_softmax.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "lm/model/accumulation_type.h"
#include "lm/model/mechanisms/causal_positions.h"

namespace tda {

at::Tensor causal_softmax(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  const std::int64_t queries = q.size(2), keys = k.size(2), dim = q.size(3);
  // SDPA aligns its causal mask to the top left; with cached keys the mask is spelled out, unless one row sees all.
  c10::optional<at::Tensor> mask;
  if (queries != keys && queries > 1) mask = future_keys(queries, keys, q.device()).logical_not();
  const auto attend = [&](const at::Tensor& values) {
    return at::scaled_dot_product_attention(q, k, values, mask, 0.0, queries == keys && queries > 1);
  };
  // For values of another width than the queries SDPA on a CPU falls back to a dense map.
  if (v.size(3) == dim || !v.is_cpu()) return attend(v);
  std::vector<at::Tensor> parts;
  for (const auto& values : v.split(dim, -1)) parts.push_back(attend(values));
  return at::cat(parts, -1);
}

at::Tensor causal_softmax_map(const at::Tensor& q, const at::Tensor& k) {
  const auto scores = at::matmul(widened(q), widened(k).transpose(-1, -2)) / std::sqrt(static_cast<double>(q.size(3)));
  return scores.masked_fill(future_keys(q.size(2), k.size(2), q.device()), -std::numeric_limits<double>::infinity())
      .softmax(-1);
}

at::ScalarType causal_softmax_type(at::ScalarType compute, at::Device device) {
  return device.is_cpu() ? at::kFloat : compute;
}

}  // namespace tda
