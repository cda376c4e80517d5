// The screen of the fp32 kernels: scores of unit rows rounded to fp16, on tensor cores, and how far they may stray.
//
// Let q', k' be the fp32 unit rows that the exact score multiplies and q~, k~ the same rounded to fp16. A pair is
// skipped when s~ <= tau - screen_margin; then its exact score does not pass tau (docs/decisions/074 has the proof).
// A NaN on either side makes the comparison fail, so that the pair is a candidate.
#pragma once

#include "attention/cuda/common/warp_matrix.cuh"
#include "attention/cuda/portable/pair_queue.cuh"

namespace tda::cuda::portable {

// Rounding of both rows (Cauchy-Schwarz), 2^-10; room for norms a little above 1, subnormal elements, and the rounding
// of the exact score and of s - tau, 2^-14; fp32 sums of the tensor cores, 2^-18 for each step of 16 products.
__device__ __forceinline__ float screen_margin(int dim) {
  return 0x1p-10f + 0x1p-14f + static_cast<float>((dim + 15) / 16) * 0x1p-18f;
}

// What a screen score is compared with: unreachable for rows that do not exist; NaN stays NaN.
__device__ __forceinline__ float screen_threshold(const Threshold& tau, int dim) {
  return (tau.high + tau.low) - screen_margin(dim);
}

__device__ __forceinline__ float maximum_or_nan(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

// Whether one of a warp's scores passes the thresholds of its lanes' rows g (elements 0, 1) and g + 8 (2, 3).
template <int COUNT>
__device__ __forceinline__ bool any_candidate(const float (&scores)[COUNT][4], float upper, float lower) {
  float high = maximum_or_nan(scores[0][0], scores[0][1]), low = maximum_or_nan(scores[0][2], scores[0][3]);
#pragma unroll
  for (int n = 1; n < COUNT; ++n) {
    high = maximum_or_nan(high, maximum_or_nan(scores[n][0], scores[n][1]));
    low = maximum_or_nan(low, maximum_or_nan(scores[n][2], scores[n][3]));
  }
  return __any_sync(kWholeWarp, !(high <= upper) || !(low <= lower)) != 0;
}

__device__ __forceinline__ std::uint32_t or_over_quad(std::uint32_t x) {
  x |= __shfl_xor_sync(kWholeWarp, x, 1);
  return x | __shfl_xor_sync(kWholeWarp, x, 2);
}

// Candidates among 32 columns of the lane's rows g and g + 8, from COUNT <= 4 tiles of scores beginning at FIRST:
// bit c of .x and .y. All lanes of a quad get the same.
template <int FIRST, int COUNT, int ALL>
__device__ __forceinline__ uint2 candidate_bits(const float (&scores)[ALL][4], float upper, float lower) {
  uint2 bits = make_uint2(0, 0);
#pragma unroll
  for (int n = 0; n < COUNT; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      if (!(scores[FIRST + n][e] <= upper)) bits.x |= 1u << (8 * n + e);
      if (!(scores[FIRST + n][2 + e] <= lower)) bits.y |= 1u << (8 * n + e);
    }
  }
  const int shift = lane_of_warp() % 4 * 2;
  return make_uint2(or_over_quad(bits.x << shift), or_over_quad(bits.y << shift));
}

// From the words of rows g and g + 8 in every quad to one of row `lane` in lanes 0 .. 15; 0 in the others.
__device__ __forceinline__ std::uint32_t word_of_own_row(const uint2& bits) {
  const int lane = lane_of_warp(), source = lane % 8 * 4;
  const std::uint32_t upper = __shfl_sync(kWholeWarp, bits.x, source);
  const std::uint32_t lower = __shfl_sync(kWholeWarp, bits.y, source);
  return lane < 8 ? upper : lane < kStripRows ? lower : 0u;
}

// The sum of x over the lanes before this one; `total` over all.
__device__ __forceinline__ int sum_before(int x, int& total) {
  int sum = x;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(kWholeWarp, sum, step);
    if (lane_of_warp() >= step) sum += other;
  }
  total = __shfl_sync(kWholeWarp, sum, 31);
  return sum - x;
}

// The first `count` bits, count of any sign.
__device__ __forceinline__ std::uint32_t low_bits(int count) {
  return count <= 0 ? 0u : count >= 32 ? 0xffffffffu : (1u << count) - 1u;
}

}  // namespace tda::cuda::portable
