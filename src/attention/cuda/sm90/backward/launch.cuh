// Definition of launch_backward, included by the files that instantiate it.
#pragma once

#include <algorithm>
#include <string>
#include <type_traits>

#include "attention/cuda/common/kernel_order.cuh"
#include "attention/cuda/sm90/backward/fused.cuh"
#include "attention/cuda/sm90/backward/key_value.cuh"
#include "attention/cuda/sm90/backward/query.cuh"

namespace tda::cuda::sm90 {

// Blocks that stay, one a multiprocessor, no more than there may be tasks.
template <class Plan>
Status launch_blocks(void (*kernel)(BackwardArguments), const char* name, std::int64_t tasks, int processors,
                     const BackwardArguments& a, CudaStream stream) {
  const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(tasks, processors));
  const cudaError_t error = launch_kernel(kernel, {blocks, kStreamThreads<Plan>, kStreamSharedBytes<Plan>, true},
                                          static_cast<cudaStream_t>(stream), a);
  if (error == cudaSuccess) return {};
  return {std::string("CUDA kernel ") + name + ": " + cudaGetErrorString(error)};
}

template <typename Element, int kHeadDim, bool kSquare, bool kPacked>
Status launch_backward_kernels(const BackwardArguments& a, int processors, CudaStream stream) {
  using Plan = StreamPlan<kHeadDim>;
  const std::int64_t row_tasks = a.plan.dense_row_tasks.capacity, column_tasks = a.plan.dense_column_tasks.capacity;
  if constexpr (std::is_same_v<Element, __nv_bfloat16> && kHeadDim == 64 && !kPacked) {
    if (a.plan.fused.counters != nullptr) {
      const auto fused = backward_fused<Element, kSquare>;
      const Status s = launch_blocks<FusedPlan>(fused, "backward_fused", column_tasks, processors, a, stream);
      if (!s.ok()) return s;
    }
  }
  const auto rows = backward_query_dense<Element, kHeadDim, kSquare, kPacked>;
  const Status s = launch_blocks<Plan>(rows, "backward_query_dense", row_tasks, processors, a, stream);
  if (!s.ok()) return s;
  const auto columns = backward_key_value_dense<Element, kHeadDim, kSquare, kPacked>;
  return launch_blocks<Plan>(columns, "backward_key_value_dense", column_tasks, processors, a, stream);
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
