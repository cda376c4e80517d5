// Definition of launch_backward, included by the files that instantiate it.
#pragma once

#include <algorithm>
#include <string>

#include "attention/cuda/common/kernel_order.cuh"
#include "attention/cuda/sm90/backward/key_value.cuh"
#include "attention/cuda/sm90/backward/query.cuh"

namespace tda::cuda::sm90 {

template <typename Element, int kHeadDim, bool kSquare, bool kPacked>
Status launch_backward_kernels(const BackwardArguments& a, int processors, CudaStream stream) {
  const auto launch = [&](void (*kernel)(BackwardArguments), const char* name, const portable::TaskList& tasks) {
    const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(tasks.capacity, processors));
    const cudaError_t error = launch_kernel(kernel, {blocks, kStreamThreads, kStreamSharedBytes<kHeadDim>, true},
                                            static_cast<cudaStream_t>(stream), a);
    if (error == cudaSuccess) return Status{};
    return Status{std::string("CUDA kernel ") + name + ": " + cudaGetErrorString(error)};
  };
  const auto rows = backward_query_dense<Element, kHeadDim, kSquare, kPacked>;
  if (Status s = launch(rows, "backward_query_dense", a.plan.dense_row_tasks); !s.ok()) return s;
  const auto columns = backward_key_value_dense<Element, kHeadDim, kSquare, kPacked>;
  return launch(columns, "backward_key_value_dense", a.plan.dense_column_tasks);
}

template <typename Element, int kHeadDim>
Status launch_backward(const BackwardArguments& a, int processors, CudaStream stream) {
  const bool square = a.problem.power == 2.0f;
  if (a.problem.query_offsets != nullptr) {
    return square ? launch_backward_kernels<Element, kHeadDim, true, true>(a, processors, stream)
                  : launch_backward_kernels<Element, kHeadDim, false, true>(a, processors, stream);
  }
  return square ? launch_backward_kernels<Element, kHeadDim, true, false>(a, processors, stream)
                : launch_backward_kernels<Element, kHeadDim, false, false>(a, processors, stream);
}

}  // namespace tda::cuda::sm90
