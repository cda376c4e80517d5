// Step 1 of the forward: operands of queries and keys, and the sub-tiles that may hold survivors.
#include <cstring>
#include <limits>

#include "attention/cpu/eight_bit_screen.h"
#include "attention/cpu/forward_unit.h"

namespace tda::cpu {
namespace {

// Largest |<q, k> - <bf16(q), bf16(k)>| for unit vectors: rounding to nearest errs by at most 2^-9 |x|, so that
// Cauchy-Schwarz twice gives 2^-9 (2 + 2^-9); the last term covers the fp32 sums of both sides and the rounding of the
// unit vectors themselves.
float screening_margin(int dim) { return 0.003911f + static_cast<float>(4 * dim + 64) * 0x1p-24f; }

}  // namespace

void ForwardUnit::prepare_queries() {
  split_thresholds(problem_.beta(head_), shared_.threshold_scale + first_row_, rows_, scratch_.tau, scratch_.tau_low);
  for (std::int64_t i = rows_; i < blocks_ * kBlock; ++i) scratch_.tau[i] = scratch_.tau_low[i] = 0.0f;
  for (std::int64_t block = 0; block < blocks_; ++block) {
    for (int v = 0; v < views_; ++v) prepare_query_block(v, block);
    scratch_.touched_rows[block] = 0;
    scratch_.transposed_used[block] = 0;
    if (outputs_.survivor_index != nullptr) {
      for (int v = 0; v < views_; ++v) {
        std::fill_n(index_.row(v, head_, first_row_ / kBlock + block), index_.row_words(), std::uint64_t{0});
      }
    }
  }
  if (outputs_.survivors != nullptr) {
    std::fill_n(outputs_.survivors + head_ * problem_.shape.query_length + first_row_, rows_, 0);
  }
  for (int v = 0; v < views_; ++v) {
    dense_[v] = plan_.screening ? false : !plan_.engine_scores;
    screens_[v] = plan_.eight_bits;
  }
}

void ForwardUnit::prepare_query_block(int v, std::int64_t block) {
  ViewScratch& s = scratch_.view[v];
  const int count = block_rows(block);
  const Rows rows = problem_.queries(v, head_, first_row_ + block * kBlock);
  float inverse[kBlock], power[kBlock];
  float* lane_scale = s.lane_scale + block * kBlock;
  problem_.simd.inverse_norms(rows, count, plan_.head_dim, problem_.options.normalize, inverse, nullptr);
  split_scale(inverse, count, power, lane_scale);
  std::fill(lane_scale + count, lane_scale + kBlock, 0.0f);
  s.queries_ready[block] = 0;
  if (!plan_.engine_scores) {
    for (int lane = 0; lane < count; ++lane) unit_scale(inverse[lane], lane_scale[lane]);
    if (!plan_.screening) return;
  }

  const int depth = 32 * plan_.depth32;
  const auto* words = static_cast<const std::uint32_t*>(rows.data);
  std::ptrdiff_t stride = rows.stride / 2;
  const bool in_place = plan_.engine_scores && all_plain(inverse, count) && count == kBlock &&
                        plan_.head_dim == depth && rows.stride % 2 == 0;
  if (!in_place) {
    problem_.simd.round_rows(rows, count, plan_.head_dim, plan_.engine_scores ? power : inverse, scratch_.rows_bf16,
                             depth);
    std::memset(scratch_.rows_bf16 + count * depth, 0, static_cast<std::size_t>(kBlock - count) * depth * 2);
    words = reinterpret_cast<const std::uint32_t*>(scratch_.rows_bf16);
    stride = depth / 2;
  }
  std::uint32_t* pairs = s.query_pairs + block * kBlock * (depth / 2);
  for (int lane = 0; lane < kBlock; lane += 16) {
    plan_.engine->transpose(words + lane * stride, stride, plan_.depth32, pairs + lane, kBlock);
  }
  set_bounds(block, count, lane_scale, s.bound + block * kBlock);
  if (plan_.eight_bits) round_query_block(v, block, rows, inverse);
}

void ForwardUnit::round_query_block(int v, std::int64_t block, Rows rows, const float* inverse) {
  ViewScratch& s = scratch_.view[v];
  const int count = block_rows(block);
  float* step = s.query_step + block * kBlock;
  alignas(64) std::int8_t bytes[kBlock * kScreenDim] = {};
  for (int lane = 0; lane < count; ++lane) {
    const auto* row = static_cast<const std::uint16_t*>(rows.row(lane));
    step[lane] = std::numeric_limits<float>::quiet_NaN();
    if (!all_plain(inverse + lane, 1)) continue;
    const float largest = largest_unit_element(row, rows.stride, 1, plan_.head_dim, inverse + lane);
    step[lane] = largest / 127.0f;
    const float factor = inverse[lane] / step[lane];
    round_to_bytes(row, rows.stride, 1, plan_.head_dim, &factor, bytes + lane * kScreenDim);
  }
  std::fill(step + count, step + kBlock, 0.0f);
  const auto* words = reinterpret_cast<const std::uint32_t*>(bytes);
  for (int lane = 0; lane < kBlock; lane += 16) {
    plan_.engine->transpose(words + lane * (kScreenDim / 4), kScreenDim / 4, 1,
                            s.query_quads + block * kBlock * (kScreenDim / 4) + lane, kBlock);
  }
}

void ForwardUnit::round_keys(int v) {
  ViewScratch& s = scratch_.view[v];
  if (keys_int8_ready_[v]) return;
  keys_int8_ready_[v] = true;
  const Rows keys = problem_.keys(v, key_head_, chunk_);
  const auto* rows = static_cast<const std::uint16_t*>(keys.data);
  const float* inverse = chunk_inverse(v);
  key_step_[v] = largest_unit_element(rows, keys.stride, chunk_keys_, plan_.head_dim, inverse) / 127.0f;
  float factor[kChunk];
  for (int key = 0; key < chunk_keys_; ++key) factor[key] = inverse[key] / key_step_[v];
  round_to_bytes(rows, keys.stride, chunk_keys_, plan_.head_dim, factor, s.keys_int8);
  std::memset(s.keys_int8 + chunk_keys_ * kScreenDim, 0, static_cast<std::size_t>(kChunk - chunk_keys_) * kScreenDim);
}

std::uint64_t ForwardUnit::screen(int v, std::int64_t block, int slices, const std::uint16_t* keys,
                                  std::ptrdiff_t stride, const std::uint32_t* pairs) {
  ViewScratch& s = scratch_.view[v];
  round_keys(v);
  alignas(64) std::int32_t bound[kBlock];
  screen_bounds(scratch_.tau + block * kBlock, s.query_step + block * kBlock, block_rows(block), key_step_[v],
                plan_.head_dim, bound);
  const std::uint64_t live =
      plan_.engine->screen(s.keys_int8, slices, s.query_quads + block * kBlock * (kScreenDim / 4), bound);
  for (std::uint64_t rest = live; rest != 0; rest &= rest - 1) {
    const int sub_tile = std::countr_zero(rest), slice = sub_tile / kGroups, lane = sub_tile % kGroups * kSlice;
    plan_.engine->multiply(1, 1, plan_.depth32, keys + slice * kSlice * stride, stride, pairs + lane, kBlock,
                           s.scores + slice * kSlice * kBlock + lane, kBlock, false);
  }
  return live;
}

void ForwardUnit::set_bounds(std::int64_t block, int count, const float* lane_scale, float* bound) const {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const float margin = screening_margin(plan_.head_dim);
  for (int lane = 0; lane < kBlock; ++lane) {
    const float tau = scratch_.tau[block * kBlock + lane];
    if (lane >= count) {
      bound[lane] = kInfinity;
    } else if (std::isnan(lane_scale[lane])) {
      bound[lane] = -kInfinity;  // every pair of such a row is NaN and must be visited
    } else if (plan_.engine_scores) {
      // score * lane_scale > tau decides; the factor covers the rounding of this quotient and of that product.
      const float quotient = tau / lane_scale[lane];
      bound[lane] = quotient - std::fabs(quotient) * 1e-6f;
    } else {
      bound[lane] = tau - margin;
    }
  }
}

void ForwardUnit::begin_chunk(std::int64_t chunk) {
  chunk_ = chunk;
  chunk_keys_ = static_cast<int>(std::min<std::int64_t>(kChunk, problem_.shape.key_length - chunk));
  values_ready_ = values_transposed_ready_ = 0;
  values_finite_known_ = 0;
  const Rows values = problem_.values(key_head_, chunk);
  values_in_place_ = plan_.value_dim % 16 == 0;
  values_ = values;
  for (int v = 0; v < views_; ++v) {
    ViewScratch& s = scratch_.view[v];
    const float* inverse = chunk_inverse(v);
    split_scale(inverse, chunk_keys_, s.key_power, s.key_scale);
    if (!plan_.engine_scores) {
      for (int key = 0; key < chunk_keys_; ++key) unit_scale(inverse[key], s.key_scale[key]);
    }
    std::fill(s.key_scale + chunk_keys_, s.key_scale + kChunk, 0.0f);
    for (int key = 0; plan_.engine_scores && key < kChunk; key += 4) {
      const float* scale = s.key_scale + key;
      s.key_scale_of_4[key / 4] = std::max(std::max(scale[0], scale[1]), std::max(scale[2], scale[3]));
    }
    keys_plain_[v] = all_plain(inverse, chunk_keys_);
    keys_ready_[v] = 0;
    keys_rounded_[v] = keys_int8_ready_[v] = false;
    bad_slices_[v] = 0;
    if (keys_plain_[v]) continue;
    for (int key = 0; key < chunk_keys_; ++key) {
      if (std::isnan(inverse[key])) bad_slices_[v] |= 1u << (key / kSlice);
    }
  }
}

const float* ForwardUnit::chunk_inverse(int v) const {
  return shared_.key_inverse[v] + key_head_ * problem_.shape.key_length + chunk_;
}

const std::uint16_t* ForwardUnit::engine_keys(int v, std::ptrdiff_t& stride) {
  ViewScratch& s = scratch_.view[v];
  const Rows keys = problem_.keys(v, key_head_, chunk_);
  const int depth = 32 * plan_.depth32;
  if (plan_.engine_scores && keys_plain_[v] && chunk_keys_ % kSlice == 0 && plan_.head_dim == depth) {
    stride = keys.stride;
    return static_cast<const std::uint16_t*>(keys.data);
  }
  stride = depth;
  if (keys_rounded_[v]) return s.keys_bf16;
  keys_rounded_[v] = true;
  if (plan_.engine_scores) {
    problem_.simd.round_rows(keys, chunk_keys_, plan_.head_dim, s.key_power, s.keys_bf16, depth);
  } else {
    problem_.simd.round_rows(keys, chunk_keys_, plan_.head_dim, chunk_inverse(v), s.keys_bf16, depth);
  }
  std::memset(s.keys_bf16 + chunk_keys_ * depth, 0, static_cast<std::size_t>(kChunk - chunk_keys_) * depth * 2);
  return s.keys_bf16;
}

const float* ForwardUnit::unit_keys(int v, int tile, unsigned slices) {
  ViewScratch& s = scratch_.view[v];
  for (unsigned missing = (slices << (kGroups * tile)) & ~keys_ready_[v]; missing != 0; missing &= missing - 1) {
    const int first = __builtin_ctz(missing) * kSlice;
    const std::int64_t offset = key_head_ * problem_.shape.key_length + chunk_ + first;
    problem_.simd.unit_rows(problem_.keys(v, key_head_, chunk_ + first), std::min(kSlice, chunk_keys_ - first),
                            plan_.head_dim, shared_.key_inverse[v] + offset, shared_.key_low[v] + offset,
                            s.keys_unit + first * plan_.head_dim, plan_.head_dim);
  }
  keys_ready_[v] |= slices << (kGroups * tile);
  return s.keys_unit + tile * kBlock * plan_.head_dim;
}

const float* ForwardUnit::unit_queries(int v, std::int64_t block) {
  ViewScratch& s = scratch_.view[v];
  float* queries = s.queries + block * kBlock * plan_.head_dim;
  if (s.queries_ready[block] == 0) {
    s.queries_ready[block] = 1;
    const int count = block_rows(block);
    float inverse[kBlock], low[kBlock];
    const Rows rows = problem_.queries(v, head_, first_row_ + block * kBlock);
    problem_.simd.inverse_norms(rows, count, plan_.head_dim, problem_.options.normalize, inverse, low);
    problem_.simd.unit_rows(rows, count, plan_.head_dim, inverse, low, scratch_.rows_fp32, plan_.head_dim);
    std::fill(scratch_.rows_fp32 + count * plan_.head_dim, scratch_.rows_fp32 + kBlock * plan_.head_dim, 0.0f);
    transpose_lanes(scratch_.rows_fp32, plan_.head_dim, kBlock, plan_.head_dim, queries);
  }
  return queries;
}

std::uint64_t ForwardUnit::find_live(int v, std::int64_t block, int slices) {
  const std::uint64_t all = slices == 16 ? ~std::uint64_t{0} : (std::uint64_t{1} << (4 * slices)) - 1;
  if (dense_[v]) return all;
  ViewScratch& s = scratch_.view[v];
  std::ptrdiff_t stride = 0;
  const std::uint16_t* keys = engine_keys(v, stride);
  const std::uint32_t* pairs = s.query_pairs + block * kBlock * 16 * plan_.depth32;
  std::uint64_t live = 0;
  if (screens_[v] && keys_plain_[v]) {
    live = screen(v, block, slices, keys, stride, pairs);
  } else {
    live = plan_.engine->score(keys, stride, slices, plan_.depth32, pairs,
                               plan_.engine_scores ? RowScales{s.key_scale, s.key_scale_of_4} : RowScales{},
                               s.bound + block * kBlock, s.scores);
  }
  // Eight bits pay while most sub-tiles are empty.
  screens_[v] = plan_.eight_bits && (plan_.always_screen || std::popcount(live) * 2 < slices);
  for (unsigned bad = bad_slices_[v]; bad != 0; bad &= bad - 1) {
    const int slice = __builtin_ctz(bad);
    if (slice >= slices) break;
    live |= std::uint64_t{0xF} << (4 * slice);
    if (plan_.engine_scores) {
      plan_.engine->multiply(1, 4, plan_.depth32, keys + slice * kSlice * stride, stride, pairs, kBlock,
                             s.scores + slice * kSlice * kBlock, kBlock, false);
    }
  }
  return live;
}

}  // namespace tda::cpu
