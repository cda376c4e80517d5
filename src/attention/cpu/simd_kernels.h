// The vector kernels of the CPU path, one table per instruction set, chosen at run time.
//
// Vocabulary: a tile of scores has rows ("y", one vector of q or k each) and 64 lanes ("x", the other side). The
// forward puts queries in the lanes, the backward puts keys there.
// Tiles are fp32 with a row stride of kBlock. A row mask holds one bit per lane.
//
// Every score is the same sum whatever kernel computes it: chains of fused multiply-adds over kSegment elements of the
// head dimension, added up in order. So a pair has the same score, to the last bit, in a dense tile, after screening,
// and in the backward. (Segments, because the error of one long chain would exceed that of PyTorch's products.)
#pragma once

#include <cstddef>
#include <cstdint>

#include "tda/attention.h"

namespace tda::cpu {

inline constexpr int kBlock = 64;  // queries of a block, lanes of a tile
inline constexpr int kSlice = 16;  // keys of a slice: the survivor index has one bit per kBlock x kSlice pairs
inline constexpr int kSegment = 16;
inline constexpr int kGroups = kBlock / kSlice;  // groups of 16 lanes in a tile

// Rows of a matrix as they lie in memory; `stride` counts elements. Padded to a multiple of 16 columns unless stated.
struct Rows {
  DataType type = DataType::kFloat32;
  const void* data = nullptr;
  std::ptrdiff_t stride = 0;

  const void* row(std::ptrdiff_t index) const {
    const std::ptrdiff_t bytes = type == DataType::kFloat32 ? 4 : 2;
    return static_cast<const char*>(data) + index * stride * bytes;
  }
  Rows from(std::ptrdiff_t index) const { return {type, row(index), stride}; }
};

// How a score becomes a weight: a = max(0, s - tau)^power.
struct PowerRule {
  enum Kind { kOne, kTwo, kThree, kThreeHalves, kGeneral } kind = kTwo;
  float power = 2.0f;
};
PowerRule make_power_rule(double power);

// tau = high + low, because rounding tau to fp32 would shift weights that are a small r to a power.
struct Threshold {
  const float* high = nullptr;
  const float* low = nullptr;
};

// One tile's way from raw scores <x, y> to weights: s = raw * (row_scale * lane_scale), r = s - tau. (The order of the
// factors makes a score the same to the last bit whichever side is in the lanes.)
struct WeighArguments {
  const std::uint8_t* rows = nullptr;  // the rows to visit, ascending
  int row_count = 0;
  unsigned groups = 0xF;                   // which groups of 16 lanes to visit
  const std::uint64_t* allowed = nullptr;  // per row: lanes that causality and the shape allow; null: all
  const float* row_scale = nullptr;        // per row: 1/|y|
  const float* lane_scale = nullptr;       // per lane: 1/|x|
  Threshold row_tau, lane_tau;             // exactly one of the two is set
  PowerRule power;
};

// Arguments of the survivor-by-survivor backward: rows of the tile are queries, lanes are keys.
struct SurvivorGradientArguments {
  const std::uint64_t* masks = nullptr;  // [rows]
  int row_count = 0;
  const float* weight = nullptr;           // a, tile
  const float* derivative = nullptr;       // da/ds, tile
  const float* row_scale = nullptr;        // per row: 1/|q|
  const float* lane_scale = nullptr;       // per lane: 1/|k|
  const float* threshold_scale = nullptr;  // per row: c_i
  float factor = 1.0f;                     // weight of the view: 1 or -lambda
  Rows queries, keys, values, cotangents;  // of one element type; the vectors raw
  int value_dim = 0;                       // multiples of 16
  int head_dim = 0;
  float* query_gradient = nullptr;  // += g * k / |k|, [64][head_dim]; may be null, as may the next two
  float* key_gradient = nullptr;    // += g * q / |q|, [64][head_dim]
  float* value_gradient = nullptr;  // += factor * a * d_output, [64][value_dim]
  double* g = nullptr;              // += c_i g (dbeta)
  double* ap = nullptr;             // += a * <d_output, v> (dlambda); may be null
};

// Arguments of the step between the products of a dense tile of the backward.
struct CombineArguments {
  int row_count = 0;
  const float* weight = nullptr;           // a, tile
  const float* products = nullptr;         // <d_output, v>, tile
  float factor = 1.0f;                     // weight of the view: 1 or -lambda
  const float* row_scale = nullptr;        // per row: 1/|q|
  const float* lane_scale = nullptr;       // per lane: 1/|k|
  const float* threshold_scale = nullptr;  // per row: c_i
  double* g = nullptr;                     // += c_i g
  double* ap = nullptr;                    // += a * <d_output, v>; may be null
};

// What a product does with c.
enum class ProductMode {
  kOverwrite,  // c = a b
  kContinue,   // every sum starts with c
  kAddSum,     // every sum starts with 0 and is added to c: smaller rounding errors over many products
};

struct SimdKernels {
  const char* name;

