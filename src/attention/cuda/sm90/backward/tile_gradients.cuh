// What the dense backward kernels compute with tiles: their products, the power of an excess and its derivative, and
// the gradients of 64 rows from their sums.
#pragma once

#include "attention/cuda/sm90/backward/stream.cuh"

namespace tda::cuda::sm90 {

// d = 64 resident rows times the 64 streamed rows, transposed. Both come from shared memory: fragments of the resident
// rows would fit into registers for D = 64, but ptxas 13.0 gives their registers to the weights.
template <typename Element, int kHeadDim>
__device__ __forceinline__ void multiply(float (&d)[32], std::uint32_t resident, std::uint32_t streamed) {
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
    const std::uint32_t offset = (k / 4) * kTileColumnBytes;
    const std::uint64_t a = k_major_descriptor<128>(resident + offset) + 2 * (k % 4);
    const std::uint64_t b = k_major_descriptor<128>(streamed + offset) + 2 * (k % 4);
    if (k == 0) {
      wgmma<Element, false>(d, a, b);
    } else {
      wgmma<Element, true>(d, a, b);
    }
  }
}

// sum += weights (64 x 64) times the 64 streamed rows.
template <typename Element, int kSize>
__device__ __forceinline__ void accumulate(float (&sum)[kSize], const std::uint32_t (&weights)[4][4],
                                           std::uint32_t streamed) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    wgmma<Element, true, true>(sum, weights[k], mn_major_descriptor(streamed, kTileColumnBytes) + 128 * k);
  }
}

// p u^(p-1) of a rectified excess u, without the factor 2 where p = 2; 0 for u = 0.
template <bool kSquare>
__device__ __forceinline__ float derivative(float u, float power) {
  if constexpr (kSquare) {
    return u;
  } else {
    return portable::survives(u) ? portable::weight_derivative(u, power) : 0.0f;
  }
}
template <bool kSquare>
constexpr float kDerivativeFactor = kSquare ? 2.0f : 1.0f;

// u^p of a rectified excess.
template <bool kSquare>
__device__ __forceinline__ float rectified_weight(float u, float power) {
  if constexpr (kSquare) {
    return u * u;
  } else {
    return portable::survives(u) ? portable::weight(u, power) : 0.0f;
  }
}

// Whether one of the sums is not finite.
template <int kSize>
__device__ __forceinline__ bool any_spoiled(const float (&sums)[kSize]) {
  float check = 0.0f;  // 0 x = 0 exactly when x is finite
#pragma unroll
  for (int i = 0; i < kSize; ++i) check = fmaf(0.0f, sums[i], check);
  return !(check == 0.0f);
}

// Undoes the L2 norm of a warpgroup's 64 rows, whose gradients with respect to the unit vectors lie in `sums`, and
// stores them times scale_of(f). dx = (du - u <u, du>) / |x| with u = x f: the part along x is x f^2 <x, du>.
// load(k, x): fragments of the raw rows at depth 16 k; factor_of(row): f.
template <typename Element, int kHeadDim, class Load, class FactorOf, class ScaleOf>
__device__ __forceinline__ void store_scaled_gradient(bool normalize, Load load, FactorOf factor_of, ScaleOf scale_of,
                                                      int rows, Element* target, std::int64_t row_stride,
                                                      float (&sums)[kHeadDim / 2]) {
  const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x >> 5) & 3;
  const int row = warp * 16 + (lane >> 2);
  float along[2] = {0.0f, 0.0f}, factor[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) factor[h] = factor_of(row + 8 * h);
  if (normalize) {
#pragma unroll
    for (int pass = 0; pass < 2; ++pass) {
#pragma unroll
      for (int k = 0; k < kHeadDim / 16; ++k) {
        std::uint32_t x[4];
        load(k, x);
#pragma unroll
        for (int r = 0; r < 4; ++r) {  // row g + 8 (r % 2), columns 16 k + 8 (r / 2) + 2 c, + 1
          const float2 pair = unpack<Element>(x[r]);
          float& low = sums[8 * k + 4 * (r / 2) + 2 * (r % 2)];
          float& high = sums[8 * k + 4 * (r / 2) + 2 * (r % 2) + 1];
          if (pass == 0) {
            along[r % 2] = fmaf(pair.x, low, fmaf(pair.y, high, along[r % 2]));
          } else {
            low = fmaf(-along[r % 2], pair.x, low);
            high = fmaf(-along[r % 2], pair.y, high);
          }
        }
      }
      if (pass == 0) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float unit = portable::product_factor(factor[h]);
          along[h] = quad_sum(along[h]) * unit * unit;
        }
      }
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    store_row<Element>(target + (row + 8 * h) * row_stride, sums, h, scale_of(factor[h]), lane & 3, row + 8 * h < rows);
  }
}

// Raw rows of a warpgroup in shared memory, for store_scaled_gradient.
struct SharedRows {
  std::uint32_t tile;
  __device__ __forceinline__ void operator()(int k, std::uint32_t (&x)[4]) const {
    const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x >> 5) & 3;
    load_matrices(
        tile + (k / 4) * kTileColumnBytes + swizzled_offset<128>(warp * 16 + (lane & 15), (k % 4) * 2 + (lane >> 4)),
        x);
  }
};

// The same of sums that are times kWeightScale.
template <typename Element, int kHeadDim>
__device__ __forceinline__ void store_gradient(bool normalize, std::uint32_t tile, const ResidentRow* residents,
                                               int rows, Element* target, std::int64_t row_stride,
                                               float (&sums)[kHeadDim / 2]) {
  store_scaled_gradient<Element, kHeadDim>(
      normalize, SharedRows{tile}, [&](int row) { return residents[row].factor; },
      [](float factor) { return factor * (1.0f / portable::kWeightScale<kHeadDim>); }, rows, target, row_stride, sums);
}

}  // namespace tda::cuda::sm90
