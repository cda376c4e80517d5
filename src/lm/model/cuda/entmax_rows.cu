// Weights and gradients of entmax for a block of rows (plan: row_launch.cuh; formula: entmax_row.h).
#include "lm/model/cuda/row_launch.cuh"

namespace tda::cuda {

cudaError_t launch_row_weights(const EntmaxRow& row, const RowBlockView& block, cudaStream_t stream) {
  return launch_weights_of_any_length(row, block, stream);
}

cudaError_t launch_row_gradients(const EntmaxRow& row, const RowBlockView& block, cudaStream_t stream) {
  return launch_gradients_of_any_length(row, block, stream);
}

}  // namespace tda::cuda
