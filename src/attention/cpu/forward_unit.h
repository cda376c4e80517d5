// One unit of the forward: a query head and a range of its rows, walked over the keys they see.
#pragma once

#include <bit>
#include <cmath>

#include "attention/cpu/forward_plan.h"

namespace tda::cpu {

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

  // Visits one unit of work (forward_plan.h).
  void run(std::int64_t unit);

 private:
  // forward_search.cpp: operands, and where survivors may be.
  int block_rows(std::int64_t block) const;
  void prepare_queries();
  void prepare_query_block(int v, std::int64_t block);
  void round_query_block(int v, std::int64_t block, Rows rows, const float* inverse);
  // The chunk's keys in eight bits.
  void round_keys(int v);
  // Sub-tiles that eight bits do not prove empty; their scores are computed.
  std::uint64_t screen(int v, std::int64_t block, int slices, const std::uint16_t* keys, std::ptrdiff_t stride,
                       const std::uint32_t* pairs);
  // A score of the engine below the bound of its lane is certainly no survivor.
  void set_bounds(std::int64_t block, int count, const float* lane_scale, float* bound) const;
  void begin_chunk(std::int64_t chunk);
  const float* chunk_inverse(int v) const;
  // Unit vectors need no scale; NaN marks a row with NaN or Inf.
  static void unit_scale(float inverse, float& scale) { scale = std::isnan(inverse) ? inverse : 1.0f; }

  // Keys as the engine reads them: in place where their layout allows, else a rounded (or merely padded) copy.
  const std::uint16_t* engine_keys(int v, std::ptrdiff_t& stride);
  // Unit vectors of the 64 keys from `tile` on; those of `slices` (a bit each) are valid.
  const float* unit_keys(int v, int tile, unsigned slices);
  // The block's unit queries, transposed.
  const float* unit_queries(int v, std::int64_t block);
  // Which sub-tiles of the block and the chunk may hold survivors; bit 4 * slice + group.
  std::uint64_t find_live(int v, std::int64_t block, int slices);

  // forward_unit.cpp: exact weights.
  void visit(std::int64_t block);
  // Screening pays while it spares most of the exact products.
  void adapt(int keys, const int candidates[2]);
  // Where the tile's weights are kept; a dense walk uses one tile again and again.
  float* tile_weights(int v, int tile) const { return scratch_.view[v].scores + (dense_[v] ? 0 : tile * kTile); }

  // Exact weights of the live sub-tiles. `candidates` counts (key, group of 16 queries) pairs that were computed, in a
  // dense walk those that hold a survivor.
  int weigh(int v, std::int64_t block, int tile, int tile_keys, unsigned sub_tiles, int& candidates);
  // After screening: exact scores for the keys of a slice that are candidates for a group of 16 queries.
  int weigh_candidates(int v, std::int64_t block, int tile, int slice, WeighArguments arguments, float* weights,
                       int& candidates);
  static int live_groups(const std::uint64_t* masks, int count);
  // Notes survivors in the index and in the counts per row.
  void record(std::int64_t block, int tile);

  // forward_accumulate.cpp: weights times values.
  // V rows of the tile with a multiple of 16 columns.
  Rows tile_values(int tile, bool fp32);
  // A product would multiply NaN or Inf in v by weights that are zero.
  bool values_finite(int tile);
  const std::uint16_t* transposed_values(int tile);
  void accumulate(std::int64_t block, int tile, int tile_keys, int survivors1, int survivors2);
  // weights_1 - lambda weights_2 with zeros where no view survives.
  void select_weights(int tile, bool second);
  // Adds the same terms in the same order as the fp32 product would: the two give identical bits.
  void accumulate_survivors(int tile, int tile_keys, int survivors1, int survivors2, float* accumulator);
  // Rows of the accumulator start with their first survivor: most never do.
  void touch_rows(std::int64_t block, std::uint64_t rows, float* accumulator);
  void touch_rows(std::int64_t block, int survivors1, int survivors2, float* accumulator);
  void finish();
  static int empty_run(std::uint64_t rows) { return rows == 0 ? kBlock : std::countr_zero(rows); }

  // Writes `count` rows of the output; null: zeros.
  void store(std::int64_t row, int count, const float* rows) const;

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

}  // namespace tda::cpu
