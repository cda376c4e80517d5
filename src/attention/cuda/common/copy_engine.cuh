// The bulk copy engine (TMA): tensor tiles and plain runs of bytes from global to shared memory, and the layout in
// which 128-byte and 64-byte swizzled tiles arrive.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace tda::cuda {

// Tile at coordinates (element, row, head, batch) of a tensor map with four dimensions.
__device__ __forceinline__ void copy_tile(std::uint32_t destination, const CUtensorMap& map, std::uint32_t barrier,
                                          int element, int row, int head, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
      "[%2];" ::"r"(destination),
      "l"(&map), "r"(barrier), "r"(element), "r"(row), "r"(head), "r"(batch)
      : "memory");
}

// The way back: a tile from shared memory to global memory. Parts beyond the tensor are left out. The thread waits with
// wait_for_stores() before it ends, and before the shared memory changes.
__device__ __forceinline__ void store_tile(std::uint32_t source, const CUtensorMap& map, int element, int row, int head,
                                           int batch) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map),
               "r"(source), "r"(element), "r"(row), "r"(head), "r"(batch)
               : "memory");
}

// `bytes` (a multiple of 16) consecutive bytes from shared to global memory, both aligned to 16; waited for likewise.
__device__ __forceinline__ void store_bytes(void* destination, std::uint32_t source, std::uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(destination), "r"(source), "r"(bytes)
               : "memory");
}

// Waits for all stores that this thread has begun.
__device__ __forceinline__ void wait_for_stores() {
  asm volatile("cp.async.bulk.commit_group;\ncp.async.bulk.wait_group 0;" ::: "memory");
}

// `bytes` (a multiple of 16) consecutive bytes; both addresses aligned to 16.
__device__ __forceinline__ void copy_bytes(std::uint32_t destination, const void* source, std::uint32_t bytes,
                                           std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(destination),
      "l"(source), "r"(bytes), "r"(barrier)
      : "memory");
}

// Orders this thread's accesses to shared memory before later ones of the copy engine (after a barrier between them).
__device__ __forceinline__ void fence_shared_for_copies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Byte offset of 16-byte chunk `chunk` of row `row` in a swizzled tile whose rows hold kRowBytes (64 or 128) bytes.
template <int kRowBytes>
__device__ __forceinline__ std::uint32_t swizzled_offset(std::uint32_t row, std::uint32_t chunk) {
  static_assert(kRowBytes == 64 || kRowBytes == 128);
  const std::uint32_t offset = row * kRowBytes + chunk * 16;
  return offset ^ ((offset >> 3) & (kRowBytes == 128 ? 0x70u : 0x30u));
}

}  // namespace tda::cuda
