// What CUDA tensors meet in a build without the CUDA kernels.
#include <torch/library.h>

#include "torch/operator_calls.h"

namespace tda {
namespace {

[[noreturn]] void refuse(const at::Tensor& q) {
  TORCH_CHECK_NOT_IMPLEMENTED(false, "q: got a tensor on ", q.device(),
                              ", expected a CPU tensor: this build of threshold_attention has no CUDA kernels");
}

ForwardResult forward_cuda(TDA_ATTENTION_PARAMETERS, double kappa, double power, bool normalize, bool /*save_index*/,
                           bool /*statistics*/) {
  check_arguments({q1, k1, q2, k2, v, beta, lam, kappa, power, normalize});
  refuse(q1);
}

BackwardResult backward_cuda(const at::Tensor& /*d_output*/, TDA_ATTENTION_PARAMETERS, const at::Tensor& /*index*/,
                             double kappa, double power, bool normalize, GradientMask /*mask*/) {
  check_arguments({q1, k1, q2, k2, v, beta, lam, kappa, power, normalize});
  refuse(q1);
}

}  // namespace

TORCH_LIBRARY_IMPL(threshold_attention, CUDA, library) {
  library.impl("forward", &forward_cuda);
  library.impl("backward", &backward_cuda);
}

}  // namespace tda
