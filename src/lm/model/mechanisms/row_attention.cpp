#include "lm/model/mechanisms/row_attention.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "lm/model/accumulation_type.h"
#include "lm/model/mechanisms/causal_positions.h"
#include "lm/model/row_ranges.h"

namespace tda {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// (B, H, T, D) -> (B*H, T, D), contiguous: a block of rows is then a view that batched products take without a copy.
at::Tensor flattened(const at::Tensor& x) { return widened(x).contiguous().flatten(0, 1); }

// f(range, block) for all blocks in order. q: (G, T_q, D), k: (G, T_k, D).
template <typename F>
void for_each_block(const at::Tensor& q, const at::Tensor& k, const RowMap& map, F&& f) {
  const std::int64_t queries = q.size(1), keys = k.size(1);
  const auto visible = at::arange(keys - queries + 1, keys + 1, q.options()).unsqueeze(-1);
  for (const RowRange& range : row_ranges(q.size(0), queries, keys, q.device())) {
    const RowBlock block{at::bmm(q.narrow(1, range.first, range.rows), k.narrow(1, 0, range.keys).transpose(1, 2)),
                         visible.narrow(0, range.first, range.rows)};
    // Only among the keys of its own positions does a block hold some that a row of it does not see.
    block.scores.narrow(2, range.keys - range.rows, range.rows)
        .masked_fill_(future_keys(range.rows, range.rows, q.device()), map.hidden_score());
    f(range, block);
  }
}

class RowAttention : public torch::autograd::Function<RowAttention> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const RowMapPointer& map) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto output = at::empty({q.size(0), q.size(1), v.size(2)}, q.options());
    std::vector<at::Tensor> statistics;
    for_each_block(q, k, *map, [&](const RowRange& range, const RowBlock& block) {
      statistics.push_back(map->statistics(block));
      auto rows = output.narrow(1, range.first, range.rows);
      rows.copy_(at::bmm(map->weights(block, statistics.back()), v.narrow(1, 0, range.keys)));
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
    for_each_block(q, k, *map, [&](const RowRange& range, const RowBlock& block) {
      const auto rows = [&](const at::Tensor& x) { return x.narrow(1, range.first, range.rows); };
      const auto keys = [&](const at::Tensor& x) { return x.narrow(1, 0, range.keys); };
      const auto& numbers = statistics[index++];
      const auto weights = map->weights(block, numbers);
      const auto d_weights = at::bmm(rows(d_output), keys(v).transpose(1, 2));
      keys(d_v).add_(at::bmm(weights.transpose(1, 2), rows(d_output)));
      const auto d_scores = map->score_gradient(block, numbers, weights, d_weights);
      d_scores.narrow(2, range.keys - range.rows, range.rows)
          .masked_fill_(future_keys(range.rows, range.rows, q.device()), 0);
      rows(d_q).copy_(at::bmm(d_scores, keys(k)));
      keys(d_k).add_(at::bmm(d_scores.transpose(1, 2), rows(q)));
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
  for_each_block(queries, keys, map, [&](const RowRange& range, const RowBlock& block) {
    dense.narrow(1, range.first, range.rows).narrow(2, 0, range.keys).copy_(map.weights(block, map.statistics(block)));
  });
  return dense.unflatten(0, {q.size(0), q.size(1)});
}

at::Tensor rectified_power(const at::Tensor& x, double power) {
  if (power == 0) return x.gt(0).to(x.scalar_type());
  if (power == 1) return x;
  return power == 2 ? x.square() : x.pow(power);
}

}  // namespace tda
