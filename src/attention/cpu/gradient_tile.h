// One tile of the backward, 64 queries (rows) x 64 keys (lanes): scores, weights and their derivatives, and what the
// tile adds to the gradients of both sides.
#pragma once

#include <cstdint>

#include "attention/cpu/backward_plan.h"
#include "attention/cpu/gradient_operand.h"

namespace tda::cpu {

struct GradientView {
  BlockOperand* queries = nullptr;
  BlockOperand* keys = nullptr;
  unsigned slices = 0;              // live slices of 16 keys; none: the view has no survivor here
  float factor = 1.0f;              // weight of the view: 1 or -lambda
  float* query_gradient = nullptr;  // [64][head_stride]; null: not wanted
  KeySum* key_gradient = nullptr;   // null: not wanted
};

struct GradientTile {
  GradientView view[2];
  BlockOperand* cotangents = nullptr;
  BlockOperand* values = nullptr;
  const std::uint64_t* allowed = nullptr;  // per query: the keys it may see; null: all
  Threshold query_tau;
  const float* threshold_scale = nullptr;  // c_i of the queries
  KeySum* value_gradient = nullptr;
};

struct TileSums {
  int survivors = 0;
  double g = 0.0;   // sum of c_i dL/ds_ij over both views
  double ap = 0.0;  // sum of a_ij <d_output_i, v_j> over the second view
};

// The views share the products of values and cotangents, and their weights are combined before they meet the
// cotangents. What is added to one gradient does not depend on which others are wanted.
TileSums add_gradient_tile(const BackwardPlan& plan, const SimdKernels& simd, const BackwardScratch& scratch,
                           const PowerRule& power, const GradientTile& tile);

// Starts a sum, moves its parts into the total, and returns the whole as [64][stride] rows.
void start_sum(const BackwardPlan& plan, int stride, KeySum& sum);
void flush_sum(int stride, KeySum& sum);
float* finish_sum(const BackwardPlan& plan, int dim, int stride, KeySum& sum);

}  // namespace tda::cpu
