#include "lm/model/mechanisms/unit_vectors.h"

#include <ATen/ATen.h>

namespace tda {
namespace {

constexpr double kSmallestNorm = 1e-12;

}  // namespace

at::Tensor unit_vectors(const at::Tensor& x) { return x / x.norm(2, -1, true).clamp_min(kSmallestNorm); }

}  // namespace tda
