// Step 3 of the forward: weights times values, and the output.
#include <cstring>

#include "attention/cpu/forward_unit.h"

namespace tda::cpu {
namespace {

// Survivors in a 64 x 64 tile from which a matrix product beats one step per survivor (measured).
constexpr int kDenseFp32 = 900, kDenseEngine = 160;

}  // namespace

Rows ForwardUnit::tile_values(int tile, bool fp32) {
  if (values_in_place_ && (!fp32 || values_.type == DataType::kFloat32)) return values_.from(tile * kBlock);
  float* copy = scratch_.values_fp32 + tile * kBlock * plan_.value_stride;
  if ((values_ready_ >> tile & 1) == 0) {
    values_ready_ |= 1u << tile;
    problem_.simd.load_rows(values_.from(tile * kBlock), std::min(kBlock, chunk_keys_ - tile * kBlock), plan_.value_dim,
                            nullptr, copy, plan_.value_stride);
  }
  return {DataType::kFloat32, copy, plan_.value_stride};
}

bool ForwardUnit::values_finite(int tile) {
  if ((values_finite_known_ >> tile & 1) == 0) {
    values_finite_known_ |= 1u << tile;
    const bool finite = problem_.simd.all_finite(values_.from(tile * kBlock),
                                                 std::min(kBlock, chunk_keys_ - tile * kBlock), plan_.value_dim);
    values_finite_ = (values_finite_ & ~(1u << tile)) | unsigned{finite} << tile;
  }
  return (values_finite_ >> tile & 1) != 0;
}

const std::uint16_t* ForwardUnit::transposed_values(int tile) {
  std::uint16_t* to = scratch_.values_transposed + tile * kBlock * plan_.value_stride;
  if ((values_transposed_ready_ >> tile & 1) != 0) return to;
  values_transposed_ready_ |= 1u << tile;
  const int count = std::min(kBlock, chunk_keys_ - tile * kBlock);
  const int stride = plan_.value_stride;
  const Rows values = values_.from(tile * kBlock);
  const auto* source = static_cast<const std::uint16_t*>(values.data);
  std::ptrdiff_t source_stride = values.stride;
  if (count < kBlock || !values_in_place_) {
    problem_.simd.round_rows(values, count, plan_.value_dim, nullptr, scratch_.rows_bf16, stride);
    std::memset(scratch_.rows_bf16 + count * stride, 0, static_cast<std::size_t>(kBlock - count) * stride * 2);
    source = scratch_.rows_bf16;
    source_stride = stride;
  }
  plan_.engine->pair_rows(source, source_stride, kBlock / 2, stride / 16, scratch_.value_pairs, stride);
  auto* words = reinterpret_cast<std::uint32_t*>(to);
  for (int half = 0; half < 2; ++half) {
    plan_.engine->transpose(scratch_.value_pairs + 16 * half * stride, stride, stride / 16, words + 16 * half,
                            kBlock / 2);
  }
  return to;
}

void ForwardUnit::accumulate(std::int64_t block, int tile, int tile_keys, int survivors1, int survivors2) {
  const int survivors = survivors1 + survivors2;
  const bool engine = plan_.engine_scores;
  float* accumulator = scratch_.accumulator + block * kBlock * plan_.value_stride;
  if (survivors < (engine ? kDenseEngine : kDenseFp32) || !values_finite(tile)) {
    touch_rows(block, survivors1, survivors2, accumulator);
    accumulate_survivors(tile, tile_keys, survivors1, survivors2, accumulator);
    return;
  }
  select_weights(tile, survivors2 != 0);
  if (engine) {
    float* transposed = scratch_.transposed_accumulator + block * kBlock * plan_.value_stride;
    if (!scratch_.transposed_used[block]) std::fill_n(transposed, kBlock * plan_.value_stride, 0.0f);
    scratch_.transposed_used[block] = 1;
    plan_.engine->pair_weights(scratch_.weights, kBlock / 2, scratch_.weight_pairs);
    plan_.engine->multiply(plan_.value_stride / 16, kGroups, 2, transposed_values(tile), kBlock, scratch_.weight_pairs,
                           kBlock, transposed, kBlock, true);
  } else {
    touch_rows(block, ~std::uint64_t{0}, accumulator);
    const Rows values = tile_values(tile, true);
    problem_.simd.multiply(block_rows(block), plan_.value_stride, tile_keys, scratch_.weights, 1, kBlock,
                           static_cast<const float*>(values.data), values.stride, accumulator, plan_.value_stride,
                           ProductMode::kContinue);
  }
}

void ForwardUnit::select_weights(int tile, bool second) {
  problem_.simd.select_survivors(scratch_.view[0].masks, kBlock, tile_weights(0, tile), 1.0f, scratch_.weights, false);
  if (!second) return;
  problem_.simd.select_survivors(scratch_.view[1].masks, kBlock, tile_weights(1, tile), problem_.view_factor(1, head_),
                                 scratch_.weights, true);
}

void ForwardUnit::accumulate_survivors(int tile, int tile_keys, int survivors1, int survivors2, float* accumulator) {
  int v = survivors1 != 0 ? 0 : 1;
  const float* weights = tile_weights(v, tile);
  const std::uint64_t* masks = scratch_.view[v].masks;
  float factor = problem_.view_factor(v, head_);
  std::uint64_t either[kBlock];
  if (survivors1 != 0 && survivors2 != 0) {
    select_weights(tile, true);
    for (int key = 0; key < kBlock; ++key) either[key] = masks[key] | scratch_.view[1].masks[key];
    weights = scratch_.weights;
    masks = either;
    factor = 1.0f;
  }
  problem_.simd.accumulate_survivors(masks, tile_keys, weights, factor, tile_values(tile, false), plan_.value_stride,
                                     accumulator, plan_.value_stride);
}

void ForwardUnit::touch_rows(std::int64_t block, std::uint64_t rows, float* accumulator) {
  std::uint64_t fresh = rows & ~scratch_.touched_rows[block];
  scratch_.touched_rows[block] |= rows;
  for (; fresh != 0; fresh &= fresh - 1) {
    std::fill_n(accumulator + std::countr_zero(fresh) * plan_.value_stride, plan_.value_stride, 0.0f);
  }
}

void ForwardUnit::touch_rows(std::int64_t block, int survivors1, int survivors2, float* accumulator) {
  std::uint64_t rows = 0;
  for (int key = 0; survivors1 != 0 && key < kBlock; ++key) rows |= scratch_.view[0].masks[key];
  for (int key = 0; survivors2 != 0 && key < kBlock; ++key) rows |= scratch_.view[1].masks[key];
  touch_rows(block, rows, accumulator);
}

void ForwardUnit::finish() {
  for (std::int64_t block = 0; block < blocks_; ++block) {
    const int count = block_rows(block);
    float* rows = scratch_.accumulator + block * kBlock * plan_.value_stride;
    if (scratch_.transposed_used[block]) {
      touch_rows(block, ~std::uint64_t{0}, rows);
      const float* transposed = scratch_.transposed_accumulator + block * kBlock * plan_.value_stride;
      for (int lane = 0; lane < kBlock; ++lane) {
        for (int d = 0; d < plan_.value_dim; ++d) rows[lane * plan_.value_stride + d] += transposed[d * kBlock + lane];
      }
    }
    const std::uint64_t touched = scratch_.touched_rows[block];
    // Runs of rows of one kind.
    for (int first = 0; first < count;) {
      const bool live = (touched >> first & 1) != 0;
      const int run = std::min(count - first, live ? std::countr_one(touched >> first) : empty_run(touched >> first));
      store(block * kBlock + first, run, live ? rows + first * plan_.value_stride : nullptr);
      first += run;
    }
  }
}

void ForwardUnit::store(std::int64_t row, int count, const float* rows) const {
  const DataType type = problem_.options.data_type;
  void* to = output_row(problem_, outputs_.output, problem_.shape.query_heads, head_, first_row_ + row);
  if (rows == nullptr) {
    zero_rows(type, to, outputs_.output.row_stride, count, plan_.value_dim);
  } else {
    problem_.simd.store_rows(rows, plan_.value_stride, count, plan_.value_dim, type, to, outputs_.output.row_stride);
  }
}

}  // namespace tda::cpu
