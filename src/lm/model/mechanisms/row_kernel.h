// The CUDA kernels of row maps on tensors: one launch each way for a block of rows, in the place of the tensor
// operations of RowMap. In a build without CUDA kernels no map has one.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "lm/model/mechanisms/row_attention.h"

namespace tda {

// The formula of `map` if a kernel can work on these scores: fp32 on a CUDA device.
std::optional<RowFormula> kernel_formula(const RowMap& map, const at::Tensor& scores);

// Puts weights in the place of scores, contiguous (G, R, N), of which row r sees the first N - R + 1 + r; 0 at the
// others, whatever stood there. Returns the statistics, (G, R, S), as RowMap::statistics does. Runs on the current
// stream.
at::Tensor replace_by_weights(const RowFormula& formula, const at::Tensor& scores);

// Puts weights in the place of scores and gradients of scores in the place of d_weights, (G, R, N) as well.
void replace_by_gradients(const RowFormula& formula, const at::Tensor& scores, const at::Tensor& statistics,
                          const at::Tensor& d_weights);

}  // namespace tda
