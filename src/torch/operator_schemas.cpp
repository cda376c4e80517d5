// The operators of torch.ops.threshold_attention. docs/operator.md explains every argument.
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "torch/operator_calls.h"

#define TDA_SCREENING_SCHEMA "str screening=\"automatic\", Tensor(a!)? screening_counters=None"

TORCH_LIBRARY(threshold_attention, library) {
  library.def(
      "forward(Tensor q1, Tensor k1, Tensor? q2, Tensor? k2, Tensor v, Tensor beta, Tensor? lam, float kappa, "
      "float power, bool normalize, bool save_index, bool statistics, " TDA_SCREENING_SCHEMA
      ") -> (Tensor output, Tensor survivors, Tensor index)",
      {at::Tag::pt2_compliant_tag});
  library.def(
      "backward(Tensor d_output, Tensor q1, Tensor k1, Tensor? q2, Tensor? k2, Tensor v, Tensor beta, Tensor? lam, "
      "Tensor index, float kappa, float power, bool normalize, bool[7] mask) "
      "-> (Tensor dq1, Tensor dk1, Tensor dq2, Tensor dk2, Tensor dv, Tensor dbeta, Tensor dlam)",
      {at::Tag::pt2_compliant_tag});
  library.def(
      "forward_packed(Tensor q1, Tensor k1, Tensor? q2, Tensor? k2, Tensor v, Tensor beta, Tensor? lam, "
      "Tensor cu_seqlens_q, Tensor cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k, float kappa, float power, "
      "bool normalize, bool save_index, bool statistics, " TDA_SCREENING_SCHEMA
      ") -> (Tensor output, Tensor survivors, Tensor index)",
      {at::Tag::pt2_compliant_tag});
  library.def(
      "backward_packed(Tensor d_output, Tensor q1, Tensor k1, Tensor? q2, Tensor? k2, Tensor v, Tensor beta, "
      "Tensor? lam, Tensor cu_seqlens_q, Tensor cu_seqlens_k, SymInt max_seqlen_q, SymInt max_seqlen_k, Tensor index, "
      "float kappa, float power, bool normalize, bool[7] mask) "
      "-> (Tensor dq1, Tensor dk1, Tensor dq2, Tensor dk2, Tensor dv, Tensor dbeta, Tensor dlam)",
      {at::Tag::pt2_compliant_tag});
  library.def(
      "threshold_rela(Tensor q, Tensor k, Tensor v, Tensor beta, *, float kappa=1.0, float power=2.0, "
      "bool normalize=True, bool return_statistics=False, " TDA_SCREENING_SCHEMA
      ") -> (Tensor output, Tensor survivors)",
      {at::Tag::pt2_compliant_tag});
  library.def(
      "differential_threshold_rela(Tensor q1, Tensor k1, Tensor q2, Tensor k2, Tensor v, Tensor lam, Tensor beta, *, "
      "float kappa=1.0, float power=2.0, bool normalize=True, bool return_statistics=False, " TDA_SCREENING_SCHEMA
      ") -> (Tensor output, Tensor survivors)",
      {at::Tag::pt2_compliant_tag});
  library.def(
      "threshold_rela_varlen(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, Tensor beta, "
      "SymInt? max_seqlen_q=None, SymInt? max_seqlen_k=None, *, float kappa=1.0, float power=2.0, "
      "bool normalize=True, bool return_statistics=False, " TDA_SCREENING_SCHEMA
      ") -> (Tensor output, Tensor survivors)",
      {at::Tag::pt2_compliant_tag});
  library.def(
      "differential_threshold_rela_varlen(Tensor q1, Tensor k1, Tensor q2, Tensor k2, Tensor v, "
      "Tensor cu_seqlens_q, Tensor cu_seqlens_k, Tensor lam, Tensor beta, SymInt? max_seqlen_q=None, "
      "SymInt? max_seqlen_k=None, *, float kappa=1.0, float power=2.0, bool normalize=True, "
      "bool return_statistics=False, " TDA_SCREENING_SCHEMA ") -> (Tensor output, Tensor survivors)",
      {at::Tag::pt2_compliant_tag});
}

namespace tda {

ForwardResult call_forward(const AttentionArguments& a, bool save_index, bool statistics) {
  if (a.packed) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("threshold_attention::forward_packed", "")
                               .typed<ForwardPackedSignature>();
    return op.call(a.q1, a.k1, a.q2, a.k2, a.v, a.beta, a.lam, a.packed->cu_seqlens_q, a.packed->cu_seqlens_k,
                   a.packed->max_seqlen_q, a.packed->max_seqlen_k, a.kappa, a.power, a.normalize, save_index,
                   statistics, a.screening.choice, a.screening.counters);
  }
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("threshold_attention::forward", "").typed<ForwardSignature>();
  return op.call(a.q1, a.k1, a.q2, a.k2, a.v, a.beta, a.lam, a.kappa, a.power, a.normalize, save_index, statistics,
                 a.screening.choice, a.screening.counters);
}

BackwardResult call_backward(const at::Tensor& d_output, const AttentionArguments& a, const at::Tensor& index,
                             GradientMask mask) {
  if (a.packed) {
    static const auto op = c10::Dispatcher::singleton()
                               .findSchemaOrThrow("threshold_attention::backward_packed", "")
                               .typed<BackwardPackedSignature>();
    return op.call(d_output, a.q1, a.k1, a.q2, a.k2, a.v, a.beta, a.lam, a.packed->cu_seqlens_q, a.packed->cu_seqlens_k,
                   a.packed->max_seqlen_q, a.packed->max_seqlen_k, index, a.kappa, a.power, a.normalize, mask);
  }
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("threshold_attention::backward", "").typed<BackwardSignature>();
  return op.call(d_output, a.q1, a.k1, a.q2, a.k2, a.v, a.beta, a.lam, index, a.kappa, a.power, a.normalize, mask);
}

}  // namespace tda
