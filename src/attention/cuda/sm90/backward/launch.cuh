// Definition of launch_backward, included by the files that instantiate it.
#pragma once

#include <algorithm>
#include <string>

#include "attention/cuda/common/kernel_order.cuh"
#include "attention/cuda/sm90/backward/key_value.cuh"
#include "attention/cuda/sm90/backward/query.cuh"

namespace tda::cuda::sm90 {

template <typename Element, int kHeadDim>
Status launch_backward(const BackwardArguments& a, int processors, CudaStream stream) {
  const bool square = a.problem.power == 2.0f;
  const auto launch = [&](void (*kernel)(BackwardArguments), const char* name, const portable::TaskList& tasks) {
    const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(tasks.capacity, processors));
    const cudaError_t error = launch_kernel(kernel, {blocks, kStreamThreads, kStreamSharedBytes<kHeadDim>, true},
                                            static_cast<cudaStream_t>(stream), a);
    if (error == cudaSuccess) return Status{};
    return Status{std::string("CUDA kernel ") + name + ": " + cudaGetErrorString(error)};
  };
  const auto rows =
      square ? backward_query_dense<Element, kHeadDim, true> : backward_query_dense<Element, kHeadDim, false>;
  if (Status s = launch(rows, "backward_query_dense", a.plan.dense_row_tasks); !s.ok()) return s;
  const auto columns =
      square ? backward_key_value_dense<Element, kHeadDim, true> : backward_key_value_dense<Element, kHeadDim, false>;
  return launch(columns, "backward_key_value_dense", a.plan.dense_column_tasks);
}

}  // namespace tda::cuda::sm90
