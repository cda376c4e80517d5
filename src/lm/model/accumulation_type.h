// The type in which scores, statistics and sums are kept.
#pragma once

#include <ATen/core/Tensor.h>

namespace tda {

// x in fp32; fp64 stays fp64, for checks.
inline at::Tensor widened(const at::Tensor& x) { return x.scalar_type() == at::kDouble ? x : x.to(at::kFloat); }

}  // namespace tda
