#include "attention/cuda/common/tensor_map.h"

#include <cuda_runtime_api.h>

#include <string>

namespace tda::cuda {

namespace {

constexpr std::int64_t kAlignment = 16;
constexpr std::int64_t kLargestStride = std::int64_t{1} << 40;

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                 const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                                 CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

EncodeTiled encode_tiled() {
  static const EncodeTiled function = [] {
    void* address = nullptr;
    cudaDriverEntryPointQueryResult found{};
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &address, 12000, cudaEnableDefault, &found) !=
            cudaSuccess ||
        found != cudaDriverEntryPointSuccess) {
      address = nullptr;
    }
    return reinterpret_cast<EncodeTiled>(address);
  }();
  return function;
}

bool stride_is_usable(std::int64_t extent, std::int64_t stride, int element_bytes) {
  if (extent <= 1) return true;
  const std::int64_t bytes = stride * element_bytes;
  return bytes > 0 && bytes % kAlignment == 0 && bytes < kLargestStride;
}

}  // namespace

TileSource tile_source(const ConstTensor& tensor, const AttentionShape& shape, std::int64_t length,
                       std::int64_t heads) {
  return {.data = tensor.data,
          .element_bytes = 2,
          .elements = shape.head_dim,
          .rows = length,
          .heads = heads,
          .batch = shape.batch,
          .row_stride = tensor.row_stride,
          .head_stride = tensor.head_stride,
          .batch_stride = tensor.batch_stride,
          .box_elements = 64,
          .box_rows = 64};
}

bool tile_source_is_aligned(const TileSource& source) {
  return reinterpret_cast<std::uintptr_t>(source.data) % kAlignment == 0 &&
         stride_is_usable(source.rows, source.row_stride, source.element_bytes) &&
         stride_is_usable(source.heads, source.head_stride, source.element_bytes) &&
         stride_is_usable(source.batch, source.batch_stride, source.element_bytes);
}

Status make_tensor_map(const TileSource& source, const char* argument, CUtensorMap& map) {
  const EncodeTiled encode = encode_tiled();
  if (encode == nullptr) return {"cuTensorMapEncodeTiled is missing from the CUDA driver; expected CUDA 12.0 or newer"};
  const auto bytes = static_cast<cuuint64_t>(source.element_bytes);
  const auto stride = [&](std::int64_t extent, std::int64_t elements) {
    return extent > 1 ? static_cast<cuuint64_t>(elements) * bytes : cuuint64_t{kAlignment};  // unused when extent is 1
  };
  const cuuint64_t extents[4] = {static_cast<cuuint64_t>(source.elements), static_cast<cuuint64_t>(source.rows),
                                 static_cast<cuuint64_t>(source.heads), static_cast<cuuint64_t>(source.batch)};
  const cuuint64_t strides[3] = {stride(source.rows, source.row_stride), stride(source.heads, source.head_stride),
                                 stride(source.batch, source.batch_stride)};
  const cuuint32_t box[4] = {static_cast<cuuint32_t>(source.box_elements), static_cast<cuuint32_t>(source.box_rows), 1,
                             1};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  const bool wide = source.box_elements * source.element_bytes == 128;
  const CUresult result =
      encode(&map, source.element_bytes == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_UINT16, 4,
             const_cast<void*>(source.data), extents, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             wide ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    return {std::string(argument) + ": the driver refused a tensor map over it (error " + std::to_string(result) +
            "); expected a base and strides that are multiples of 16 bytes"};
  }
  return {};
}

}  // namespace tda::cuda
