#include "attention/cpu/forward_plan.h"

#include "attention/cpu/parallel.h"

namespace tda::cpu {

ForwardPlan::ForwardPlan(const AttentionShape& shape, const AttentionOptions& options, const KernelChoice& choice) {
  head_dim = static_cast<int>(shape.head_dim);
  depth32 = static_cast<int>(divide_up(shape.head_dim, 32));
  value_dim = static_cast<int>(shape.value_dim);
  value_stride = static_cast<int>(round_up(shape.value_dim, 16));
  threads = thread_count(options);

  // Large units read the keys less often; the bound keeps a thread's scratch memory near 1 MB.
  const std::int64_t largest = std::max<std::int64_t>(kBlock, 65536 / std::max(head_dim, value_dim) / kBlock * kBlock);
  // Eight units a thread level out heads of very different cost.
  const std::int64_t total_rows = shape.batch * shape.query_heads * shape.query_length;
  const std::int64_t balanced = round_up(divide_up(total_rows, 8 * std::int64_t{threads}), kBlock);
  rows_per_unit = std::clamp<std::int64_t>(balanced, 2 * kBlock, std::max<std::int64_t>(largest, 2 * kBlock));
  rows_per_unit = std::min(rows_per_unit, round_up(std::max<std::int64_t>(shape.query_length, 1), kBlock));
  units_per_head = divide_up(shape.query_length, rows_per_unit);
  units = shape.batch * shape.query_heads * units_per_head;

  engine = choice.bf16;
  engine_scores = engine != nullptr && options.data_type == DataType::kBFloat16;
  // With few queries a rounded copy of the keys would cost more than the exact products.
  screening = engine != nullptr && !engine_scores && options.normalize && choice.screening != Screening::kOff &&
              (shape.query_length >= kBlock || choice.screening == Screening::kAlways);
  always_screen = choice.screening == Screening::kAlways;
  eight_bits = engine_scores && engine->screen != nullptr && options.normalize && head_dim <= kScreenDim &&
               choice.screening != Screening::kOff && (shape.query_length >= kBlock || always_screen);
}

ForwardScratch::ForwardScratch(const ForwardPlan& plan, const AttentionOptions& options, void* base) {
  Arena arena(base);
  const std::int64_t rows = plan.rows_per_unit, blocks = rows / kBlock, depth = 32 * plan.depth32;
  const std::int64_t widest = std::max<std::int64_t>(depth, plan.value_stride);
  const bool engine = plan.engine_scores || plan.screening;
  for (int v = 0; v < options.views; ++v) {
    ViewScratch& s = view[v];
    s.lane_scale = arena.take<float>(rows);
    s.bound = arena.take<float>(rows);
    s.query_pairs = arena.take<std::uint32_t>(engine ? rows * depth / 2 : 0);
    s.queries = arena.take<float>(plan.engine_scores ? 0 : rows * plan.head_dim);
    s.queries_ready = arena.take<std::uint8_t>(blocks);
    s.scores = arena.take<float>(kChunk * kBlock);
    s.key_scale = arena.take<float>(kChunk);
    s.key_scale_of_4 = arena.take<float>(kChunk / 4);
    s.key_power = arena.take<float>(kChunk);
    s.query_quads = arena.take<std::uint32_t>(plan.eight_bits ? rows * kScreenDim / 4 : 0);
    s.query_step = arena.take<float>(plan.eight_bits ? rows : 0);
    s.keys_int8 = arena.take<std::int8_t>(plan.eight_bits ? kChunk * kScreenDim : 0);
    s.keys_bf16 = arena.take<std::uint16_t>(engine ? kChunk * depth : 0);
    s.keys_unit = arena.take<float>(plan.engine_scores ? 0 : kChunk * plan.head_dim);
    s.masks = arena.take<std::uint64_t>(kBlock);
  }
  tau = arena.take<float>(rows);
  tau_low = arena.take<float>(rows);
  accumulator = arena.take<float>(rows * plan.value_stride);
  transposed_accumulator = arena.take<float>(plan.engine_scores ? rows * plan.value_stride : 0);
  touched_rows = arena.take<std::uint64_t>(blocks);
  transposed_used = arena.take<std::uint8_t>(blocks);
  rows_fp32 = arena.take<float>(kBlock * widest);
  rows_bf16 = arena.take<std::uint16_t>(kBlock * widest);
  values_fp32 = arena.take<float>(kChunk * plan.value_stride);
  values_transposed = arena.take<std::uint16_t>(plan.engine_scores ? kChunk * plan.value_stride : 0);
  value_pairs = arena.take<std::uint32_t>(plan.engine_scores ? 32 * plan.value_stride : 0);
  weights = arena.take<float>(kTile);
  weight_pairs = arena.take<std::uint32_t>(32 * kBlock);
  allowed = arena.take<std::uint64_t>(kBlock);
  bytes = arena.used();
}

ForwardShared::ForwardShared(const AttentionShape& shape, const AttentionOptions& options, void* base) {
  Arena arena(base);
  threshold_scale = arena.take<double>(shape.query_length);
  for (int v = 0; v < 2; ++v) {
    const std::int64_t keys = v < options.views ? shape.batch * shape.key_heads * shape.key_length : 0;
    key_inverse[v] = arena.take<float>(keys);
    key_low[v] = arena.take<float>(keys);
  }
  bytes = arena.used();
}

}  // namespace tda::cpu
