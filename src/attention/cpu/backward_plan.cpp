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
  // With a head for each thread, all they hold is no more than dq in fp32.
  may_fuse = shape.batch * shape.key_heads >= threads;
  // Eight units a thread level out the triangle of visible pairs.
  const std::int64_t blocks = shape.batch * shape.key_heads * std::max(query_blocks, key_blocks);
  split_blocks = std::clamp<std::int64_t>(divide_up(blocks, 8 * std::int64_t{threads}), 1, kStripBlocks);
  query_units = divide_up(query_blocks, split_blocks);
  key_units = divide_up(key_blocks, split_blocks);
  held_query_blocks = may_fuse ? shape.query_heads / shape.key_heads * query_blocks : split_blocks;
}

BackwardScratch::BackwardScratch(const BackwardPlan& plan, const AttentionOptions& options, void* base) {
  Arena arena(base);
  const bool engine = plan.engine != nullptr;
  // Queries and cotangents are rows of a tile, keys and values its lanes.
  const auto take_forms = [&](BlockForms& forms, int stride, int depth, bool lanes) {
    forms.fp32 = arena.take<float>(kBlock * stride);
    forms.transposed = arena.take<float>(!engine && lanes ? kBlock * stride : 0);
    forms.bf16 = arena.take<std::uint16_t>(engine ? kBlock * 32 * depth : 0);
    forms.lanes = arena.take<std::uint32_t>(engine && lanes ? kBlock * 16 * depth : 0);
    forms.row_pairs = arena.take<std::uint32_t>(engine ? kBlock / 2 * stride : 0);
    forms.columns = arena.take<std::uint16_t>(engine && !lanes ? kBlock * stride : 0);
  };
  const auto take_sum = [&](KeySum& sum, int stride) {
    sum.rows = arena.take<float>(kBlock * stride);
    sum.total = arena.take<float>(engine ? 0 : kBlock * stride);
    sum.transposed = arena.take<float>(engine ? kBlock * stride : 0);
  };
  for (int v = 0; v < options.views; ++v) {
    for (int block = 0; block < kStripBlocks; ++block) {
      take_forms(keys[v][block], plan.head_stride, plan.depth32, true);
      take_sum(key_sum[v][block], plan.head_stride);
    }
    key_inverse[v] = arena.take<float>(kStripBlocks * kBlock);
    key_low[v] = arena.take<float>(kStripBlocks * kBlock);
    take_forms(queries[v], plan.head_stride, plan.depth32, false);
    query_inverse[v] = arena.take<float>(plan.held_query_blocks * kBlock);
    query_low[v] = arena.take<float>(plan.held_query_blocks * kBlock);
    query_sum[v] = arena.take<float>(plan.held_query_blocks * kBlock * plan.head_stride);
    query_ready[v] = arena.take<std::uint8_t>(plan.held_query_blocks);
    scores[v] = arena.take<float>(kTile);
    derivative[v] = arena.take<float>(kTile);
  }
  for (int block = 0; block < kStripBlocks; ++block) {
    take_forms(values[block], plan.value_stride, plan.value_depth32, true);
    take_sum(value_sum[block], plan.value_stride);
  }
  take_forms(cotangents, plan.value_stride, plan.value_depth32, false);
  products = arena.take<float>(kTile);
  weights = arena.take<float>(kTile);
  pairs = arena.take<std::uint32_t>(engine ? kTile / 2 : 0);
  rows_bf16 = arena.take<std::uint16_t>(engine ? kTile : 0);
  bytes = arena.used();
}

BackwardShared::BackwardShared(const BackwardPlan& plan, const AttentionShape& shape, const AttentionOptions&,
                               void* base) {
  Arena arena(base);
  const std::int64_t heads = shape.batch * shape.query_heads, key_heads = shape.batch * shape.key_heads;
  threshold_scale = arena.take<double>(shape.query_length);
  dbeta = arena.take<double>(heads * plan.query_blocks);
  dlambda = arena.take<double>(heads * plan.query_blocks);
  head_order = arena.take<std::uint64_t>(key_heads);
  units = arena.take<std::uint64_t>(key_heads + heads * plan.query_units + key_heads * plan.key_units);
  loads = arena.take<std::uint64_t>(plan.threads);
  bytes = arena.used();
}

}  // namespace tda::cpu
