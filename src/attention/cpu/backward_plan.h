// How the backward divides its work, and the scratch memory of a thread.
//
// The work is a set of 64 x 64 tiles (64 queries, 64 keys). A tile's scores and weights give what it adds to dq, dk and
// dv. Each sum has one owner and a fixed order: dq_i adds up the blocks of keys in ascending order, dk_j and dv_j the
// query heads of their group and in each the blocks of queries in ascending order. So the result does not depend on
// threads or timing, nor on which of two forms a key head takes:
//   fused: one thread computes dq, dk and dv of the whole head, each tile once (5 matrix products when dense);
//   split: separate units compute dq of some query blocks, or dk and dv of some key blocks, tile by tile alike, but
//   with
//     scores and weights computed twice (7 products). For few heads on many threads.
#pragma once

#include <cstdint>

#include "attention/cpu/problem.h"

namespace tda::cpu {

inline constexpr int kTile = kBlock * kBlock;
// Blocks of keys that a thread works on at a time: their operands and sums stay in the cache while the queries pass,
// and a block of queries is prepared once for all of them. 8 blocks are half a word of the survivor index.
inline constexpr int kStripBlocks = 8;

struct BackwardPlan {
  BackwardPlan(const AttentionShape& shape, const AttentionOptions& options, const KernelChoice& choice);

  const Bf16Engine* engine = nullptr;  // bf16 inputs only: its products are the scores, as in the forward
  int threads = 1;
  int head_dim = 0, head_stride = 0, depth32 = 0;  // padded to 16, in steps of 32
  int value_dim = 0, value_stride = 0, value_depth32 = 0;
  std::int64_t query_blocks = 0, key_blocks = 0;
  bool may_fuse = false;                        // a thread has room for dq of a whole key head
  std::int64_t split_blocks = 0;                // blocks of a unit in split form
  std::int64_t query_units = 0, key_units = 0;  // units of a query head and of a key head in split form
  std::int64_t held_query_blocks = 0;           // blocks whose dq a thread holds
};

// 64 rows of one operand (gradient_operand.h).
struct BlockForms {
  float* fp32;               // [64][stride], stride padded to 16
  float* transposed;         // [stride][64]
  std::uint16_t* bf16;       // [64][32 * depth32]
  std::uint32_t* lanes;      // [16 * depth32][64]
  std::uint32_t* row_pairs;  // [32][stride]
  std::uint16_t* columns;    // [stride][64]
};

// The gradient of 64 keys or values while it is added up. Rounding errors grow with the length of a sum, so survivors
// go to `rows` and from there, part by part, to `total`, where the products of dense tiles go as well. bf16 gradients
// do not need that: there products of the engine go to `transposed`, and the two are added at the end.
struct KeySum {
  float* rows = nullptr;        // [64][stride]
  float* total = nullptr;       // [64][stride], without the engine
  float* transposed = nullptr;  // [stride][64], with the engine
  int pending = 0;              // survivors in `rows`
  bool started = false, transposed_used = false;
};

struct BackwardScratch {
  BackwardScratch(const BackwardPlan& plan, const AttentionOptions& options, void* base);

  BlockForms keys[2][kStripBlocks], values[kStripBlocks], queries[2], cotangents;
  float *key_inverse[2], *key_low[2];      // [kStripBlocks * 64]
  float *query_inverse[2], *query_low[2];  // [held_query_blocks * 64]
  KeySum key_sum[2][kStripBlocks], value_sum[kStripBlocks];
  float* query_sum[2];           // [held_query_blocks][64][head_stride]
  std::uint8_t* query_ready[2];  // [held_query_blocks] norms known, sum started
  float* scores[2];              // [64][64] per view, then weights
  float* derivative[2];          // [64][64] per view
  float* products;               // [64][64]
  float* weights;                // [64][64]
  std::uint32_t* pairs;          // [32][64]
  std::uint16_t* rows_bf16;      // [64][64]
  std::size_t bytes;
};

// Memory that all threads share.
struct BackwardShared {
  BackwardShared(const BackwardPlan& plan, const AttentionShape& shape, const AttentionOptions& options, void* base);

  double* threshold_scale;    // [query_length]
  double *dbeta, *dlambda;    // [heads][query_blocks] shares
  std::uint64_t* head_order;  // [key_heads] weight << 32 | key head
  std::uint64_t* units;       // weight << 32 | unit, heaviest first (backward.cpp)
  std::uint64_t* loads;       // [threads]
  std::size_t bytes;
};

}  // namespace tda::cpu
