// The L2 norm of queries and keys.
#pragma once

#include <ATen/core/Tensor.h>

namespace tda {

// x / max(|x|, 1e-12) over the last dimension, differentiable; a zero vector stays zero.
at::Tensor unit_vectors(const at::Tensor& x);

}  // namespace tda
