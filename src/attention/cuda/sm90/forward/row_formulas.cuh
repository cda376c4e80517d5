// The few formulas of a row that must give the same bits in every kernel of the forward.
#pragma once

#include "attention/cuda/common/fragment.cuh"
#include "attention/cuda/sm90/forward/arguments.h"

namespace tda::cuda::sm90 {

// tau of the row at `position` (Eq. 1: beta sqrt(2 ln((n + 1) / kappa) / D), 0 where the logarithm is negative).
template <int kHeadDim>
__device__ __forceinline__ float threshold_at(float beta, int position, float kappa) {
  const float log_length = fmaxf(logf(static_cast<float>(position + 1) / kappa), 0.0f);
  return beta * sqrtf(log_length * (2.0f / kHeadDim));
}

// |x| as the definition uses it: at least 1e-12. Squares must stay below 3e38.
__device__ __forceinline__ float norm_from_square(float square) {
  return square < 1e-24f ? 1e-12f : sqrtf(square);  // NaN stays NaN
}

// Squares of eight elements, summed in a fixed order.
template <typename Element>
__device__ __forceinline__ float sum_of_squares(const uint4& elements) {
  const std::uint32_t word[4] = {elements.x, elements.y, elements.z, elements.w};
  float square = 0.0f;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float2 x = unpack<Element>(word[j]);
    square = fmaf(x.x, x.x, fmaf(x.y, x.y, square));
  }
  return square;
}

// What the exact scores of a key are multiplied by: 1/|k|, or 1.
__device__ __forceinline__ float key_scale(bool normalize, float square) {
  return !normalize ? 1.0f : square < 1e-24f ? 1e12f : rsqrtf(square);
}

// A factor 1/|x| as the survivor index keeps it: only where neither the square nor a rounding of |x| is in question.
__device__ __forceinline__ float saved_factor(float factor) {
  return factor > 1e-15f && factor < 1e11f ? factor : kNoFactor;
}

// The power of two by which a query row is multiplied before the exact product (exact in 16 bits): weights
// t^p, t <= |q'| (1 + max(0, -tau)), then lie below 32768 and use fp16's range well. `largest_t`^p is 32768.
__device__ __forceinline__ float query_scale(float norm, float tau, float largest_t) {
  const float target = fminf(largest_t / (norm * (1.0f + fmaxf(0.0f, -tau))), 1e30f);
  return __uint_as_float(__float_as_uint(target) & 0x7f800000u);
}

// max(t, 0)^p for p other than 2; NaN stays NaN.
__device__ __forceinline__ float rectified_power(float t, float power) {
  const float x = positive_part(t);
  if (power == 1.0f) return x;
  return x > 0.0f ? exp2f(power * log2f(x)) : x;
}

// (1 / x)^p, the factor that takes weights of a scaled query row back to the definition.
__device__ __forceinline__ float inverse_power(float x, float power) {
  if (power == 2.0f) return 1.0f / (x * x);
  if (power == 1.0f) return 1.0f / x;
  return exp2f(-power * log2f(x));
}

}  // namespace tda::cuda::sm90
