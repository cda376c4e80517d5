// The launches of the kernels that turn a block of scores into weights and gradients, one file per formula. Each
// returns the error of its own launch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "lm/model/cuda/row_formula.h"

namespace tda::cuda {

// `rows` rows of each of `maps` maps, contiguous, with the `keys` keys that the last of these rows sees: row r sees the
// first keys - rows + 1 + r. keys < 2^31 - 256.
struct RowBlockView {
  float* scores;      // (maps, rows, keys)
  float* statistics;  // (maps, rows, Row::kStatistics)
  float* d_weights;   // (maps, rows, keys), backward only
  std::int64_t maps, rows, keys;
};

// Puts weights in the place of scores, 0 at keys that a row does not see, and writes statistics.
cudaError_t launch_row_weights(const EntmaxRow& row, const RowBlockView& block, cudaStream_t stream);
cudaError_t launch_row_weights(const LssarRow& row, const RowBlockView& block, cudaStream_t stream);
cudaError_t launch_row_weights(const SoftpickRow& row, const RowBlockView& block, cudaStream_t stream);

// Reads statistics and puts weights in the place of scores, gradients of scores in the place of d_weights; both 0 at
// keys that a row does not see.
cudaError_t launch_row_gradients(const EntmaxRow& row, const RowBlockView& block, cudaStream_t stream);
cudaError_t launch_row_gradients(const LssarRow& row, const RowBlockView& block, cudaStream_t stream);
cudaError_t launch_row_gradients(const SoftpickRow& row, const RowBlockView& block, cudaStream_t stream);

}  // namespace tda::cuda
