// Tiles of 16-bit elements in shared memory, for the tensor-core kernels: 64 rows of DIM elements, DIM a multiple
// of 64.
//
// The 16-byte chunk c of row r lies at chunk c ^ (r % 8), so that ldmatrix, which reads eight rows at one chunk, meets
// no bank twice. A block has 128 threads; each of its four warps owns 16 rows of a product.
#pragma once

#include "attention/cuda/common/warp_matrix.cuh"
#include "attention/cuda/portable/device_problem.cuh"

namespace tda::cuda::portable {

constexpr int kHalfThreads = 128;
constexpr int kHalfTile = 64;

template <int DIM>
__device__ __forceinline__ int half_slot(int row, int chunk) {
  return row * DIM + ((chunk ^ (row & 7)) * 8);
}

// Rows of one head of one sequence.
struct HalfRows {
  const void* data;
  std::int64_t start, row_stride;
  int rows, dim;
  bool vector;  // rows may be read 16 bytes at a time
};

// Begins to fill a tile: row r of the tile from row_of(r), zeros where that is negative or beyond the end. The caller
// commits and waits.
template <class T, int DIM, class RowOf>
__device__ __forceinline__ void load_half_tile(T* tile, const HalfRows& source, RowOf row_of) {
  constexpr int kChunks = DIM / 8;
  const T* const data = static_cast<const T*>(source.data) + source.start;
#pragma unroll
  for (int n = 0; n < kHalfTile * kChunks / kHalfThreads; ++n) {
    const int unit = static_cast<int>(threadIdx.x) + n * kHalfThreads;
    const int r = unit / kChunks, chunk = unit % kChunks;
    const int row = row_of(r);
    const bool exists = row >= 0 && row < source.rows && chunk * 8 < source.dim;
    T* const target = tile + half_slot<DIM>(r, chunk);
    const T* const from = data + (exists ? row * source.row_stride + chunk * 8 : 0);
    if (source.vector) {
      copy_async(target, from, exists);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) target[i] = exists && chunk * 8 + i < source.dim ? from[i] : T(0.f);
    }
  }
}

// The A fragment of rows first_row .. + 15 at depth 16 step.
template <class T, int DIM>
__device__ __forceinline__ void load_rows_fragment(std::uint32_t (&a)[4], const T* tile, int first_row, int step) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  load_matrices(a, tile + half_slot<DIM>(first_row + lane % 16, step * 2 + lane / 16));
}

// sums[n] += A rows times B rows^T over the whole depth: sums tile n covers rows 8 n .. of B starting at first_b.
template <class T, int DIM, int COUNT>
__device__ __forceinline__ void multiply_rows(float (&sums)[COUNT][4], const T* a_tile, int first_a, const T* b_tile,
                                              int first_b) {
  static_assert(COUNT % 2 == 0);
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int step = 0; step < DIM / 16; ++step) {
    std::uint32_t a[4];
    load_rows_fragment<T, DIM>(a, a_tile, first_a, step);
#pragma unroll
    for (int n = 0; n < COUNT; n += 2) {
      std::uint32_t b[4];
      // Matrices: (rows 0-7, depth 0-7), (rows 0-7, depth 8-15), (rows 8-15, depth 0-7), (rows 8-15, depth 8-15).
      load_matrices(b, b_tile + half_slot<DIM>(first_b + n * 8 + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
      multiply_add<T>(sums[n], a, b[0], b[1]);
      multiply_add<T>(sums[n + 1], a, b[2], b[3]);
    }
  }
}

// A pair of elements with those that are not finite replaced by 0.
template <class T>
__device__ inline std::uint32_t finite_pair(std::uint32_t pair) {
  constexpr std::uint32_t kExponent = std::is_same_v<T, __nv_bfloat16> ? 0x7f80u : 0x7c00u;
  const bool low_spoiled = (pair & kExponent) == kExponent, high_spoiled = (pair >> 16 & kExponent) == kExponent;
  return pair & ((low_spoiled ? 0u : 0xffffu) | (high_spoiled ? 0u : 0xffff0000u));
}

// sums[n] += A (16 x 16, the fragment) times rows first_row .. + 15 of B: sums tile n covers columns 8 n of B.
// `finite_only` takes elements of B that are not finite for 0.
template <class T, int DIM>
__device__ __forceinline__ void multiply_columns(float (&sums)[DIM / 8][4], const std::uint32_t (&a)[4],
                                                 const T* b_tile, int first_row, bool finite_only = false) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int n = 0; n < DIM / 8; n += 2) {
    std::uint32_t b[4];
    // Transposed on the way: (rows 0-7, columns 0-7), (rows 8-15, columns 0-7), then columns 8-15.
    load_matrices_transposed(b, b_tile + half_slot<DIM>(first_row + lane % 16, n + lane / 16));
    if (finite_only) {
#pragma unroll
      for (int m = 0; m < 4; ++m) b[m] = finite_pair<T>(b[m]);
    }
    multiply_add<T>(sums[n], a, b[0], b[1]);
    multiply_add<T>(sums[n + 1], a, b[2], b[3]);
  }
}

