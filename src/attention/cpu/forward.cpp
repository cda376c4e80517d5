// The forward pass: one walk over the visible pairs that finds the survivors, weighs them and adds up their values.
//
// Per 64 queries x 256 keys: (1) find which 16 x 16 sub-tiles can hold a survivor, with the bf16 engine where there is
// one; (2) compute the exact weights there; (3) add weight * value, survivor by survivor or, where they are many, as a
// matrix product. Empty regions cost step 1 only.
#include <bit>
#include <cstring>
#include <limits>

#include "attention/cpu/cpu_attention.h"
#include "attention/cpu/forward_plan.h"
#include "attention/cpu/parallel.h"

namespace tda::cpu {
namespace {

// Survivors in a 64 x 64 tile from which a matrix product beats one step per survivor (measured).
constexpr int kDenseFp32 = 900, kDenseEngine = 160;

// Largest |<q, k> - <bf16(q), bf16(k)>| for unit vectors: rounding to nearest errs by at most 2^-9 |x|, so that
// Cauchy-Schwarz twice gives 2^-9 (2 + 2^-9); the last term covers the fp32 sums of both sides and the rounding of the
// unit vectors themselves.
float screening_margin(int dim) { return 0.003911f + static_cast<float>(4 * dim + 64) * 0x1p-24f; }

constexpr auto kAllRows = [] {
  struct {
    std::uint8_t row[kChunk];
  } list{};
  for (int i = 0; i < kChunk; ++i) list.row[i] = static_cast<std::uint8_t>(i);
  return list;
}();

class ForwardUnit {
 public:
  ForwardUnit(const Problem& problem, const ForwardPlan& plan, const ForwardShared& shared,
              const ForwardOutputs& outputs, void* scratch)
      : problem_(problem),
        plan_(plan),
        shared_(shared),
        outputs_(outputs),
        scratch_(plan, problem.options, scratch),
        index_(problem.shape, problem.options, outputs.survivor_index),
        power_(make_power_rule(problem.options.power)),
        views_(problem.options.views) {}

  void run(std::int64_t unit) {
    // Late rows see the most keys: they go first, so that the last units are short.
    const std::int64_t heads = problem_.heads();
    head_ = unit % heads;
    key_head_ = problem_.key_head_of(head_);
    first_row_ = (plan_.units_per_head - 1 - unit / heads) * plan_.rows_per_unit;
    rows_ = std::min(plan_.rows_per_unit, problem_.shape.query_length - first_row_);
    blocks_ = divide_up(rows_, kBlock);
    prepare_queries();
    const std::int64_t last_position = problem_.position_of(first_row_ + rows_ - 1);
    for (std::int64_t chunk = 0; chunk <= last_position; chunk += kChunk) {
      begin_chunk(chunk);
      for (std::int64_t block = 0; block < blocks_; ++block) visit(block);
    }
    finish();
  }

 private:
  int block_rows(std::int64_t block) const {
    return static_cast<int>(std::min<std::int64_t>(kBlock, rows_ - block * kBlock));
  }

