#include "attention/cpu/backward_plan.h"

#include "attention/cpu/parallel.h"

namespace tda::cpu {

BackwardPlan::BackwardPlan(const AttentionShape& shape, const AttentionOptions& options, const KernelChoice& choice) {
  engine = options.data_type == DataType::kBFloat16 ? choice.bf16 : nullptr;
  threads = thread_count(options);
  head_dim = static_cast<int>(shape.head_dim);
  head_stride = static_cast<int>(round_up(shape.head_dim, 16));
  depth32 = static_cast<int>(divide_up(shape.head_dim, 32));
  value_dim = static_cast<int>(shape.value_dim);
  value_stride = static_cast<int>(round_up(shape.value_dim, 16));
  value_depth32 = static_cast<int>(divide_up(shape.value_dim, 32));
  query_blocks = divide_up(shape.query_length, kBlock);
  key_blocks = divide_up(shape.key_length, kBlock);
}

BackwardScratch::BackwardScratch(const BackwardPlan& plan, const AttentionOptions& options, void* base) {
  Arena arena(base);
  const bool engine = plan.engine != nullptr;
  const auto take = [&](BlockForms& forms, int stride, int depth) {
    forms.fp32 = arena.take<float>(kBlock * stride);
    forms.transposed = arena.take<float>(kBlock * stride);
    forms.bf16 = arena.take<std::uint16_t>(engine ? kBlock * 32 * depth : 0);
    forms.pairs = arena.take<std::uint32_t>(engine ? kBlock * 16 * depth : 0);
    forms.columns = arena.take<std::uint16_t>(engine ? kBlock * stride : 0);
  };
  for (int v = 0; v < options.views; ++v) {
    take(lane_vectors[v], plan.head_stride, plan.depth32);
    take(row_vectors[v], plan.head_stride, plan.depth32);
    scores[v] = arena.take<float>(kTile);
    derivative[v] = arena.take<float>(kTile);
  }
  take(lane_values, plan.value_stride, plan.value_depth32);
  take(row_values, plan.value_stride, plan.value_depth32);
  products = arena.take<float>(kTile);
  weights = arena.take<float>(kTile);
  pairs = arena.take<std::uint32_t>(kTile / 2);
  column_pairs = arena.take<std::uint32_t>(engine ? 32 * std::max(plan.head_stride, plan.value_stride) : 0);
  for (int v = 0; v < 2; ++v) {
    vector_gradient[v] = arena.take<float>(v < options.views ? kBlock * plan.head_stride : 0);
    vector_total[v] = arena.take<float>(v < options.views ? kBlock * plan.head_stride : 0);
    vector_gradient_transposed[v] = arena.take<float>(v < options.views && engine ? kBlock * plan.head_stride : 0);
  }
  value_gradient = arena.take<float>(kBlock * plan.value_stride);
  value_total = arena.take<float>(kBlock * plan.value_stride);
  value_gradient_transposed = arena.take<float>(engine ? kBlock * plan.value_stride : 0);
  bytes = arena.used();
}

BackwardShared::BackwardShared(const BackwardPlan& plan, const AttentionShape& shape, const AttentionOptions& options,
                               void* base) {
  Arena arena(base);
  threshold_scale = arena.take<double>(shape.query_length);
  for (int v = 0; v < 2; ++v) {
    const std::int64_t queries = v < options.views ? shape.batch * shape.query_heads * shape.query_length : 0;
    const std::int64_t keys = v < options.views ? shape.batch * shape.key_heads * shape.key_length : 0;
    query_inverse[v] = arena.take<float>(queries);
    query_low[v] = arena.take<float>(queries);
    key_inverse[v] = arena.take<float>(keys);
    key_low[v] = arena.take<float>(keys);
  }
  const std::int64_t query_units = shape.batch * shape.query_heads * plan.query_blocks;
  dbeta = arena.take<double>(query_units);
  dlambda = arena.take<double>(query_units);
  query_order = arena.take<std::uint64_t>(query_units);
  key_order = arena.take<std::uint64_t>(shape.batch * shape.key_heads * plan.key_blocks);
  bytes = arena.used();
}

}  // namespace tda::cpu
