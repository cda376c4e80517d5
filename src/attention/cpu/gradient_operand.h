// 64 rows of q, k, v or d_output in the forms that the backward's kernels read. Each form is made when first asked for.
#pragma once

#include <cstdint>

#include "attention/cpu/backward_plan.h"

namespace tda::cpu {

class BlockOperand {
 public:
  // Vectors (q or k): `inverse` and `low` as inverse_norms gives them, alive as long as the operand. Values (v or
  // d_output): null.
  void set(const BackwardPlan& plan, const SimdKernels& simd, const BlockForms& forms, Rows rows, int count, int dim,
           const float* inverse, const float* low);

  int count() const { return count_; }
  // What a raw score is multiplied by: with the engine the inverse norms, else 1, or NaN.
  const float* scale() const { return scale_; }
  // fp32 rows padded to 16 columns: unit vectors without the engine, else the raw rows (times a power of two).
  Rows fp32();
  // [dim][64] of the above.
  const float* transposed();
  // The cheapest rows with a multiple of 16 columns that agree with scale(); may be in place.
  bool has_native_rows() const { return native_; }
  Rows native_rows() const { return rows_; }
  bool finite();

  // Forms of the engine. Rows as operand A, rows as lanes of operand B (pairs along the columns), rows as the depth of
  // operand B (pairs of rows), and transposed as operand A with the rows as depth.
  const std::uint16_t* engine_rows(std::ptrdiff_t& stride);
  const std::uint32_t* engine_lanes();
  const std::uint32_t* engine_row_pairs();
  const std::uint16_t* engine_columns();

 private:
  const BackwardPlan* plan_ = nullptr;
  const SimdKernels* simd_ = nullptr;
  BlockForms forms_{};
  Rows rows_;
  int count_ = 0, dim_ = 0, stride_ = 0, depth32_ = 0;
  const float *inverse_ = nullptr, *low_ = nullptr;
  bool vectors_ = false, plain_ = false, native_ = false;
  bool fp32_ready_ = false, transposed_ready_ = false, bf16_ready_ = false, lanes_ready_ = false,
       row_pairs_ready_ = false, columns_ready_ = false, finite_known_ = false, finite_ = false;
  float scale_[kBlock], power_[kBlock];
};

}  // namespace tda::cpu
