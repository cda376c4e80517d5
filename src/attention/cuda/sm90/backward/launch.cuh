// Definition of launch_backward, included by the files that instantiate it.
#pragma once

#include <string>

#include "attention/cuda/sm90/backward/key_value.cuh"
#include "attention/cuda/sm90/backward/query.cuh"

namespace tda::cuda::sm90 {

inline Status launch_stream_kernel(void (*kernel)(BackwardArguments), const char* name, std::int64_t tasks,
                                   int processors, int shared_bytes, const BackwardArguments& arguments,
                                   cudaStream_t stream) {
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error == cudaSuccess) {
    const auto blocks = static_cast<unsigned>(tasks < processors ? tasks : processors);
    kernel<<<blocks, kStreamThreads, static_cast<std::size_t>(shared_bytes), stream>>>(arguments);
    error = cudaGetLastError();
  }
  if (error == cudaSuccess) return {};
  return {std::string("CUDA kernel ") + name + ": " + cudaGetErrorString(error)};
}

template <typename Element, int kHeadDim>
Status launch_backward(const BackwardArguments& a, int processors, CudaStream stream) {
  const bool square = a.problem.power == 2.0f;
  const auto launch = [&](void (*kernel)(BackwardArguments), const char* name, const portable::TaskList& tasks) {
    return launch_stream_kernel(kernel, name, tasks.capacity, processors, kStreamSharedBytes<kHeadDim>, a,
                                static_cast<cudaStream_t>(stream));
  };
  if (a.plan.dense_row_tasks.capacity > 0) {
    const auto kernel =
        square ? backward_query_dense<Element, kHeadDim, true> : backward_query_dense<Element, kHeadDim, false>;
    if (Status s = launch(kernel, "backward_query_dense", a.plan.dense_row_tasks); !s.ok()) return s;
  }
  const auto kernel =
      square ? backward_key_value_dense<Element, kHeadDim, true> : backward_key_value_dense<Element, kHeadDim, false>;
  return launch(kernel, "backward_key_value_dense", a.plan.dense_column_tasks);
}

}  // namespace tda::cuda::sm90