  void prepare_queries() {
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

  void prepare_query_block(int v, std::int64_t block) {
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

  void round_query_block(int v, std::int64_t block, Rows rows, const float* inverse) {
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

  // The chunk's keys in eight bits.
  void round_keys(int v) {
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

  // Sub-tiles that eight bits do not prove empty; their scores are computed.
  std::uint64_t screen(int v, std::int64_t block, int slices, const std::uint16_t* keys, std::ptrdiff_t stride,
                       const std::uint32_t* pairs) {
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

  // A score of the engine below the bound of its lane is certainly no survivor.
  void set_bounds(std::int64_t block, int count, const float* lane_scale, float* bound) const {
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

  void begin_chunk(std::int64_t chunk) {
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
      for (int key = 0; key < kChunk; key += 4) {
        s.key_scale_of_4[key / 4] = *std::max_element(s.key_scale + key, s.key_scale + key + 4);
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

  const float* chunk_inverse(int v) const {
    return shared_.key_inverse[v] + key_head_ * problem_.shape.key_length + chunk_;
  }

  // Unit vectors need no scale; NaN marks a row with NaN or Inf.
  static void unit_scale(float inverse, float& scale) { scale = std::isnan(inverse) ? inverse : 1.0f; }

  // Keys as the engine reads them: in place where their layout allows, else a rounded (or merely padded) copy.
  const std::uint16_t* engine_keys(int v, std::ptrdiff_t& stride) {
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

  // Unit vectors of the 64 keys from `tile` on; those of `slices` (a bit each) are valid.
  const float* unit_keys(int v, int tile, unsigned slices) {
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

  // The block's unit queries, transposed.
  const float* unit_queries(int v, std::int64_t block) {
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

  // Which sub-tiles of the block and the chunk may hold survivors; bit 4 * slice + group.
  std::uint64_t find_live(int v, std::int64_t block, int slices) {
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

  void visit(std::int64_t block) {
    const int count = block_rows(block);
    const std::int64_t first_position = problem_.position_of(first_row_ + block * kBlock);
    const std::int64_t visible = first_position + count - chunk_;
    if (visible <= 0) return;
    const int keys = static_cast<int>(std::min<std::int64_t>(visible, kChunk));
    const int slices = static_cast<int>(divide_up(keys, kSlice));
    std::uint64_t live[2] = {0, 0};
    for (int v = 0; v < views_; ++v) live[v] = find_live(v, block, slices);
    if ((live[0] | live[1]) == 0) return;
    int candidates[2] = {0, 0};
    for (int tile = 0; tile * kBlock < keys; ++tile) {
      const unsigned sub_tiles[2] = {static_cast<unsigned>(live[0] >> (16 * tile)) & 0xFFFF,
                                     static_cast<unsigned>(live[1] >> (16 * tile)) & 0xFFFF};
      if ((sub_tiles[0] | sub_tiles[1]) == 0) continue;
      const int tile_keys = std::min(kBlock, keys - tile * kBlock);
      const std::int64_t first_key = chunk_ + tile * kBlock;
      const bool partial = count < kBlock || first_key + tile_keys - 1 > first_position;
      for (int key = 0; partial && key < kBlock; ++key) {
        scratch_.allowed[key] = lanes_seeing_key(first_position, count, first_key + key);
      }
      allowed_ = partial ? scratch_.allowed : nullptr;
      int survivors[2] = {0, 0};
      for (int v = 0; v < views_; ++v) {
        std::fill_n(scratch_.view[v].masks, kBlock, std::uint64_t{0});
        if (sub_tiles[v] != 0) survivors[v] = weigh(v, block, tile, tile_keys, sub_tiles[v], candidates[v]);
      }
      if (survivors[0] + survivors[1] == 0) continue;
      record(block, tile);
      accumulate(block, tile, tile_keys, survivors[0], survivors[1]);
    }
    if (plan_.screening) adapt(keys, candidates);
  }

  // Screening pays while it spares most of the exact products.
  void adapt(int keys, const int candidates[2]) {
    if (plan_.always_screen) return;
    for (int v = 0; v < views_; ++v) dense_[v] = candidates[v] > 2 * keys;  // of 4 groups a key
  }

  // Where the tile's weights are kept; a dense walk uses one tile again and again.
  float* tile_weights(int v, int tile) const { return scratch_.view[v].scores + (dense_[v] ? 0 : tile * kTile); }

  // Exact weights of the live sub-tiles. `candidates` counts (key, group of 16 queries) pairs that were computed, in a
  // dense walk those that hold a survivor.
  int weigh(int v, std::int64_t block, int tile, int tile_keys, unsigned sub_tiles, int& candidates) {
    ViewScratch& s = scratch_.view[v];
    float* weights = tile_weights(v, tile);
    WeighArguments arguments;
    arguments.allowed = allowed_;
    arguments.row_scale = s.key_scale + tile * kBlock;
    arguments.lane_scale = s.lane_scale + block * kBlock;
    arguments.lane_tau = {scratch_.tau + block * kBlock, scratch_.tau_low + block * kBlock};
    arguments.power = power_;
    if (dense_[v]) {
      const float* keys = unit_keys(v, tile, (1u << divide_up(tile_keys, kSlice)) - 1);
      const int groups = static_cast<int>(divide_up(block_rows(block), kSlice));
      problem_.simd.multiply_scores(tile_keys, groups * kSlice, plan_.head_dim, keys, plan_.head_dim,
                                    unit_queries(v, block), weights);
      arguments.rows = kAllRows.row;
      arguments.row_count = tile_keys;
      arguments.groups = (1u << groups) - 1;
      const int survivors = problem_.simd.weigh(arguments, weights, nullptr, s.masks);
      if (plan_.screening && survivors != 0) candidates += live_groups(s.masks, tile_keys);
      return survivors;
    }
    int survivors = 0;
    for (int slice = 0; slice * kSlice < tile_keys; ++slice) {
      const unsigned groups = sub_tiles >> (4 * slice) & 0xF;
      if (groups == 0) continue;
      const int slice_keys = std::min(kSlice, tile_keys - slice * kSlice);
      arguments.rows = kAllRows.row + slice * kSlice;
      arguments.row_count = slice_keys;
      arguments.groups = groups;
      if (plan_.engine_scores) {
        survivors += problem_.simd.weigh(arguments, weights, nullptr, s.masks);
      } else {
        survivors += weigh_candidates(v, block, tile, slice, arguments, weights, candidates);
      }
    }
    return survivors;
  }

  // After screening: exact scores for the keys of a slice that are candidates for a group of 16 queries.
  int weigh_candidates(int v, std::int64_t block, int tile, int slice, WeighArguments arguments, float* weights,
                       int& candidates) {
    ViewScratch& s = scratch_.view[v];
    const unsigned groups = arguments.groups;
    const int slice_keys = arguments.row_count;
    const bool bad = (bad_slices_[v] >> (tile * kGroups + slice) & 1) != 0;
    const float* keys = nullptr;
    const float* queries = unit_queries(v, block);
    int survivors = 0;
    for (int group = 0; group < kGroups; ++group) {
      if ((groups >> group & 1) == 0) continue;
      std::uint8_t list[kSlice];
      int count = slice_keys;
      if (bad) {
        for (int i = 0; i < slice_keys; ++i) list[i] = static_cast<std::uint8_t>(slice * kSlice + i);
      } else {
        std::uint8_t found[kSlice + 1];
        const int exceeding = problem_.simd.exceeding_rows(weights + slice * kSlice * kBlock + group * kSlice,
                                                           s.bound + block * kBlock + group * kSlice, found);
        count = 0;
        for (int i = 0; i < exceeding && found[i] < slice_keys; ++i) {
          list[count++] = static_cast<std::uint8_t>(slice * kSlice + found[i]);
        }
      }
      candidates += count;
      if (count == 0) continue;
      if (keys == nullptr) keys = unit_keys(v, tile, 1u << slice);
      problem_.simd.multiply_rows(list, count, plan_.head_dim, keys, plan_.head_dim, queries + group * kSlice,
                                  weights + group * kSlice);
      arguments.rows = list;
      arguments.row_count = count;
      arguments.groups = 1u << group;
      survivors += problem_.simd.weigh(arguments, weights, nullptr, s.masks);
    }
    return survivors;
  }

  static int live_groups(const std::uint64_t* masks, int count) {
    int live = 0;
    for (int key = 0; key < count; ++key) {
      for (int group = 0; group < kGroups; ++group) live += (masks[key] >> (16 * group) & 0xFFFF) != 0;
    }
    return live;
  }

  // Notes survivors in the index and in the counts per row.
  void record(std::int64_t block, int tile) {
    const std::int64_t query_block = first_row_ / kBlock + block;
    const std::int64_t first_slice = (chunk_ + tile * kBlock) / kSlice;
    for (int v = 0; outputs_.survivor_index != nullptr && v < views_; ++v) {
      const std::uint64_t* masks = scratch_.view[v].masks;
      std::uint64_t bits = 0;
      for (int key = 0; key < kBlock; ++key) bits |= std::uint64_t{masks[key] != 0} << (key / kSlice);
      index_.row(v, head_, query_block)[first_slice / 64] |= bits << (first_slice % 64);
    }
    if (outputs_.survivors == nullptr) return;
    std::int32_t counts[kBlock] = {};
    problem_.simd.count_lanes(scratch_.view[0].masks, scratch_.view[views_ - 1].masks, kBlock, counts);
    std::int32_t* to = outputs_.survivors + head_ * problem_.shape.query_length + first_row_ + block * kBlock;
    for (int lane = 0; lane < block_rows(block); ++lane) to[lane] += counts[lane];
  }

  // V rows of the tile with a multiple of 16 columns.
  Rows tile_values(int tile, bool fp32) {
    if (values_in_place_ && (!fp32 || values_.type == DataType::kFloat32)) return values_.from(tile * kBlock);
    float* copy = scratch_.values_fp32 + tile * kBlock * plan_.value_stride;
    if ((values_ready_ >> tile & 1) == 0) {
      values_ready_ |= 1u << tile;
      problem_.simd.load_rows(values_.from(tile * kBlock), std::min(kBlock, chunk_keys_ - tile * kBlock),
                              plan_.value_dim, nullptr, copy, plan_.value_stride);
    }
    return {DataType::kFloat32, copy, plan_.value_stride};
  }

  // A product would multiply NaN or Inf in v by weights that are zero.
  bool values_finite(int tile) {
    if ((values_finite_known_ >> tile & 1) == 0) {
      values_finite_known_ |= 1u << tile;
      const bool finite = problem_.simd.all_finite(values_.from(tile * kBlock),
                                                   std::min(kBlock, chunk_keys_ - tile * kBlock), plan_.value_dim);
      values_finite_ = (values_finite_ & ~(1u << tile)) | unsigned{finite} << tile;
    }
    return (values_finite_ >> tile & 1) != 0;
  }

  const std::uint16_t* transposed_values(int tile) {
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

  void accumulate(std::int64_t block, int tile, int tile_keys, int survivors1, int survivors2) {
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
      plan_.engine->multiply(plan_.value_stride / 16, kGroups, 2, transposed_values(tile), kBlock,
                             scratch_.weight_pairs, kBlock, transposed, kBlock, true);
    } else {
      touch_rows(block, ~std::uint64_t{0}, accumulator);
      const Rows values = tile_values(tile, true);
      problem_.simd.multiply(block_rows(block), plan_.value_stride, tile_keys, scratch_.weights, 1, kBlock,
                             static_cast<const float*>(values.data), values.stride, accumulator, plan_.value_stride,
                             ProductMode::kContinue);
    }
  }

  // weights_1 - lambda weights_2 with zeros where no view survives.
  void select_weights(int tile, bool second) {
    problem_.simd.select_survivors(scratch_.view[0].masks, kBlock, tile_weights(0, tile), 1.0f, scratch_.weights,
                                   false);
    if (!second) return;
    problem_.simd.select_survivors(scratch_.view[1].masks, kBlock, tile_weights(1, tile),
                                   problem_.view_factor(1, head_), scratch_.weights, true);
  }

  // Adds the same terms in the same order as the fp32 product would: the two give identical bits.
  void accumulate_survivors(int tile, int tile_keys, int survivors1, int survivors2, float* accumulator) {
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

  // Rows of the accumulator start with their first survivor: most never do.
  void touch_rows(std::int64_t block, std::uint64_t rows, float* accumulator) {
    std::uint64_t fresh = rows & ~scratch_.touched_rows[block];
    scratch_.touched_rows[block] |= rows;
    for (; fresh != 0; fresh &= fresh - 1) {
      std::fill_n(accumulator + std::countr_zero(fresh) * plan_.value_stride, plan_.value_stride, 0.0f);
    }
  }

  void touch_rows(std::int64_t block, int survivors1, int survivors2, float* accumulator) {
    std::uint64_t rows = 0;
    for (int key = 0; survivors1 != 0 && key < kBlock; ++key) rows |= scratch_.view[0].masks[key];
    for (int key = 0; survivors2 != 0 && key < kBlock; ++key) rows |= scratch_.view[1].masks[key];
    touch_rows(block, rows, accumulator);
  }

  void finish() {
    for (std::int64_t block = 0; block < blocks_; ++block) {
      const int count = block_rows(block);
      float* rows = scratch_.accumulator + block * kBlock * plan_.value_stride;
      if (scratch_.transposed_used[block]) {
        touch_rows(block, ~std::uint64_t{0}, rows);
        const float* transposed = scratch_.transposed_accumulator + block * kBlock * plan_.value_stride;
        for (int lane = 0; lane < kBlock; ++lane) {
          for (int d = 0; d < plan_.value_dim; ++d)
            rows[lane * plan_.value_stride + d] += transposed[d * kBlock + lane];
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

  static int empty_run(std::uint64_t rows) { return rows == 0 ? kBlock : std::countr_zero(rows); }

  // Writes `count` rows of the output; null: zeros.
  void store(std::int64_t row, int count, const float* rows) const {
    const DataType type = problem_.options.data_type;
    void* to = output_row(problem_, outputs_.output, problem_.shape.query_heads, head_, first_row_ + row);
    if (rows == nullptr) {
      zero_rows(type, to, outputs_.output.row_stride, count, plan_.value_dim);
    } else {
      problem_.simd.store_rows(rows, plan_.value_stride, count, plan_.value_dim, type, to, outputs_.output.row_stride);
    }
  }

  const Problem& problem_;
  const ForwardPlan& plan_;
  const ForwardShared& shared_;
  const ForwardOutputs& outputs_;
  ForwardScratch scratch_;
  SurvivorIndex index_;
  PowerRule power_;
  int views_;

  // The unit.
  std::int64_t head_ = 0, key_head_ = 0, first_row_ = 0, rows_ = 0, blocks_ = 0;
  bool screens_[2] = {false, false};  // look for candidates with eight bits
  bool dense_[2] = {false, false};    // compute whole tiles in fp32 instead of screening

  // The chunk of keys.
  std::int64_t chunk_ = 0;
  int chunk_keys_ = 0;
  Rows values_;
  bool values_in_place_ = false;
  unsigned values_ready_ = 0, values_transposed_ready_ = 0, values_finite_known_ = 0, values_finite_ = 0;
  bool keys_plain_[2] = {false, false}, keys_rounded_[2] = {false, false}, keys_int8_ready_[2] = {false, false};
  float key_step_[2] = {0.0f, 0.0f};
  unsigned keys_ready_[2] = {0, 0};
  unsigned bad_slices_[2] = {0, 0};  // slices that hold a key with NaN or Inf

  // The tile.
  const std::uint64_t* allowed_ = nullptr;
};

}  // namespace

std::size_t survivor_index_bytes(const AttentionShape& shape, const AttentionOptions& options) {
  return SurvivorIndex(shape, options, nullptr).bytes();
}

std::size_t forward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options) {
  const ForwardPlan plan(shape, options, kernel_choice());
  return ForwardShared(shape, options, nullptr).bytes +
         static_cast<std::size_t>(plan.threads) * ForwardScratch(plan, options, nullptr).bytes;
}

void forward(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
             const ForwardOutputs& outputs, void* workspace) {
  const KernelChoice choice = kernel_choice();
  const ForwardPlan plan(shape, options, choice);
  const Problem problem{shape, options, inputs, *choice.simd};
  const ForwardShared shared(shape, options, workspace);
  char* scratch = static_cast<char*>(workspace) + shared.bytes;
  const std::size_t scratch_bytes = ForwardScratch(plan, options, nullptr).bytes;

  constexpr std::int64_t kNormRows = 1024;
  const std::int64_t parts = divide_up(shape.key_length, kNormRows);
  const std::int64_t norm_units = options.views * problem.key_heads() * parts;
  const std::int64_t scale_units = divide_up(shape.query_length, kNormRows);
  for_each_unit(options, norm_units + scale_units, [&](int, std::int64_t unit) {
    if (unit >= norm_units) {
      const std::int64_t first = (unit - norm_units) * kNormRows;
      threshold_scales(problem, first, std::min(kNormRows, shape.query_length - first), shared.threshold_scale + first);
      return;
    }
    const int view = static_cast<int>(unit / (problem.key_heads() * parts));
    const std::int64_t key_head = unit / parts % problem.key_heads(), first = unit % parts * kNormRows;
    problem.simd.inverse_norms(problem.keys(view, key_head, first),
                               static_cast<int>(std::min(kNormRows, shape.key_length - first)), plan.head_dim,
                               options.normalize, shared.key_inverse[view] + key_head * shape.key_length + first,
                               shared.key_low[view] + key_head * shape.key_length + first);
  });

  struct Thread {
    alignas(64) char engine_state[kEngineStateBytes];
  };
  const bool engine = plan.engine_scores || plan.screening;
  for_each_unit(options, plan.units, [&](int thread, std::int64_t unit) {
    Thread state;
    if (engine) plan.engine->begin(state.engine_state);
    ForwardUnit worker(problem, plan, shared, outputs, scratch + static_cast<std::size_t>(thread) * scratch_bytes);
    worker.run(unit);
    if (engine) plan.engine->end(state.engine_state);
  });
}

}  // namespace tda::cpu
