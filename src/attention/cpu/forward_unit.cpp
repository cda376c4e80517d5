#include "attention/cpu/forward_unit.h"

namespace tda::cpu {
namespace {

constexpr auto kAllRows = [] {
  struct {
    std::uint8_t row[kChunk];
  } list{};
  for (int i = 0; i < kChunk; ++i) list.row[i] = static_cast<std::uint8_t>(i);
  return list;
}();

}  // namespace

void ForwardUnit::run(std::int64_t unit) {
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

int ForwardUnit::block_rows(std::int64_t block) const {
  return static_cast<int>(std::min<std::int64_t>(kBlock, rows_ - block * kBlock));
}

void ForwardUnit::visit(std::int64_t block) {
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

void ForwardUnit::adapt(int keys, const int candidates[2]) {
  if (plan_.always_screen) return;
  for (int v = 0; v < views_; ++v) dense_[v] = candidates[v] > 2 * keys;  // of 4 groups a key
}

int ForwardUnit::weigh(int v, std::int64_t block, int tile, int tile_keys, unsigned sub_tiles, int& candidates) {
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

int ForwardUnit::weigh_candidates(int v, std::int64_t block, int tile, int slice, WeighArguments arguments,
                                  float* weights, int& candidates) {
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

int ForwardUnit::live_groups(const std::uint64_t* masks, int count) {
  int live = 0;
  for (int key = 0; key < count; ++key) {
    for (int group = 0; group < kGroups; ++group) live += (masks[key] >> (16 * group) & 0xFFFF) != 0;
  }
  return live;
}

void ForwardUnit::record(std::int64_t block, int tile) {
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

}  // namespace tda::cpu