// The other half of multiply_columns with finite_only: adds the products of elements of B that are not finite with
// weights that are not 0, so that a NaN in B reaches only rows that use it, and the others come out the same to the
// bit. weights: two tiles of sums, columns 0-7 and 8-15. Slow, and rare.
template <class T, int DIM>
__device__ void add_spoiled_products(float (&sums)[DIM / 8][4], const float (&low)[4], const float (&high)[4],
                                     const T* b_tile, int first_row) {
  const int lane = static_cast<int>(threadIdx.x) % 32, t = lane % 4;
#pragma unroll 1
  for (int k = 0; k < 16; ++k) {
    const int owner = lane / 4 * 4 + k % 8 / 2;
    const bool odd = k % 2 != 0;
    const float low_upper = odd ? low[1] : low[0], low_lower = odd ? low[3] : low[2];
    const float high_upper = odd ? high[1] : high[0], high_lower = odd ? high[3] : high[2];
    const float upper = __shfl_sync(0xffffffffu, k < 8 ? low_upper : high_upper, owner);
    const float lower = __shfl_sync(0xffffffffu, k < 8 ? low_lower : high_lower, owner);
#pragma unroll
    for (int n = 0; n < DIM / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float b = static_cast<float>(b_tile[half_slot<DIM>(first_row + k, n) + 2 * t + e]);
        if (isfinite(b)) continue;
        if (upper != 0.f) sums[n][e] = fmaf(upper, b, sums[n][e]);
        if (lower != 0.f) sums[n][2 + e] = fmaf(lower, b, sums[n][2 + e]);
      }
    }
  }
}

// Zeros for the rows of a tile whose factor is NaN: the weights of their pairs carry the NaN, and times zero it stays
// in its own row of a product. All threads of the block take part.
template <class T, int DIM>
__device__ void drop_broken_rows(T* tile, const float* factors) {
  for (int i = static_cast<int>(threadIdx.x); i < kHalfTile * DIM; i += kHalfThreads) {
    const float factor = factors[i / DIM];
    if (factor != factor) tile[i] = T(0.f);
  }
}

// The sum over the four lanes that share a row of the sums.
__device__ inline float sum_over_quad(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

template <class T>
__device__ inline float2 load_pair(const T* pair) {
  return make_float2(static_cast<float>(pair[0]), static_cast<float>(pair[1]));
}

// Stores columns `column` and `column` + 1 of a row as far as they exist, at once where `pairs` says rows allow it.
template <class T>
__device__ __forceinline__ void store_pair(T* row, int column, int columns, bool pairs, float low, float high) {
  if (pairs && column + 1 < columns) {
    *reinterpret_cast<std::uint32_t*>(row + column) = rounded_pair<T>(low, high);
    return;
  }
  if (column < columns) row[column] = T(low);
  if (column + 1 < columns) row[column + 1] = T(high);
}

// Undoes the L2 norm of 16 rows whose gradients with respect to the unit vectors lie in `sums` (times `unscale`) and
// stores them. `tile` holds the raw rows, `factors` 1 / max(|x|, 1e-12) of row 0 of the tile.
template <class T, int DIM>
__device__ __forceinline__ void store_half_gradient(bool normalize, const T* tile, const float* factors,
                                                    const HalfRows& rows, int first_row, float unscale, Tensor target,
                                                    std::int64_t start, bool pairs, float (&sums)[DIM / 8][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = warp_row + g + 8 * half;
    const bool exists = first_row + r < rows.rows;
    const float factor = factors[r];
    float square = 0.f;
#pragma unroll
    for (int n = 0; n < DIM / 8; ++n) {
      const float2 x = load_pair(tile + half_slot<DIM>(r, n) + 2 * t);
      square = fmaf(x.x, x.x, fmaf(x.y, x.y, square));
    }
    const float norm = sqrtf(sum_over_quad(square));
    // dx = (du - u <u, du>) / |x|; a clamped norm leaves du / 1e-12.
    const bool project = normalize && factor < 1e12f && norm > 0.f;
    float projection = 0.f;
#pragma unroll
    for (int n = 0; n < DIM / 8; ++n) {
      const float2 x = load_pair(tile + half_slot<DIM>(r, n) + 2 * t);
      float(&du)[4] = sums[n];
      du[2 * half] *= unscale;
      du[2 * half + 1] *= unscale;
      if (project) projection += x.x / norm * du[2 * half] + x.y / norm * du[2 * half + 1];
    }
    projection = sum_over_quad(projection);
    if (!exists) continue;
    T* const row = static_cast<T*>(target.data) + start + (first_row + r) * target.row_stride;
#pragma unroll
    for (int n = 0; n < DIM / 8; ++n) {
      const float2 x = load_pair(tile + half_slot<DIM>(r, n) + 2 * t);
      const float2 u = project ? make_float2(x.x / norm, x.y / norm) : make_float2(0.f, 0.f);
      store_pair(row, 8 * n + 2 * t, rows.dim, pairs, (sums[n][2 * half] - projection * u.x) * factor,
                 (sums[n][2 * half + 1] - projection * u.y) * factor);
    }
  }
}

}  // namespace tda::cuda::portable
