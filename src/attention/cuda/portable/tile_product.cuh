// The two matrix products of the fp32 kernels, for a block of 256 threads seen as 16 x 16 (ty, tx).
//
// A thread owns the rows 64 h + 4 ty + i and the columns 64 h + 4 tx + j of a tile: two 16-byte shared-memory reads
// feed 16 multiply-adds. Tiles are fed by callables, so that rows may be gathered, scaled and converted on the way.
#pragma once

#include <cuda_runtime.h>

namespace tda::cuda::portable {

constexpr int kBlockThreads = 256;
constexpr int kDepthChunk = 32;

__device__ inline int thread_row() { return static_cast<int>(threadIdx.x) / 16; }
__device__ inline int thread_column() { return static_cast<int>(threadIdx.x) % 16; }

// The row or column of a tile that belongs to a thread's element e = 4 h + i.
__device__ inline int owned_index(int thread, int e) { return (e / 4) * 64 + thread * 4 + e % 4; }

// Shared memory of score_tile, in floats.
template <int ROWS, int COLUMNS>
constexpr int kScoreTileFloats = kDepthChunk*(ROWS + COLUMNS);

// Stores four consecutive depths d4 * 4 .. + 3 of one row into a depth-major chunk. The exclusive or spreads the eight
// groups of depths, which one warp writes together, over all banks and keeps groups of four rows together for reading.
template <int ROWS>
__device__ void store_transposed(float* chunk, int row, int d4, float4 value) {
  float* target = chunk + d4 * 4 * ROWS + (row ^ (d4 * 4));
  target[0] = value.x;
  target[ROWS] = value.y;
  target[2 * ROWS] = value.z;
  target[3 * ROWS] = value.w;
}

// Products are added in chains of this many before they join the sum: one long chain would lose digits, and a sum in
// fp32 is compared with fp32 sums of other shapes (docs/experiments/2026-11-22-portable-cuda-kernels.md).
constexpr int kChain = 8;

// sums[i][j] += sum_d A[row i][d] B[column j][d] for d < depth. load_a(row, d) and load_b(column, d) return the
// elements d .. d + 3 as float4, zero where there is none. All threads of the block call it; it ends with a barrier.
template <int ROWS, int COLUMNS, class LoadA, class LoadB>
__device__ __forceinline__ void score_tile(float (&sums)[ROWS / 16][COLUMNS / 16], int depth, float* shared,
                                           LoadA load_a, LoadB load_b) {
  constexpr int kLoadsA = ROWS / 32, kLoadsB = COLUMNS / 32;
  float* const chunk_a = shared;
  float* const chunk_b = shared + kDepthChunk * ROWS;
  const int load_row = static_cast<int>(threadIdx.x) / 8, d4 = static_cast<int>(threadIdx.x) % 8;
  const int row = thread_row() * 4, column = thread_column() * 4;
  float4 a_next[kLoadsA], b_next[kLoadsB];
  const auto fetch = [&](int d0) {
#pragma unroll
    for (int n = 0; n < kLoadsA; ++n) a_next[n] = load_a(load_row + 32 * n, d0 + d4 * 4);
#pragma unroll
    for (int n = 0; n < kLoadsB; ++n) b_next[n] = load_b(load_row + 32 * n, d0 + d4 * 4);
  };
  fetch(0);
  for (int d0 = 0; d0 < depth; d0 += kDepthChunk) {
#pragma unroll
    for (int n = 0; n < kLoadsA; ++n) store_transposed<ROWS>(chunk_a, load_row + 32 * n, d4, a_next[n]);
#pragma unroll
    for (int n = 0; n < kLoadsB; ++n) store_transposed<COLUMNS>(chunk_b, load_row + 32 * n, d4, b_next[n]);
    __syncthreads();
    if (d0 + kDepthChunk < depth) fetch(d0 + kDepthChunk);
#pragma unroll 1
    for (int first = 0; first < kDepthChunk; first += kChain) {
      float partial[ROWS / 16][COLUMNS / 16] = {};
#pragma unroll 2
      for (int n = 0; n < kChain; ++n) {
        const int d = first + n, swizzle = (d / 4) * 4;
        float a[ROWS / 16], b[COLUMNS / 16];
#pragma unroll
        for (int h = 0; h < ROWS / 64; ++h) {
          *reinterpret_cast<float4*>(a + 4 * h) =
              *reinterpret_cast<const float4*>(chunk_a + d * ROWS + ((64 * h + row) ^ swizzle));
        }
#pragma unroll
        for (int h = 0; h < COLUMNS / 64; ++h) {
          *reinterpret_cast<float4*>(b + 4 * h) =
              *reinterpret_cast<const float4*>(chunk_b + d * COLUMNS + ((64 * h + column) ^ swizzle));
        }
#pragma unroll
        for (int i = 0; i < ROWS / 16; ++i) {
#pragma unroll
          for (int j = 0; j < COLUMNS / 16; ++j) {
            partial[i][j] = fmaf(a[i], b[j], partial[i][j]);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < ROWS / 16; ++i) {
#pragma unroll
        for (int j = 0; j < COLUMNS / 16; ++j) sums[i][j] += partial[i][j];
      }
    }
    __syncthreads();
  }
}

// Where the weight of (inner k, row) lies in a tile of ROWS rows; `row` is a multiple of 4. Threads of neighbouring
// columns write neighbouring groups of k at once, which the exclusive or spreads over the banks.
template <int ROWS>
__device__ __forceinline__ int weight_slot(int k, int row) {
  return k * ROWS + (row ^ (k / 4 % 8 * 4));
}

// sums[i][j] += sum_k W[k][row i] Z[k][column j] for first_k <= k < first_k + 16. W holds all k (weight_slot), Z the 16
// rows of COLUMNS floats. `guarded` skips zero weights, so that a NaN in Z reaches only the rows that use it.
template <int ROWS, int COLUMNS>
__device__ __forceinline__ void accumulate_tile(float (&sums)[ROWS / 16][COLUMNS / 16], const float* weights,
                                                int first_k, const float* values, bool guarded) {
  const int row = thread_row() * 4, column = thread_column() * 4;
#pragma unroll 1
  for (int first = 0; first < 16; first += kChain) {
    float partial[ROWS / 16][COLUMNS / 16] = {};
#pragma unroll 2
    for (int n = 0; n < kChain; ++n) {
      const int k = first + n;
      float w[ROWS / 16], z[COLUMNS / 16];
#pragma unroll
      for (int h = 0; h < ROWS / 64; ++h) {
        *reinterpret_cast<float4*>(w + 4 * h) =
            *reinterpret_cast<const float4*>(weights + weight_slot<ROWS>(first_k + k, 64 * h + row));
      }
#pragma unroll
      for (int h = 0; h < COLUMNS / 64; ++h) {
        *reinterpret_cast<float4*>(z + 4 * h) =
            *reinterpret_cast<const float4*>(values + k * COLUMNS + 64 * h + column);
      }
#pragma unroll
      for (int i = 0; i < ROWS / 16; ++i) {
        if (guarded && w[i] == 0.f) continue;
#pragma unroll
        for (int j = 0; j < COLUMNS / 16; ++j) partial[i][j] = fmaf(w[i], z[j], partial[i][j]);
      }
    }
#pragma unroll
    for (int i = 0; i < ROWS / 16; ++i) {
#pragma unroll
      for (int j = 0; j < COLUMNS / 16; ++j) sums[i][j] += partial[i][j];
    }
  }
}

// Fills `rows` x COLUMNS floats of shared memory from load(row, column) -> float4.
template <int COLUMNS, class Load>
__device__ __forceinline__ void load_tile(float* shared, int rows, Load load) {
  for (int unit = static_cast<int>(threadIdx.x); unit < rows * (COLUMNS / 4); unit += kBlockThreads) {
    const int row = unit / (COLUMNS / 4), column = unit % (COLUMNS / 4) * 4;
    *reinterpret_cast<float4*>(shared + row * COLUMNS + column) = load(row, column);
  }
}

}  // namespace tda::cuda::portable
