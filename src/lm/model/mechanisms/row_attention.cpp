#include "lm/model/mechanisms/row_attention.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "lm/model/accumulation_type.h"
#include "lm/model/mechanisms/causal_positions.h"
#include "lm/model/mechanisms/row_kernel.h"
#include "lm/model/row_ranges.h"

namespace tda {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// (B, H, T, D) -> (B*H, T, D), contiguous: a block of rows is then a view that batched products take without a copy.
at::Tensor flattened(const at::Tensor& x) { return widened(x).contiguous().flatten(0, 1); }

// Some rows of some maps.
struct BlockRange {
  std::int64_t first_map, maps;
  RowRange range;

  at::Tensor rows(const at::Tensor& x) const { return of_maps(x).narrow(1, range.first, range.rows); }
  at::Tensor keys(const at::Tensor& x) const { return of_maps(x).narrow(1, 0, range.keys); }
  at::Tensor of_maps(const at::Tensor& x) const { return x.narrow(0, first_map, maps); }
};

// f(block) for all blocks in order. q: (G, T_q, D), k: (G, T_k, D).
template <typename F>
void for_each_block(const at::Tensor& q, const at::Tensor& k, F&& f) {
  const std::int64_t maps = q.size(0), queries = q.size(1), keys = k.size(1);
  const std::int64_t together = maps_together(maps, keys, q.device());
  for (std::int64_t first = 0; first < maps; first += together) {
    const std::int64_t count = std::min(together, maps - first);
    for (const RowRange& range : row_ranges(count, queries, keys, q.device())) f(BlockRange{first, count, range});
  }
}

// Only among the keys of its own positions does a block hold some that a row of it does not see.
void fill_hidden(const at::Tensor& block, double value) {
  const std::int64_t rows = block.size(1);
  block.narrow(2, block.size(2) - rows, rows).masked_fill_(future_keys(rows, rows, block.device()), value);
}

RowBlock masked_block(const RowMap& map, const at::Tensor& scores) {
  fill_hidden(scores, map.hidden_score());
  const std::int64_t rows = scores.size(1), keys = scores.size(2);
  return {scores, at::arange(keys - rows + 1, keys + 1, scores.options()).unsqueeze(-1)};
}

struct WeightsAndStatistics {
  at::Tensor weights, statistics;
};

// Scores are overwritten.
WeightsAndStatistics weights_of(const RowMap& map, const at::Tensor& scores) {
  if (const auto formula = kernel_formula(map, scores)) {
    auto statistics = replace_by_weights(*formula, scores);
    return {scores, statistics};
  }
  const RowBlock block = masked_block(map, scores);
  auto statistics = map.statistics(block);
  return {map.weights(block, statistics), statistics};
}

struct WeightsAndGradient {
  at::Tensor weights, d_scores;
};

// Scores and d_weights are overwritten.
WeightsAndGradient gradient_of(const RowMap& map, const at::Tensor& scores, const at::Tensor& statistics,
                               const at::Tensor& d_weights) {
  if (const auto formula = kernel_formula(map, scores)) {
    replace_by_gradients(*formula, scores, statistics, d_weights);
    return {scores, d_weights};
  }
  const RowBlock block = masked_block(map, scores);
  auto weights = map.weights(block, statistics);
  auto d_scores = map.score_gradient(block, statistics, weights, d_weights);
  fill_hidden(d_scores, 0);
  return {weights, d_scores};
}

// sum += a b. A GPU does both in one kernel; the CPU's product is faster alone.
void add_product(const at::Tensor& sum, const at::Tensor& a, const at::Tensor& b) {
  if (sum.is_cpu()) {
    sum.add_(at::bmm(a, b));
  } else {
    sum.baddbmm_(a, b);
  }
}

at::Tensor scores_of(const BlockRange& block, const at::Tensor& q, const at::Tensor& k) {
  return at::bmm(block.rows(q), block.keys(k).transpose(1, 2));
}

class RowAttention : public torch::autograd::Function<RowAttention> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const RowMapPointer& map) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto output = at::empty({q.size(0), q.size(1), v.size(2)}, q.options());
    std::vector<at::Tensor> statistics;
    for_each_block(q, k, [&](const BlockRange& block) {
      const auto row = weights_of(*map, scores_of(block, q, k));
      statistics.push_back(row.statistics);
      block.rows(output).copy_(at::bmm(row.weights, block.keys(v)));
    });
    context->save_for_backward({q, k, v});
    context->saved_data["statistics"] = statistics;
    context->saved_data["map"] = c10::IValue::make_capsule(map);
    return output;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(),
                "row attention has no second derivative: its gradient was asked for with "
                "create_graph, expected without");
    const auto saved = context->get_saved_variables();
    const auto &q = saved[0], &k = saved[1], &v = saved[2];
    const auto map = c10::static_intrusive_pointer_cast<RowMap>(context->saved_data["map"].toCapsule());
    const auto statistics = context->saved_data["statistics"].toTensorVector();
    const auto d_output = gradients[0].contiguous();
    const auto d_q = at::empty_like(q), d_k = at::zeros_like(k), d_v = at::zeros_like(v);
    std::size_t index = 0;
    for_each_block(q, k, [&](const BlockRange& block) {
      const auto d_rows = block.rows(d_output), keys = block.keys(k);
      const auto d_weights = at::bmm(d_rows, block.keys(v).transpose(1, 2));
      const auto row = gradient_of(*map, scores_of(block, q, k), statistics[index++], d_weights);
      add_product(block.keys(d_v), row.weights.transpose(1, 2), d_rows);
      block.rows(d_q).copy_(at::bmm(row.d_scores, keys));
      add_product(block.keys(d_k), row.d_scores.transpose(1, 2), block.rows(q));
    });
    return {d_q, d_k, d_v, at::Tensor()};
  }
};

}  // namespace

at::Tensor row_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const RowMapPointer& map) {
  const auto rows = RowAttention::apply(flattened(q), flattened(k), flattened(v), map);
  return rows.unflatten(0, {q.size(0), q.size(1)}).to(v.scalar_type());
}

at::Tensor row_attention_map(const at::Tensor& q, const at::Tensor& k, const RowMap& map) {
  at::NoGradGuard no_gradient;
  const auto queries = flattened(q), keys = flattened(k);
  const auto dense = at::zeros({queries.size(0), queries.size(1), keys.size(1)}, queries.options());
  for_each_block(queries, keys, [&](const BlockRange& block) {
    block.rows(dense).narrow(2, 0, block.range.keys).copy_(weights_of(map, scores_of(block, queries, keys)).weights);
  });
  return dense.unflatten(0, {q.size(0), q.size(1)});
}

at::Tensor rectified_power(const at::Tensor& x, double power) {
  if (power == 0) return x.gt(0).to(x.scalar_type());
  if (power == 1) return x;
  return power == 2 ? x.square() : x.pow(power);
}

}  // namespace tda
