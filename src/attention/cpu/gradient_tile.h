// One 64 x 64 tile of the backward, for either pass: scores, weights and their derivatives, the products of values and
// cotangents, and what the tile adds to the gradients of its lanes.
//
// Query pass: lanes are queries, rows are keys; lane values are d_output, row values are v.
// Key pass: lanes are keys, rows are queries; lane values are v, row values are d_output.
#pragma once

#include <cstdint>

#include "attention/cpu/backward_plan.h"

namespace tda::cpu {

// 64 rows of q, k, v or d_output, with the forms already made.
class BlockOperand {
 public:
  // Vectors (q or k): `inverse` and `low` as inverse_norms gives them. Values (v or d_output): null.
  void set(const BackwardPlan& plan, const SimdKernels& simd, const BlockForms& forms, Rows rows, int count, int dim,
           const float* inverse, const float* low);

  int count() const { return count_; }
  // What a raw score is multiplied by: with the engine the inverse norms, else 1, or NaN.
  const float* scale() const { return scale_; }
  // fp32 rows padded to 16 columns: unit vectors without the engine, else the raw rows (times a power of two).
  Rows fp32();
  const float* transposed();
  // The cheapest rows with a multiple of 16 columns that agree with scale(); may be in place.
  bool has_native_rows() const { return native_; }
  Rows native_rows() const { return rows_; }
  const std::uint16_t* engine_rows(std::ptrdiff_t& stride);
  const std::uint32_t* engine_pairs();
  const std::uint16_t* engine_columns(std::uint32_t* column_pairs);
  bool finite();

 private:
  const BackwardPlan* plan_ = nullptr;
  const SimdKernels* simd_ = nullptr;
  BlockForms forms_{};
  Rows rows_;
  int count_ = 0, dim_ = 0, stride_ = 0, depth32_ = 0;
  const float *inverse_ = nullptr, *low_ = nullptr;
  bool vectors_ = false, plain_ = false, native_ = false;
  bool fp32_ready_ = false, transposed_ready_ = false, bf16_ready_ = false, pairs_ready_ = false,
       columns_ready_ = false, finite_known_ = false, finite_ = false;
  float scale_[kBlock], power_[kBlock];
};

// One view of a tile. Gradients come in two parts that the caller adds: [64][stride] and, from the engine, transposed
// [stride][64]. Null pointers are skipped.
struct GradientView {
  BlockOperand* lane_vectors = nullptr;
  BlockOperand* row_vectors = nullptr;
  unsigned row_slices = 0;   // live slices of 16 rows; none: the view has no survivor here
  unsigned lane_groups = 0;  // live groups of 16 lanes
  float factor = 1.0f;       // weight of the view: 1 or -lambda
  float* gradient = nullptr;
  float* gradient_transposed = nullptr;
  bool* transposed_used = nullptr;
  float* lane_ap = nullptr;  // sums of a * <d_output, v>
};

struct GradientTile {
  GradientView view[2];
  BlockOperand* lane_values = nullptr;
  BlockOperand* row_values = nullptr;
  const std::uint64_t* allowed = nullptr;  // null: all lanes and rows
  Threshold lane_tau, row_tau;             // one of the two
  float* lane_g = nullptr;                 // sums of dL/ds
  float* value_gradient = nullptr;
  float* value_gradient_transposed = nullptr;
  bool* value_transposed_used = nullptr;
};

// The views share the products of values and cotangents, and their weights are combined before they meet the values.
// Returns the number of survivors.
int add_gradient_tile(const BackwardPlan& plan, const SimdKernels& simd, const BackwardScratch& scratch,
                      const PowerRule& power, const GradientTile& tile);

}  // namespace tda::cpu
