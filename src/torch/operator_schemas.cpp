// The operators of torch.ops.threshold_attention. docs/operator.md explains every argument.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "torch/operator_calls.h"

TORCH_LIBRARY(threshold_attention, library) {
  library.def(
      "forward(Tensor q1, Tensor k1, Tensor? q2, Tensor? k2, Tensor v, Tensor beta, Tensor? lam, float kappa, "
      "float power, bool normalize, bool save_index, bool statistics) "
      "-> (Tensor output, Tensor survivors, Tensor index)",
      {at::Tag::pt2_compliant_tag});
  library.def(
      "backward(Tensor d_output, Tensor q1, Tensor k1, Tensor? q2, Tensor? k2, Tensor v, Tensor beta, Tensor? lam, "
      "Tensor index, float kappa, float power, bool normalize, bool[7] mask) "
      "-> (Tensor dq1, Tensor dk1, Tensor dq2, Tensor dk2, Tensor dv, Tensor dbeta, Tensor dlam)",
      {at::Tag::pt2_compliant_tag});
  library.def(
      "threshold_rela(Tensor q, Tensor k, Tensor v, Tensor beta, *, float kappa=1.0, float power=2.0, "
      "bool normalize=True, bool return_statistics=False) -> (Tensor output, Tensor survivors)",
      {at::Tag::pt2_compliant_tag});
  library.def(
      "differential_threshold_rela(Tensor q1, Tensor k1, Tensor q2, Tensor k2, Tensor v, Tensor lam, Tensor beta, *, "
      "float kappa=1.0, float power=2.0, bool normalize=True, bool return_statistics=False) "
      "-> (Tensor output, Tensor survivors)",
      {at::Tag::pt2_compliant_tag});
}

namespace tda {

ForwardResult call_forward(const AttentionArguments& a, bool save_index, bool statistics) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("threshold_attention::forward", "").typed<ForwardSignature>();
  return op.call(a.q1, a.k1, a.q2, a.k2, a.v, a.beta, a.lam, a.kappa, a.power, a.normalize, save_index, statistics);
}

BackwardResult call_backward(const at::Tensor& d_output, const AttentionArguments& a, const at::Tensor& index,
                             GradientMask mask) {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("threshold_attention::backward", "").typed<BackwardSignature>();
  return op.call(d_output, a.q1, a.k1, a.q2, a.k2, a.v, a.beta, a.lam, index, a.kappa, a.power, a.normalize, mask);
}

}  // namespace tda
