// Stands in for row_kernel.cpp in a build without CUDA kernels.
#include <ATen/ATen.h>

#include "lm/model/mechanisms/row_kernel.h"

namespace tda {

std::optional<RowFormula> kernel_formula(const RowMap&, const at::Tensor&) { return std::nullopt; }

at::Tensor replace_by_weights(const RowFormula&, const at::Tensor&) {
  TORCH_CHECK(false, "row kernels: this program was built without CUDA kernels");
}

void replace_by_gradients(const RowFormula&, const at::Tensor&, const at::Tensor&, const at::Tensor&) {
  TORCH_CHECK(false, "row kernels: this program was built without CUDA kernels");
}

}  // namespace tda
