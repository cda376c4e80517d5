// Up to 16 keys of a strip's list at a time, for one warp: gathered rows as fragments of mma.m16n8k16
// (common/warp_matrix.cuh), scores of the strip's 16 query rows, and which of them survive.
//
// Column x of a chunk is its x-th key. Lane = 4 g + c holds, of scores t[4 tile + 2 h + e], row g + 8 h and column
// 8 tile + 2 c + e.
#pragma once

#include "attention/cuda/common/warp_matrix.cuh"
#include "attention/cuda/sm90/forward/exact/exact_scores.cuh"

namespace tda::cuda::sm90 {

constexpr unsigned kAllLanes = 0xffffffffu;

// Keys that do not cut a slice of 16 aligned keys. Lane x holds that of column x; columns behind the end repeat the
// first.
struct KeyChunk {
  int key;
  int column_key[4];  // of this lane's columns 2 c, 2 c + 1, 2 c + 8, 2 c + 9
  int size;
  std::uint32_t heads;  // bit x: column x begins a slice
};

__device__ __forceinline__ int own_column(int j) {
  return 8 * (j >> 1) + 2 * static_cast<int>(threadIdx.x & 3) + (j & 1);
}

template <typename Keys>
__device__ __forceinline__ KeyChunk take_chunk(const Keys& keys, int done, int left) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  const int last = min(left, 17) - 1;
  int key = keys[done + min(lane, last)];
  const int before = __shfl_up_sync(kAllLanes, key, 1);
  const std::uint32_t heads =
      __ballot_sync(kAllLanes, lane <= last && (lane == 0 || key / kSliceKeys != before / kSliceKeys));
  const bool whole = left <= 16 || (heads >> 16 & 1u) != 0;
  const int size = whole ? min(left, 16) : 31 - __clz(static_cast<int>(heads & 0xffffu));
  const int first = __shfl_sync(kAllLanes, key, 0);
  if (lane >= size) key = first;
  KeyChunk chunk{key, {}, size, heads & ((1u << size) - 1)};
#pragma unroll
  for (int j = 0; j < 4; ++j) chunk.column_key[j] = __shfl_sync(kAllLanes, key, own_column(j));
  return chunk;
}

// The key rows of a chunk as B fragments, tile 1 being columns 8 to 15, and 1/|k| of column `lane`; dims are permuted
// as prepare_strip does.
template <int kHeadDim>
struct ChunkKeys {
  uint2 b[2][kHeadDim / 16];
  float scale;

  // `stride`: bytes from key to key.
  __device__ __forceinline__ void load(const char* keys, int stride, const float* scales, const KeyChunk& chunk) {
    const int g = static_cast<int>(threadIdx.x & 31) >> 2;
    const int c = static_cast<int>(threadIdx.x & 3);
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const char* row = keys + static_cast<std::int64_t>(__shfl_sync(kAllLanes, chunk.key, 8 * tile + g)) * stride;
#pragma unroll
      for (int k = 0; k < kHeadDim / 16; ++k) b[tile][k] = *reinterpret_cast<const uint2*>(row + 32 * k + 8 * c);
    }
    scale = scales[chunk.key];
  }
};

// Scores of the strip's rows and a chunk's keys, minus thresholds; hidden pairs and columns behind the end are
// negative. t[4 tile + i] is element i of the accumulator over columns 8 tile .. 8 tile + 7.
template <typename Element, int kHeadDim>
__device__ __forceinline__ void score_chunk(const ChunkKeys<kHeadDim>& keys, const char* strip, const QueryRows& rows,
                                            const KeyChunk& chunk, int position, float (&t)[8]) {
  float sums[2][4] = {};
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
    const uint4 four = reinterpret_cast<const uint4*>(strip)[32 * k + (threadIdx.x & 31)];
    const std::uint32_t q[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) multiply_add<Element>(sums[tile], q, keys.b[tile][k].x, keys.b[tile][k].y);
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) {  // this lane's columns
    const int column = own_column(j);
    const float scale = __shfl_sync(kAllLanes, keys.scale, column);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float excess = fmaf(sums[j >> 1][2 * h + (j & 1)], scale, -rows.threshold[h]);
      t[4 * (j >> 1) + 2 * h + (j & 1)] =
          column < chunk.size && chunk.column_key[j] <= position + 8 * h ? excess : -1.0f;
    }
  }
}

// Bit i: t[i] survives.
template <int kSize>
__device__ __forceinline__ std::uint32_t survivors_of(const float (&t)[kSize]) {
  std::uint32_t bits = 0;
#pragma unroll
  for (int i = 0; i < kSize; ++i) bits |= !(t[i] <= 0.0f) ? 1u << i : 0u;
  return bits;
}

// Columns of the chunk in which a row of the warp survives, from the bits of survivors_of.
__device__ __forceinline__ std::uint32_t live_columns(std::uint32_t survivors) {
  const int c = static_cast<int>(threadIdx.x & 3);
  const std::uint32_t rows = survivors | survivors >> 2;  // bits 0, 1, 4, 5: this lane's columns
  return __reduce_or_sync(kAllLanes, ((rows & 3u) | (rows >> 4 & 3u) << 8) << (2 * c));
}

// Pairs of the elements of two value rows at the same of eight dims.
__device__ __forceinline__ void interleave(const uint4& even, const uint4& odd, std::uint32_t* pairs) {
  const std::uint32_t x[4] = {even.x, even.y, even.z, even.w};
  const std::uint32_t y[4] = {odd.x, odd.y, odd.z, odd.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pairs[2 * i] = __byte_perm(x[i], y[i], 0x5410);
    pairs[2 * i + 1] = __byte_perm(x[i], y[i], 0x7632);
  }
}

// The value rows of a chunk's keys.
template <int kHeadDim>
struct ChunkValues {
  uint4 rows[4][kHeadDim / 64];  // of columns 2 c, 2 c + 1, 2 c + 8, 2 c + 9: dims 8 g .. 8 g + 7, and 64 further

  // `stride`: bytes from key to key.
  __device__ __forceinline__ void load(const char* values, int stride, const KeyChunk& chunk) {
    const int g = static_cast<int>(threadIdx.x & 31) >> 2;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const char* row = values + static_cast<std::int64_t>(chunk.column_key[j]) * stride + 16 * g;
#pragma unroll
      for (int part = 0; part < kHeadDim / 64; ++part) {
        rows[j][part] = *reinterpret_cast<const uint4*>(row + 128 * part);
      }
    }
  }

  // As B fragments: b[half] of output tile n, whose column g is dim 64 (n / 8) + 8 g + n % 8.
  __device__ __forceinline__ void fragments(std::uint32_t (&b)[2][kHeadDim / 8]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int part = 0; part < kHeadDim / 64; ++part) {
        interleave(rows[2 * half][part], rows[2 * half + 1][part], b[half] + 8 * part);
      }
    }
  }
};

// Both 16-bit halves of a word, each all ones where its bit (0 or 1) of `pair` is set.
__device__ __forceinline__ std::uint32_t half_masks(std::uint32_t pair) {
  return ((pair & 1u) | (pair & 2u) << 15) * 0xffffu;
}

}  // namespace tda::cuda::sm90
