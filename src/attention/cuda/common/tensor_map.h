// Tensor maps for the copy engine, made on the host through the driver's entry point (no link against libcuda).
#pragma once

#include <cuda.h>

#include <cstdint>

#include "tda/attention.h"

namespace tda::cuda {

// Four dimensions (elements of a row, rows, heads, batch); a tile of `box_elements` x `box_rows` arrives with rows of
// 128 or 64 bytes in the swizzle of that width; rows beyond the tensor arrive as zeros.
struct TileSource {
  const void* data = nullptr;
  int element_bytes = 2;  // 1 or 2
  std::int64_t elements = 0, rows = 0, heads = 0, batch = 0;
  std::int64_t row_stride = 0, head_stride = 0, batch_stride = 0;  // in elements
  int box_elements = 0, box_rows = 0;
};

// Tiles of 64 elements x 64 rows of q, k, v or what has their shape, of a 16-bit type.
TileSource tile_source(const ConstTensor& tensor, const AttentionShape& shape, std::int64_t length, std::int64_t heads);

// Whether the copy engine can read it: base and strides of dimensions longer than 1 are positive multiples of 16 bytes.
bool tile_source_is_aligned(const TileSource& source);

Status make_tensor_map(const TileSource& source, const char* argument, CUtensorMap& map);

}  // namespace tda::cuda
