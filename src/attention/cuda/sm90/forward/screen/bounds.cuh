// From 8-bit scores to a proved no: queries rounded to 8 bits, and the thresholds below which no pair survives.
//
// Bound. With k' the unit key (or k), A = c q the query row scaled to 127, B = sigma k' and their roundings q8, k8:
//   A B = q8 k8 + q8 (B - k8) + (A - q8) B  <=  q8 k8 + |q8| sigma e_k + |A - q8| sigma n_k
// where e_k, n_k bound the key error and |k'| over 256 keys. A pair above its threshold, s > tau, has A B > c sigma tau
// |q|, so that q8 k8 > sigma (c tau |q| - |A - q8| n_k - |q8| e_k) =: threshold. The integer sums are exact; 1e-4 |q|
// n_k is taken off for the rounding of the exact fp32 scores and of the bound itself. Blocks without such a pair are
// empty.
#pragma once

#include "attention/cuda/common/copy_engine.cuh"
#include "attention/cuda/common/fragment.cuh"
#include "attention/cuda/sm90/forward/row_formulas.cuh"

namespace tda::cuda::sm90 {

// Thresholds of a thread's two rows: flagged when the integer score exceeds sigma * (base + slope_error * e_k +
// slope_norm * n_k).
struct RowBound {
  float base, slope_error, slope_norm;
};

// A square root to 1e-6; the bounds are widened by more.
__device__ __forceinline__ float upper_root(float x) { return x > 0.0f ? x * rsqrtf(x) : 0.0f; }

// Reads the 16 x D query strip of this warp and leaves its 8-bit A fragments and the bounds of rows g and g + 8.
template <typename Element, int kHeadDim>
__device__ __forceinline__ void quantise_queries(const ForwardArguments& a, std::uint32_t strip_address, float tau0,
                                                 float tau1, bool inside0, bool inside1,
                                                 std::uint32_t (&q8)[kHeadDim / 32][4], RowBound (&bound)[2]) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  std::uint32_t raw[kHeadDim / 16][4];
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
    load_matrices(
        strip_address + (k / 4) * (kScreenRows * 128) + swizzled_offset<128>(lane & 15, (k % 4) * 2 + (lane >> 4)),
        raw[k]);
  }
  float square[2] = {0.0f, 0.0f};
  std::uint32_t peaks[2] = {0, 0};
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const float2 x = unpack<Element>(raw[k][r]);
      square[r & 1] += x.x * x.x + x.y * x.y;
      peaks[r & 1] = larger_of_pairs<Element>(peaks[r & 1], raw[k][r] & 0x7fff7fffu);
    }
  }
  float c[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    square[h] = quad_sum(square[h]);
    const float2 pair = unpack<Element>(peaks[h]);
    const float peak = quad_max(fmaxf(pair.x, pair.y));
    c[h] = peak > 1e-30f && peak < 1e30f ? __fdividef(127.0f, peak) : 0.0f;
  }
  float error[2] = {0.0f, 0.0f};
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum[4];
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const float2 x = unpack<Element>(raw[k][h + 2 * u]);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float element = i == 0 ? x.x : x.y;
          sum[2 * u + i] = fmaf(element, c[h], kRounder);
          const float rounded = sum[2 * u + i] - kRounder;
          const float difference = fmaf(element, c[h], -rounded);
          error[h] = fmaf(difference, difference, error[h]);
        }
      }
      q8[k / 2][2 * (k & 1) + h] = pack_bytes(sum[0], sum[1], sum[2], sum[3]);
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float tau = h == 0 ? tau0 : tau1;
    const bool inside = h == 0 ? inside0 : inside1;
    const float norm = square[h] < 1e-24f ? 1e-12f : square[h] * rsqrtf(square[h]);
    const float rounding = 1.0001f * upper_root(quad_sum(error[h]));
    bound[h].base = c[h] * (a.normalize ? norm : 1.0f) * tau;
    bound[h].slope_error = -1.0001f * c[h] * norm - rounding;  // |q8| <= |A| + |A - q8|
    bound[h].slope_norm = -rounding - 1e-4f * c[h] * norm;
    // A zero row scores 0 everywhere; a row that is not finite must reach the exact kernel; rows behind the end never.
    if (c[h] == 0.0f) bound[h] = {tau > 0.0f && norm < 1.0f ? 1e30f : -1e30f, 0.0f, 0.0f};
    if (!(norm < 1e30f)) bound[h] = {-1e30f, 0.0f, 0.0f};
    if (!inside) bound[h] = {1e30f, 1e30f, 1e30f};  // an infinite error of a bad key does not reach it either
  }
}

// Integer threshold for a key tile (the four floats of KeyTile): scores above it are candidates. Not a number (a bad
// key) counts as "all". Scores stay below 2^21; one is taken off for the rounding.
__device__ __forceinline__ int integer_threshold(const RowBound& bound, const float4& key_tile) {
  const float value = key_tile.y * fmaf(bound.slope_error, key_tile.x, fmaf(bound.slope_norm, key_tile.z, bound.base));
  const float clamped = fminf(fmaxf(value, -4.0e6f), 4.0e6f);
  return __float_as_int(clamped + kRounder) - (kRounderBits + 1);
}

// One bit (the sign) per 64 keys of the tile: does a visible pair of this thread exceed its row's threshold?
// kDiagonal: keys behind `limit0` (row g) and `limit0 + 8` (row g + 8), counted from the tile's first key, are hidden.
template <bool kDiagonal>
__device__ __forceinline__ std::uint32_t reduce_block(std::int32_t (&scores)[64], int block, int threshold0,
                                                      int threshold1, int limit0) {
  constexpr int kHidden = -(1 << 30);
  const int column = block * 64 + static_cast<int>(threadIdx.x & 3) * 2;
  int maximum0 = kHidden;
  int maximum1 = kHidden;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const int i = block * 32 + 4 * n;
    if (kDiagonal) {
      const int key = column + 8 * n;
      if (key > limit0) scores[i] = kHidden;
      if (key + 1 > limit0) scores[i + 1] = kHidden;
      if (key > limit0 + 8) scores[i + 2] = kHidden;
      if (key + 1 > limit0 + 8) scores[i + 3] = kHidden;
    }
    maximum0 = __vimax3_s32(maximum0, scores[i], scores[i + 1]);
    maximum1 = __vimax3_s32(maximum1, scores[i + 2], scores[i + 3]);
  }
  return static_cast<std::uint32_t>(threshold0 - maximum0) | static_cast<std::uint32_t>(threshold1 - maximum1);
}

}  // namespace tda::cuda::sm90
