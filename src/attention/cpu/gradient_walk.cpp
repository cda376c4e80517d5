#include "attention/cpu/gradient_walk.h"

#include <bit>

namespace tda::cpu {
namespace {

int rows_of_block(std::int64_t length, std::int64_t block) {
  return static_cast<int>(std::min<std::int64_t>(kBlock, length - block * kBlock));
}

// The live slices of up to kStripBlocks blocks of keys from `first_block` on, four bits each.
std::uint32_t live_slices(const SurvivorIndex& index, int view, std::int64_t head, std::int64_t query_block,
                          std::int64_t first_block, std::int64_t last_block) {
  constexpr std::int64_t kBlocksPerWord = 64 / kGroups;
  const std::uint64_t* row = index.row(view, head, query_block);
  const std::int64_t word = first_block / kBlocksPerWord, shift = first_block % kBlocksPerWord * kGroups;
  std::uint64_t bits = row[word] >> shift;
  const std::int64_t wanted = (last_block - first_block) * kGroups;
  if (shift + wanted > 64) bits |= row[word + 1] << (64 - shift);
  return static_cast<std::uint32_t>(bits & ((std::uint64_t{1} << wanted) - 1));
}

}  // namespace

GradientWalk::GradientWalk(const GradientCall& call, void* scratch)
    : call_(call), problem_(call.problem), plan_(call.plan), scratch_(call.plan, call.problem.options, scratch) {}

void GradientWalk::run(const GradientWork& work) {
  work_ = work;
  const std::int64_t query_blocks = work.last_query_block - work.first_query_block;
  for (int v = 0; work.queries && v < call_.views(); ++v) {
    std::fill_n(scratch_.query_ready[v], work.head_count * query_blocks, std::uint8_t{0});
  }
  for (std::int64_t head = work.first_head; work.queries && head < work.first_head + work.head_count; ++head) {
    const std::int64_t first = head * plan_.query_blocks + work.first_query_block;
    std::fill_n(call_.shared.dbeta + first, query_blocks, 0.0);
    std::fill_n(call_.shared.dlambda + first, query_blocks, 0.0);
  }
  for (std::int64_t block = work.first_key_block; block < work.last_key_block; block += kStripBlocks) {
    walk_strip(block, std::min<std::int64_t>(block + kStripBlocks, work.last_key_block));
  }
  for (std::int64_t head = work.first_head; work.queries && head < work.first_head + work.head_count; ++head) {
    for (std::int64_t block = work.first_query_block; block < work.last_query_block; ++block) {
      finish_queries(head, block);
    }
  }
}

void GradientWalk::walk_strip(std::int64_t first_block, std::int64_t last_block) {
  for (int block = 0; block < kStripBlocks; ++block) {
    values_ready_[block] = scratch_.value_sum[block].started = false;
    for (int v = 0; v < call_.views(); ++v) keys_ready_[v][block] = scratch_.key_sum[v][block].started = false;
  }
  // The first query that sees a key of the strip.
  const std::int64_t first_query = std::max<std::int64_t>(0, first_block * kBlock - problem_.position_of(0));
  for (std::int64_t head = work_.first_head; head < work_.first_head + work_.head_count; ++head) {
    const std::int64_t begin = std::max(work_.first_query_block, first_query / kBlock);
    for (std::int64_t query_block = begin; query_block < work_.last_query_block; ++query_block) {
      std::uint32_t live[2] = {0, 0};
      for (int v = 0; v < call_.views(); ++v) {
        live[v] = live_slices(call_.index, v, head, query_block, first_block, last_block);
      }
      if ((live[0] | live[1]) != 0) visit_queries(head, query_block, first_block, live);
    }
  }
  for (std::int64_t block = first_block; work_.keys && block < last_block; ++block) {
    finish_keys(block, static_cast<int>(block - first_block));
  }
}

void GradientWalk::visit_queries(std::int64_t head, std::int64_t query_block, std::int64_t first_block,
                                 const std::uint32_t live[2]) {
  const std::int64_t first = query_block * kBlock;
  const int count = rows_of_block(problem_.shape.query_length, query_block);
  cotangents_.set(plan_, problem_.simd, scratch_.cotangents,
                  problem_.rows(call_.d_output, problem_.shape.query_heads, head, first), count, plan_.value_dim,
                  nullptr, nullptr);
  for (int v = 0; v < call_.views(); ++v) {
    if (live[v] != 0) open_queries(v, head, query_block);
  }
  const double* scales = call_.shared.threshold_scale + first;
  split_thresholds(problem_.beta(head), scales, count, tau_, tau_low_);
  for (int row = 0; row < count; ++row) threshold_scale_[row] = static_cast<float>(scales[row]);
  for (int block = 0; block < kStripBlocks; ++block) {
    const unsigned slices[2] = {live[0] >> (kGroups * block) & 0xF, live[1] >> (kGroups * block) & 0xF};
    if ((slices[0] | slices[1]) != 0) visit_tile(head, query_block, first_block, block, slices);
  }
}

void GradientWalk::open_queries(int v, std::int64_t head, std::int64_t query_block) {
  const std::int64_t place = held(head, query_block), first = query_block * kBlock;
  const int count = rows_of_block(problem_.shape.query_length, query_block);
  const Rows rows = problem_.queries(v, head, first);
  float* inverse = scratch_.query_inverse[v] + place * kBlock;
  float* low = scratch_.query_low[v] + place * kBlock;
  if (!work_.queries || scratch_.query_ready[v][place] == 0) {
    problem_.simd.inverse_norms(rows, count, plan_.head_dim, problem_.options.normalize, inverse, low);
    scratch_.query_ready[v][place] = 1;
    std::fill_n(scratch_.query_sum[v] + place * kBlock * plan_.head_stride, kBlock * plan_.head_stride, 0.0f);
  }
  queries_[v].set(plan_, problem_.simd, scratch_.queries[v], rows, count, plan_.head_dim, inverse, low);
}

void GradientWalk::open_keys(int v, std::int64_t key_block, int block) {
  if (keys_ready_[v][block]) return;
  keys_ready_[v][block] = true;
  const int count = rows_of_block(problem_.shape.key_length, key_block);
  const Rows rows = problem_.keys(v, work_.key_head, key_block * kBlock);
  float* inverse = scratch_.key_inverse[v] + block * kBlock;
  float* low = scratch_.key_low[v] + block * kBlock;
  problem_.simd.inverse_norms(rows, count, plan_.head_dim, problem_.options.normalize, inverse, low);
  keys_[v][block].set(plan_, problem_.simd, scratch_.keys[v][block], rows, count, plan_.head_dim, inverse, low);
}

KeySum* GradientWalk::started(KeySum& sum, bool wanted, int stride) const {
  if (!work_.keys || !wanted) return nullptr;
  if (!sum.started) start_sum(plan_, stride, sum);
  return &sum;
}

void GradientWalk::visit_tile(std::int64_t head, std::int64_t query_block, std::int64_t first_block, int block,
                              const unsigned live[2]) {
  const std::int64_t key_block = first_block + block, first_key = key_block * kBlock;
  const std::int64_t first_query = query_block * kBlock;
  const int keys = rows_of_block(problem_.shape.key_length, key_block), queries = cotangents_.count();
  if (!values_ready_[block]) {
    values_ready_[block] = true;
    values_[block].set(plan_, problem_.simd, scratch_.values[block], problem_.values(work_.key_head, first_key), keys,
                       plan_.value_dim, nullptr, nullptr);
  }
  GradientTile tile;
  for (int v = 0; v < call_.views(); ++v) {
    if (live[v] == 0) continue;
    open_keys(v, key_block, block);
    GradientView& view = tile.view[v];
    view.queries = &queries_[v];
    view.keys = &keys_[v][block];
    view.slices = live[v];
    view.factor = problem_.view_factor(v, head);
    if (work_.queries && call_.outputs.dq[v].data != nullptr) {
      view.query_gradient = scratch_.query_sum[v] + held(head, query_block) * kBlock * plan_.head_stride;
    }
    view.key_gradient = started(scratch_.key_sum[v][block], call_.outputs.dk[v].data != nullptr, plan_.head_stride);
  }
  tile.value_gradient = started(scratch_.value_sum[block], call_.outputs.dv.data != nullptr, plan_.value_stride);
  tile.cotangents = &cotangents_;
  tile.values = &values_[block];
  tile.query_tau = {tau_, tau_low_};
  tile.threshold_scale = threshold_scale_;
  const std::int64_t first_position = problem_.position_of(first_query);
  if (keys < kBlock || first_key + keys - 1 > first_position) {
    for (int row = 0; row < queries; ++row) allowed_[row] = lanes_seen_by(first_position + row, first_key, keys);
    tile.allowed = allowed_;
  }
  const TileSums sums = add_gradient_tile(plan_, problem_.simd, scratch_, call_.power, tile);
  if (!work_.queries) return;
  call_.shared.dbeta[head * plan_.query_blocks + query_block] -= sums.g;
  call_.shared.dlambda[head * plan_.query_blocks + query_block] -= sums.ap;
}

// Undoes the L2 norm and stores dq or dk.
void GradientWalk::store_vectors(bool touched, float* rows, const Tensor& output, std::int64_t heads_per_batch,
                                 std::int64_t head, std::int64_t first, int count, Rows x, const float* inverse,
                                 const float* low) const {
  void* to = output_row(problem_, output, heads_per_batch, head, first);
  if (!touched) {
    zero_rows(problem_.options.data_type, to, output.row_stride, count, plan_.head_dim);
    return;
  }
  if (problem_.options.normalize) {
    problem_.simd.normalize_backward(rows, plan_.head_stride, x, count, plan_.head_dim, inverse, low);
  }
  problem_.simd.store_rows(rows, plan_.head_stride, count, plan_.head_dim, problem_.options.data_type, to,
                           output.row_stride);
}

void GradientWalk::finish_queries(std::int64_t head, std::int64_t query_block) {
  const std::int64_t place = held(head, query_block), first = query_block * kBlock;
  const int count = rows_of_block(problem_.shape.query_length, query_block);
  for (int v = 0; v < call_.views(); ++v) {
    if (call_.outputs.dq[v].data == nullptr) continue;
    store_vectors(scratch_.query_ready[v][place] != 0, scratch_.query_sum[v] + place * kBlock * plan_.head_stride,
                  call_.outputs.dq[v], problem_.shape.query_heads, head, first, count, problem_.queries(v, head, first),
                  scratch_.query_inverse[v] + place * kBlock, scratch_.query_low[v] + place * kBlock);
  }
}

void GradientWalk::finish_keys(std::int64_t key_block, int block) {
  const std::int64_t first = key_block * kBlock;
  const int count = rows_of_block(problem_.shape.key_length, key_block);
  for (int v = 0; v < call_.views(); ++v) {
    if (call_.outputs.dk[v].data == nullptr) continue;
    KeySum& sum = scratch_.key_sum[v][block];
    float* rows = sum.started ? finish_sum(plan_, plan_.head_dim, plan_.head_stride, sum) : nullptr;
    store_vectors(sum.started, rows, call_.outputs.dk[v], problem_.shape.key_heads, work_.key_head, first, count,
                  problem_.keys(v, work_.key_head, first), scratch_.key_inverse[v] + block * kBlock,
                  scratch_.key_low[v] + block * kBlock);
  }
  if (call_.outputs.dv.data == nullptr) return;
  const Tensor& output = call_.outputs.dv;
  void* to = output_row(problem_, output, problem_.shape.key_heads, work_.key_head, first);
  KeySum& sum = scratch_.value_sum[block];
  if (!sum.started) {
    zero_rows(problem_.options.data_type, to, output.row_stride, count, plan_.value_dim);
    return;
  }
  problem_.simd.store_rows(finish_sum(plan_, plan_.value_dim, plan_.value_stride, sum), plan_.value_stride, count,
                           plan_.value_dim, problem_.options.data_type, to, output.row_stride);
}

}  // namespace tda::cpu
