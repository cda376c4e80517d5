// How the forward divides its work, and the scratch memory of a thread.
//
// A unit of work is one query head and a range of its query rows. The keys pass in chunks of 256, so that a chunk stays
// in the innermost cache while all query blocks of the unit meet it.
#pragma once

#include <cstdint>

#include "attention/cpu/eight_bit_screen.h"
#include "attention/cpu/problem.h"

namespace tda::cpu {

inline constexpr int kChunk = 256;
inline constexpr int kTile = kBlock * kBlock;

struct ForwardPlan {
  ForwardPlan(const AttentionShape& shape, const AttentionOptions& options, const KernelChoice& choice);

  const Bf16Engine* engine = nullptr;
  bool engine_scores = false;  // bf16 inputs: the engine's products of the raw rows are the scores
  bool screening = false;      // fp32 and fp16 inputs: the engine finds candidates, fp32 products decide
  bool always_screen = false;
  bool eight_bits = false;  // bf16 inputs: eight-bit products find candidates first
  int threads = 1;
  int head_dim = 0, depth32 = 0;        // depth32: head_dim in steps of 32
  int value_dim = 0, value_stride = 0;  // value_stride: value_dim padded to 16
  std::int64_t rows_per_unit = 0, units_per_head = 0, units = 0;
};

// What a thread holds for one view.
struct ViewScratch {
  float* lane_scale;            // [rows] what a raw score is multiplied by: 1/|q| (split) or, for unit rows, 1 or NaN
  float* bound;                 // [rows] what a score of the engine must exceed
  std::uint32_t* query_pairs;   // [blocks][depth32 * 16][64]
  float* queries;               // [blocks][head_dim][64] unit vectors, filled when first needed
  std::uint8_t* queries_ready;  // [blocks]
  float* scores;                // [kChunk][64]
  float* key_scale;             // [kChunk]
  float* key_scale_of_4;        // [kChunk / 4] the largest of 4
  float* key_power;             // [kChunk]
  std::uint32_t* query_quads;   // [blocks][16][64] eight bits, four dimensions a word
  float* query_step;            // [rows] NaN: every pair is to be computed
  std::int8_t* keys_int8;       // [kChunk][64]
  std::uint16_t* keys_bf16;     // [kChunk][32 * depth32]
  float* keys_unit;             // [kChunk][head_dim] filled slice by slice when first needed
  std::uint64_t* masks;         // [64] survivors of the tile
};

struct ForwardScratch {
  ForwardScratch(const ForwardPlan& plan, const AttentionOptions& options, void* base);

  ViewScratch view[2];
  float *tau, *tau_low;              // [rows]
  float* accumulator;                // [rows][value_stride]
  float* transposed_accumulator;     // [blocks][value_stride][64], products of the engine
  std::uint64_t* touched_rows;       // [blocks] rows of the accumulator that have been started
  std::uint8_t* transposed_used;     // [blocks]
  float* rows_fp32;                  // [64][max(32 * depth32, value_stride)]
  std::uint16_t* rows_bf16;          // [64][max(32 * depth32, value_stride)]
  float* values_fp32;                // [kChunk][value_stride]
  std::uint16_t* values_transposed;  // [kChunk / 64][value_stride][64]
  std::uint32_t* value_pairs;        // [32][value_stride]
  float* weights;                    // [64][64]
  std::uint32_t* weight_pairs;       // [32][64]
  std::uint64_t* allowed;            // [64]
  std::size_t bytes;
};

// Memory that all threads share.
struct ForwardShared {
  ForwardShared(const AttentionShape& shape, const AttentionOptions& options, void* base);

  double* threshold_scale;  // [query_length]
  float* key_inverse[2];    // [key_heads][key_length] 1/|k|
  float* key_low[2];        // its second half
  std::size_t bytes;
};

}  // namespace tda::cpu
