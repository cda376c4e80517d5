// The launches of the portable kernels, one per file. Each returns the error of its own launch.
#pragma once

#include <cuda_runtime_api.h>

#include "attention/cuda/portable/dense_tasks.h"
#include "tda/attention_cuda.h"

namespace tda::cuda::portable {

struct Problem;

// Fills query_scale and key_scale.
cudaError_t launch_row_scales(const Problem& problem, cudaStream_t stream);

constexpr int kDenseRows = 128;                  // of a task of the fp32 forward
constexpr int kForwardStrips = kDenseRows / 16;  // in such a task, which several warps may divide

// output, survivors, survivor_index, in fp32 arithmetic for any shape; with a list of tasks only of these row blocks.
cudaError_t launch_forward_fp32(const Problem& problem, const ForwardOutputs& outputs, const DenseTasks& dense,
                                cudaStream_t stream);

// Whether fp32 calls of this kind are screened; a function of shapes and options, for the size of the workspace.
bool screens_fp32(const AttentionShape& shape, const AttentionOptions& options, std::int64_t longest_key);
// Whether such a call is screened here and now: rows are aligned, the device has the shared memory, and no test has
// switched it off (TDA_FP32_SCREEN=off in the environment, read at each call).
bool screens_fp32_now(const Problem& problem);

// The same outputs by screening, to the bit; row blocks with too much for one warp a strip go to the list `divided`, of
// kForwardStrips parts, and those that are better computed densely to `dense`.
cudaError_t launch_forward_fp32_screened(const Problem& problem, const ForwardOutputs& outputs,
                                         const DenseTasks& divided, const DenseTasks& dense, cudaStream_t stream);
// The row blocks of the list `divided`.
cudaError_t launch_forward_fp32_divided(const Problem& problem, const ForwardOutputs& outputs,
                                        const DenseTasks& divided, cudaStream_t stream);

// The same for 16-bit types with value_dim <= 128, on tensor cores; it does nothing when the inputs are irregular.
// `pairs`: two neighbouring elements of the output may be stored at once.
cudaError_t launch_forward_half(const Problem& problem, const ForwardOutputs& outputs, bool pairs, cudaStream_t stream);

// What the backward kernels share.
struct BackwardArguments {
  ConstTensor d_output;
  const std::uint32_t* index;
  BackwardOutputs outputs;
  double* dbeta_parts;    // (views, query heads, row tiles, shares_per_tile): what each adds to dbeta, or null
  double* dlambda_parts;  // (query heads, row tiles, shares_per_tile), or null
  // Screened fp32 calls have room for one share of each 16 rows; who sums up a whole row tile uses the first.
  int shares_per_tile;
  // Whether two neighbouring 16-bit elements may be stored at once.
  bool pairs_dq[2], pairs_dk[2], pairs_dv;
  // Whether rows may be stored sixteen bytes at a time.
  bool wide_dq[2], wide_dk[2], wide_dv;
};

// With a list of tasks only those. dq of every view with the L2 norm undone, and the row tiles' shares of dbeta and
// dlambda.
cudaError_t launch_backward_query_fp32(const Problem& problem, const BackwardArguments& arguments,
                                       const DenseTasks& dense, cudaStream_t stream);
// dk of every view with the L2 norm undone.
cudaError_t launch_backward_key_fp32(const Problem& problem, const BackwardArguments& arguments,
                                     const DenseTasks& dense, cudaStream_t stream);
// dv.
cudaError_t launch_backward_value_fp32(const Problem& problem, const BackwardArguments& arguments,
                                       const DenseTasks& dense, cudaStream_t stream);
// All of these pair by pair, for screened calls; row tiles and tiles of 64 keys with too much for one warp a strip, and
// those that are better computed densely, go to the lists.
cudaError_t launch_backward_fp32_screened(const Problem& problem, const BackwardArguments& arguments,
                                          const ScreenedTasks& tasks, cudaStream_t stream);
// The lists of strips that a block shares.
cudaError_t launch_backward_fp32_divided(const Problem& problem, const BackwardArguments& arguments,
                                         const ScreenedTasks& tasks, cudaStream_t stream);
// dbeta and dlambda from the shares, in a fixed order.
cudaError_t launch_backward_parameters(const Problem& problem, const BackwardArguments& arguments, cudaStream_t stream);

}  // namespace tda::cuda::portable
