// The address of shared memory as instructions want it.
#pragma once

#include <cstdint>

namespace tda::cuda {

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

}  // namespace tda::cuda
