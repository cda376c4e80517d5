// Tiles of 64 rows at the end of a packed document. Behind it are rows of the next document, which the copy engine
// would bring with the rest: a NaN there, times a weight of 0, would spoil what it must not touch. So a warp copies
// such a tile itself and leaves zeros where the engine leaves them behind a tensor's end.
#pragma once

#include "attention/cuda/common/copy_engine.cuh"
#include "attention/cuda/common/warp_matrix.cuh"

namespace tda::cuda::sm90 {

constexpr int kDocumentTileRows = 64;

// Begins to copy `rows` rows of kHeadDim 16-bit elements (none when less than 1) and zeros behind them, to a tile as
// the copy engine lays it out: 128-byte swizzle, blocks of 64 columns behind each other. `first` is row 0, aligned to
// 16 bytes like the stride. By a whole warp.
template <int kHeadDim>
__device__ __forceinline__ void copy_document_rows(std::uint32_t destination, const void* first,
                                                   std::int64_t row_stride, int rows) {
  constexpr int kChunks = kHeadDim / 8;  // of 16 bytes, a row
  const int lane = static_cast<int>(threadIdx.x & 31), chunk = lane % kChunks;
  const char* const column = static_cast<const char*>(first) + chunk * 16;
#pragma unroll 4
  for (int row = lane / kChunks; row < kDocumentTileRows; row += 32 / kChunks) {
    const bool exists = row < rows;
    copy_async(destination + chunk / 8 * (kDocumentTileRows * 128) + swizzled_offset<128>(row, chunk % 8),
               column + (exists ? row * row_stride * 2 : 0), exists);
  }
}

// Instead: zeros behind the first `rows` rows of a tile that the engine brought, by a whole warpgroup. Between this and
// products there must be a barrier.
template <int kHeadDim>
__device__ __forceinline__ void clear_last_rows(std::uint32_t tile, int rows) {
#pragma unroll
  for (int block = 0; block < kHeadDim / 64; ++block) {
#pragma unroll 1
    for (int byte = rows * 128 + static_cast<int>(threadIdx.x & 127) * 16; byte < kDocumentTileRows * 128;
         byte += 128 * 16) {
      asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(tile + block * kDocumentTileRows * 128 + byte),
                   "r"(0)
                   : "memory");
    }
  }
  fence_shared_for_copies();
}

// Waits for this warp's copies and orders them before products and later copies of the engine.
__device__ __forceinline__ void finish_document_rows() {
  commit_copies();
  wait_for_copies<0>();
  fence_shared_for_copies();
  __syncwarp();
}

}  // namespace tda::cuda::sm90
