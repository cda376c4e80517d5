// How the backward divides its work, and the scratch memory of a thread.
//
// Two passes without atomics: the query pass visits blocks of 64 queries and computes dq (and the shares of dbeta and
// dlambda), the key pass visits blocks of 64 keys and computes dk and dv. Each pass walks the survivor index, by row or
// by column, and recomputes the scores of live slices only.
#pragma once

#include <cstdint>

#include "attention/cpu/problem.h"

namespace tda::cpu {

inline constexpr int kTile = kBlock * kBlock;

struct BackwardPlan {
  BackwardPlan(const AttentionShape& shape, const AttentionOptions& options, const KernelChoice& choice);

  const Bf16Engine* engine = nullptr;  // bf16 inputs only: its products are the scores, as in the forward
  int threads = 1;
  int head_dim = 0, head_stride = 0, depth32 = 0;  // padded to 16, in steps of 32
  int value_dim = 0, value_stride = 0, value_depth32 = 0;
  std::int64_t query_blocks = 0, key_blocks = 0;
};

// 64 rows of one operand in the forms that the kernels read. Each form is made when first needed.
struct BlockForms {
  float* fp32;             // [64][stride], stride padded to 16
  float* transposed;       // [stride][64]
  std::uint16_t* bf16;     // [64][32 * depth32]
  std::uint32_t* pairs;    // [16 * depth32][64], the lanes' operand of the engine
  std::uint16_t* columns;  // [stride][64] bf16, the rows' operand of a gradient product
};

struct BackwardScratch {
  BackwardScratch(const BackwardPlan& plan, const AttentionOptions& options, void* base);

  BlockForms lane_vectors[2], row_vectors[2], lane_values, row_values;
  float* scores[2];             // [64][64] per view, then weights
  float* derivative[2];         // [64][64] per view
  float* products;              // [64][64]
  float* weights;               // [64][64]
  std::uint32_t* pairs;         // [32][64]
  std::uint32_t* column_pairs;  // [32][widest stride]
  float* vector_gradient[2];    // [64][head_stride] per view
  float* vector_total[2];       // sums of the above so far (see GradientWorker::flush)
  float* value_gradient;        // [64][value_stride]
  float* value_total;
  float* vector_gradient_transposed[2];  // [head_stride][64], products of the engine
  float* value_gradient_transposed;      // [value_stride][64]
  std::size_t bytes;
};

// Memory that all threads share.
struct BackwardShared {
  BackwardShared(const BackwardPlan& plan, const AttentionShape& shape, const AttentionOptions& options, void* base);

  double* threshold_scale;                 // [query_length]
  float *query_inverse[2], *query_low[2];  // [heads][query_length], filled for heads with survivors
  float *key_inverse[2], *key_low[2];      // [key_heads][key_length]
  double *dbeta, *dlambda;                 // [heads][query_blocks] shares
  std::uint64_t* query_order;              // [heads * query_blocks] weight << 32 | unit, heaviest first
  std::uint64_t* key_order;                // [key_heads * key_blocks]
  std::size_t bytes;
};

}  // namespace tda::cpu
