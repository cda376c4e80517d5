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
                           bool /*statistics*/, TDA_SCREENING_PARAMETERS) {
  check_arguments({q1, k1, q2, k2, v, beta, lam, kappa, power, normalize, nullptr, {screening, screening_counters}});
  refuse(q1);
}

BackwardResult backward_cuda(const at::Tensor& /*d_output*/, TDA_ATTENTION_PARAMETERS, const at::Tensor& /*index*/,
                             double kappa, double power, bool normalize, GradientMask /*mask*/) {
  check_arguments({q1, k1, q2, k2, v, beta, lam, kappa, power, normalize});
  refuse(q1);
}

ForwardResult forward_packed_cuda(TDA_ATTENTION_PARAMETERS, TDA_PACKED_PARAMETERS, double kappa, double power,
                                  bool normalize, bool /*save_index*/, bool /*statistics*/, TDA_SCREENING_PARAMETERS) {
  const PackedArguments packed{cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k};
  check_arguments({q1, k1, q2, k2, v, beta, lam, kappa, power, normalize, &packed, {screening, screening_counters}});
  refuse(q1);
}

BackwardResult backward_packed_cuda(const at::Tensor& /*d_output*/, TDA_ATTENTION_PARAMETERS, TDA_PACKED_PARAMETERS,
                                    const at::Tensor& /*index*/, double kappa, double power, bool normalize,
                                    GradientMask /*mask*/) {
  const PackedArguments packed{cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k};
  check_arguments({q1, k1, q2, k2, v, beta, lam, kappa, power, normalize, &packed});
  refuse(q1);
}

}  // namespace

TORCH_LIBRARY_IMPL(threshold_attention, CUDA, library) {
  library.impl("forward", &forward_cuda);
  library.impl("backward", &backward_cuda);
  library.impl("forward_packed", &forward_packed_cuda);
  library.impl("backward_packed", &backward_packed_cuda);
}

}  // namespace tda