  // c (m x n) and a (m x k) b (k x n); a has any two strides, n is a multiple of 16.
  void (*multiply)(int m, int n, int k, const float* a, std::ptrdiff_t a_row, std::ptrdiff_t a_column, const float* b,
                   std::ptrdiff_t b_row, float* c, std::ptrdiff_t c_row, ProductMode mode);
  // Scores: c (m x n) = y x with y (m x depth) row-major and x (depth x n) of row stride kBlock, as is c.
  void (*multiply_scores)(int m, int n, int depth, const float* y, std::ptrdiff_t y_row, const float* x, float* c);
  // The same scores for listed rows: c[r][0..16) = sum_d y[r][d] x[d][0..16).
  void (*multiply_rows)(const std::uint8_t* rows, int count, int depth, const float* y, std::ptrdiff_t y_row,
                        const float* x, float* c);

  // inverse[r] + low[r] = 1 / max(|row|, 1e-12) to twice the precision of fp32, NaN if the row holds NaN or Inf; with
  // normalize = false 1 or NaN. `low` may be null.
  void (*inverse_norms)(Rows rows, int count, int dim, bool normalize, float* inverse, float* low);
  // to[r] = row * (inverse[r] + low[r]) in fp32, zeros for a NaN inverse; columns up to to_stride zeroed.
  void (*unit_rows)(Rows rows, int count, int dim, const float* inverse, const float* low, float* to,
                    std::ptrdiff_t to_stride);
  // Converts rows to fp32, row r times scale[r] (null: 1; 0 gives zeros whatever the row holds), columns up to
  // to_stride zeroed.
  void (*load_rows)(Rows rows, int count, int dim, const float* scale, float* to, std::ptrdiff_t to_stride);
  // Converts fp32 rows to the type of an output.
  void (*store_rows)(const float* rows, std::ptrdiff_t row_stride, int count, int dim, DataType type, void* to,
                     std::ptrdiff_t to_stride);
  // to[r] = bf16(row * scale[r]) to nearest even, columns up to to_stride zeroed; scale NaN: a zero row.
  void (*round_rows)(Rows rows, int count, int dim, const float* scale, std::uint16_t* to, std::ptrdiff_t to_stride);
  bool (*all_finite)(Rows rows, int count, int dim);

  // Turns raw scores into weights in place; masks[r] |= survivors (the caller zeroes masks); derivative may be null.
  // Lanes without a survivor get weight 0 in visited rows and groups. Returns the number of survivors.
  int (*weigh)(const WeighArguments& arguments, float* scores, float* derivative, std::uint64_t* masks);
  // rows_out = those of [0, 16) whose scores exceed the bound of a lane in a group of 16 lanes.
  int (*exceeding_rows)(const float* scores, const float* lane_bound, std::uint8_t* rows_out);
  // to = (or +=) factor * weight where the mask has a survivor, 0 elsewhere. All 64 lanes.
  void (*select_survivors)(const std::uint64_t* masks, int row_count, const float* weights, float factor, float* to,
                           bool accumulate);
  // accumulator[lane] += factor * weight * values[row] for each survivor.
  void (*accumulate_survivors)(const std::uint64_t* masks, int row_count, const float* weights, float factor,
                               Rows values, int value_dim, float* accumulator, std::ptrdiff_t accumulator_stride);
  // counts[lane] += set bits of the lane in masks_a | masks_b.
  void (*count_lanes)(const std::uint64_t* masks_a, const std::uint64_t* masks_b, int row_count, std::int32_t* counts);

  void (*survivor_gradients)(const SurvivorGradientArguments& arguments);
  // Dense tile: g = factor * derivative * products where the derivative is not 0. derivative becomes g * row_scale;
  // scaled_by_lanes, unless null, g * lane_scale. All 64 lanes of row_count rows.
  void (*combine_gradients)(const CombineArguments& arguments, float* derivative, float* scaled_by_lanes);
  // to = (gradient - <gradient, unit> unit) * inverse with unit = x * inverse: the backward of the L2 norm, in place.
  // Rows at or below the norm floor (inverse = 1e12) keep only the scaling.
  void (*normalize_backward)(float* gradient, std::ptrdiff_t gradient_stride, Rows x, int count, int dim,
                             const float* inverse, const float* low);
};

// The widest table that this CPU runs, or the one that `name` ("avx3", "avx2", "sse4", "baseline") asks for; null
// if the CPU or the build lacks it.
const SimdKernels* best_simd_kernels();
const SimdKernels* find_simd_kernels(const char* name);

}  // namespace tda::cpu
