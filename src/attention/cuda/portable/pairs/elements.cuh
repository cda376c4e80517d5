// The backward of listed heads, pair by pair (PairPlan): where a row has a handful of survivors, all that tiles share
// is waste. Three kernels, one after the other:
//
//   rows.cu      dq, shares of dbeta and dlambda; counts the pairs of each key
//   entries.cu   turns the lists: every pair into the run of its key
//   keys.cu      dk of all views and dv
//
// Here is what rows and keys share. A warp works on four pairs at once, eight lanes each; a lane holds 8 (D = 64) or 16
// (D = 128) elements of a row. Scores, dP and sums are fp32 over unit rows in fp32. Cost of a pair in each of the two
// directions: two rows read from the L2 cache and about 25 instructions of a warp.
#pragma once

#include "attention/cuda/portable/half_operands.cuh"

namespace tda::cuda::portable {

constexpr int kPairWarps = 2;  // few, so that a block does not wait for a warp with more pairs
constexpr int kPairThreads = kPairWarps * 32;
constexpr int kRowsPerWarp = kSliceRows / kPairWarps;
constexpr int kRowsAtOnce = 8;  // of which a warp asks whether any has pairs
constexpr int kLanesPerPair = 8;
constexpr int kPairsAtOnce = 32 / kLanesPerPair;

__device__ __forceinline__ int lane_of_pair() { return own_lane() % kLanesPerPair; }
__device__ __forceinline__ int pair_of_lane() { return own_lane() / kLanesPerPair; }

__device__ __forceinline__ float sum_over_pair(float x) {
#pragma unroll
  for (int step = 1; step < kLanesPerPair; step *= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// A lane's elements of a row.
template <int DIM>
struct Elements {
  static constexpr int kCount = DIM / kLanesPerPair;
  float x[kCount];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = 0.f;
  }
  template <class T>
  __device__ __forceinline__ void load(const HalfRows& rows, int row) {
    const T* const data = static_cast<const T*>(rows.data) + rows.start + row * rows.row_stride;
#pragma unroll
    for (int part = 0; part < kCount / 8; ++part) {
      const uint4 raw = *reinterpret_cast<const uint4*>(data + part * 64 + lane_of_pair() * 8);
      const std::uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = load_pair(reinterpret_cast<const T*>(&words[i]));
        x[8 * part + 2 * i] = pair.x;
        x[8 * part + 2 * i + 1] = pair.y;
      }
    }
  }
  template <class T>
  __device__ __forceinline__ void store(T* row) const {
#pragma unroll
    for (int part = 0; part < kCount / 8; ++part) {
      std::uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i] = rounded_pair<T>(x[8 * part + 2 * i], x[8 * part + 2 * i + 1]);
      *reinterpret_cast<uint4*>(row + part * 64 + lane_of_pair() * 8) =
          make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
  __device__ __forceinline__ void add_scaled(float factor, const Elements& other) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = fmaf(factor, other.x[i], x[i]);
  }
  __device__ __forceinline__ void scale(float factor) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] *= factor;
  }
  // Over the pairs that the warp works on at once, in a fixed order.
  __device__ __forceinline__ void sum_over_pairs() {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      x[i] += __shfl_xor_sync(0xffffffffu, x[i], kLanesPerPair);
      x[i] += __shfl_xor_sync(0xffffffffu, x[i], 2 * kLanesPerPair);
    }
  }
};

template <int DIM>
__device__ __forceinline__ float dot(const Elements<DIM>& a, const Elements<DIM>& b) {
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < Elements<DIM>::kCount; ++i) sum = fmaf(a.x[i], b.x[i], sum);
  return sum_over_pair(sum);
}

// 1 / max(|x|, 1e-12) of the row that the lanes of a pair hold, 1 without normalization, NaN for a row that is not
// finite. In double where the square leaves fp32's comfort.
template <int DIM>
__device__ __forceinline__ float row_factor(const Elements<DIM>& row, bool normalize) {
  const float square = dot(row, row);
  if (__any_sync(0xffffffffu, !(square > 1e-30f && square < 1e30f))) {
    double exact = 0.0;
#pragma unroll
    for (int i = 0; i < Elements<DIM>::kCount; ++i) {
      const auto x = static_cast<double>(row.x[i]);
      exact = fma(x, x, exact);
    }
#pragma unroll
    for (int step = 1; step < kLanesPerPair; step *= 2) exact += __shfl_xor_sync(0xffffffffu, exact, step);
    if (!isfinite(exact)) return CUDART_NAN_F;
    return normalize ? static_cast<float>(1.0 / fmax(sqrt(exact), 1e-12)) : 1.f;
  }
  return normalize ? 1.f / sqrtf(square) : 1.f;
}

// Stores the gradient of a row from that of its unit vector: dx = (du - u <u, du>) f.
template <class T, int DIM>
__device__ __forceinline__ void store_row_gradient(bool normalize, const Elements<DIM>& unit, float factor,
                                                   Elements<DIM>& gradient, T* target) {
  if (normalize) gradient.add_scaled(-dot(unit, gradient), unit);
  gradient.scale(factor);
  if (pair_of_lane() == 0) gradient.store(target);
}

}  // namespace tda::cuda::portable
