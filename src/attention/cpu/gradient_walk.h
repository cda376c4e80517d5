// A walk over the live tiles of one key head: strips of key blocks outside, query blocks inside.
#pragma once

#include "attention/cpu/backward_plan.h"
#include "attention/cpu/gradient_tile.h"

namespace tda::cpu {

// One call of the backward.
struct GradientCall {
  const Problem& problem;
  const BackwardPlan& plan;
  const BackwardShared& shared;
  const SurvivorIndex& index;
  const ConstTensor& d_output;
  const BackwardOutputs& outputs;
  PowerRule power;

  int views() const { return problem.options.views; }
  bool wants_queries() const {
    return outputs.dq[0].data != nullptr || outputs.dq[1].data != nullptr || outputs.dbeta != nullptr ||
           outputs.dlambda != nullptr;
  }
  bool wants_keys() const {
    return outputs.dk[0].data != nullptr || outputs.dk[1].data != nullptr || outputs.dv.data != nullptr;
  }
};

// Tiles to visit and gradients to finish: dq (with the shares of dbeta and dlambda) of the query blocks, for which all
// key blocks must be walked, or dk and dv of the key blocks, for which all heads and query blocks must be.
struct GradientWork {
  std::int64_t key_head = 0, first_head = 0, head_count = 0;
  std::int64_t first_query_block = 0, last_query_block = 0;  // [first, last)
  std::int64_t first_key_block = 0, last_key_block = 0;
  bool queries = false, keys = false;
};

class GradientWalk {
 public:
  GradientWalk(const GradientCall& call, void* scratch);
  void run(const GradientWork& work);

 private:
  void walk_strip(std::int64_t first_block, std::int64_t last_block);
  void visit_queries(std::int64_t head, std::int64_t query_block, std::int64_t first_block,
                     const std::uint32_t live[2]);
  void visit_tile(std::int64_t head, std::int64_t query_block, std::int64_t first_block, int block,
                  const unsigned live[2]);
  // The place of a query block among those that the thread holds; one place serves where dq is not wanted.
  std::int64_t held(std::int64_t head, std::int64_t query_block) const {
    if (!work_.queries) return 0;
    return (head - work_.first_head) * (work_.last_query_block - work_.first_query_block) + query_block -
           work_.first_query_block;
  }
  void open_queries(int v, std::int64_t head, std::int64_t query_block);
  void open_keys(int v, std::int64_t key_block, int block);
  KeySum* started(KeySum& sum, bool wanted, int stride) const;
  void finish_queries(std::int64_t head, std::int64_t query_block);
  void finish_keys(std::int64_t key_block, int block);
  void store_vectors(bool touched, float* rows, const Tensor& output, std::int64_t heads_per_batch, std::int64_t head,
                     std::int64_t first, int count, Rows x, const float* inverse, const float* low) const;

  const GradientCall& call_;
  const Problem& problem_;
  const BackwardPlan& plan_;
  BackwardScratch scratch_;
  GradientWork work_;

  BlockOperand keys_[2][kStripBlocks], values_[kStripBlocks], queries_[2], cotangents_;
  bool keys_ready_[2][kStripBlocks], values_ready_[kStripBlocks];

  // The block of queries.
  float tau_[kBlock], tau_low_[kBlock], threshold_scale_[kBlock];
  std::uint64_t allowed_[kBlock];
};

}  // namespace tda::cpu
