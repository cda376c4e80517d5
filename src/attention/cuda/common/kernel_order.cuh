// Kernels of one call that follow each other on a stream and overlap where they may (programmatic dependent launch).
//
// A kernel launched with Launch::overlaps starts as soon as every block of the kernel before it has ended or passed
// begin_kernel(), and there is room. Two kinds:
//   after the previous   begin_kernel() waits until all kernels before it are complete and their results visible
//   beside the previous  it needs nothing of the kernel before, only what that one itself waited for, and so begins at
//                        once: its blocks fill the multiprocessors that the other's longest tasks leave idle
// Every kernel of such a chain calls begin_kernel() first and end_kernel() last. end_kernel() makes a kernel that
// began beside the previous end after it; so "the previous is complete" always means "all before are". Counters that a
// kernel of the chain changes must be read past the L1 cache, which is not cleared between kernels that overlap.
//
// Below compute capability 9.0, and in PTX for less, there is no overlap: kernels follow each other as usual.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <map>
#include <utility>

namespace tda::cuda {

__device__ __forceinline__ void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void allow_next_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

enum class KernelOrder { kAfterPrevious, kBesidePrevious };

__device__ __forceinline__ void begin_kernel(KernelOrder order) {
  if (order == KernelOrder::kAfterPrevious) {
    wait_for_previous_kernel();
  } else {
    __threadfence();  // what the previous kernel waited for, not an older copy in the L1 cache
  }
  allow_next_kernel();
}

__device__ __forceinline__ void end_kernel(KernelOrder order) {
  if (order == KernelOrder::kBesidePrevious && blockIdx.x == 0 && threadIdx.x == 0) wait_for_previous_kernel();
}

struct Launch {
  unsigned blocks;
  int threads;
  int shared_bytes = 0;
  bool overlaps = false;  // the kernel calls begin_kernel() and end_kernel()
};

// What is asked of the driver about a kernel once a thread and device, because it costs more than a launch.
struct PreparedKernel {
  cudaError_t error;
  bool overlaps;
};

// Allows `kernel` its shared memory, the same in each call.
inline PreparedKernel prepare_kernel(const void* kernel, int shared_bytes) {
  thread_local std::map<std::pair<int, const void*>, PreparedKernel> known;
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return {error, false};
  const std::pair key(device, kernel);
  if (const auto found = known.find(key); found != known.end()) return found->second;
  cudaFuncAttributes compiled{};
  cudaError_t error = cudaFuncGetAttributes(&compiled, kernel);
  if (error == cudaSuccess && shared_bytes > 48 * 1024) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  }
  // PTX for less than 9.0 knows no wait, whatever device it runs on.
  const PreparedKernel prepared{error, compiled.ptxVersion >= 90};
  if (error == cudaSuccess) known.emplace(key, prepared);
  return prepared;
}

template <class... Parameters>
cudaError_t launch_kernel(void (*kernel)(Parameters...), const Launch& launch, cudaStream_t stream,
                          const Parameters&... arguments) {
  const PreparedKernel prepared = prepare_kernel(reinterpret_cast<const void*>(kernel), launch.shared_bytes);
  if (prepared.error != cudaSuccess) return prepared.error;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(launch.blocks);
  config.blockDim = dim3(static_cast<unsigned>(launch.threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(launch.shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = launch.overlaps && prepared.overlaps ? 1 : 0;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, arguments...);
  return error != cudaSuccess ? error : cudaGetLastError();
}

}  // namespace tda::cuda
