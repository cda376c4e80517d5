// The launches of the pair by pair backward (pairs/elements.cuh), in the order in which they run.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "attention/cuda/portable/problem.h"

namespace tda::cuda::portable {

struct BackwardArguments;
struct BackwardPlan;

cudaError_t launch_backward_pair_runs(const Problem& problem, const BackwardPlan& plan, cudaStream_t stream);
// `keys_wanted`: records are to be written.
cudaError_t launch_backward_pair_rows(const Problem& problem, const BackwardArguments& arguments,
                                      const BackwardPlan& plan, bool keys_wanted, cudaStream_t stream);
cudaError_t launch_backward_pair_keys(const Problem& problem, const BackwardArguments& arguments,
                                      const BackwardPlan& plan, cudaStream_t stream);
cudaError_t launch_backward_pair_long_keys(const Problem& problem, const BackwardArguments& arguments,
                                           const BackwardPlan& plan, cudaStream_t stream);

// Calls launch.operator()<T, DIM>() for the instance that fits.
template <class Launch>
cudaError_t launch_pair_instance(const Problem& p, Launch launch) {
  if (p.type == DataType::kBFloat16) {
    return p.shape.head_dim == 64 ? launch.template operator()<__nv_bfloat16, 64>()
                                  : launch.template operator()<__nv_bfloat16, 128>();
  }
  return p.shape.head_dim == 64 ? launch.template operator()<__half, 64>() : launch.template operator()<__half, 128>();
}

}  // namespace tda::cuda::portable
