// Differentiation of the operators: forward saves its inputs and the survivor index, backward is an operator too.
#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "torch/operator_calls.h"

namespace tda {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// Packed documents as autograd functions receive them: tensors that are absent without.
#define TDA_OPTIONAL_PACKED_PARAMETERS                                                        \
  const std::optional<at::Tensor>&cu_seqlens_q, const std::optional<at::Tensor>&cu_seqlens_k, \
      const c10::SymInt &max_seqlen_q, const c10::SymInt &max_seqlen_k

std::optional<PackedArguments> packed_arguments(TDA_OPTIONAL_PACKED_PARAMETERS) {
  if (!cu_seqlens_q) return std::nullopt;
  return PackedArguments{*cu_seqlens_q, *cu_seqlens_k, max_seqlen_q, max_seqlen_k};
}

// Tensor arguments in the order in which AttentionFunction saves them; absent ones are undefined there.
enum Saved : std::size_t { kQ1, kK1, kQ2, kK2, kV, kBeta, kLam, kCuSeqlensQ, kCuSeqlensK, kIndex };

class AttentionFunction : public Function<AttentionFunction> {
 public:
  static variable_list forward(AutogradContext* context, TDA_ATTENTION_PARAMETERS, TDA_OPTIONAL_PACKED_PARAMETERS,
                               double kappa, double power, bool normalize, bool statistics, TDA_SCREENING_PARAMETERS) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const auto packed = packed_arguments(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k);
    const ScreeningArguments screen{screening, screening_counters};
    auto [output, survivors, index] =
        call_forward({q1, k1, q2, k2, v, beta, lam, kappa, power, normalize, packed ? &*packed : nullptr, screen},
                     /*save_index=*/true, statistics);
    const auto or_undefined = [](const std::optional<at::Tensor>& x) { return x.value_or(at::Tensor()); };
    context->save_for_backward({q1, k1, or_undefined(q2), or_undefined(k2), v, beta, or_undefined(lam),
                                or_undefined(cu_seqlens_q), or_undefined(cu_seqlens_k), index});
    context->saved_data["max_seqlen_q"] = max_seqlen_q;
    context->saved_data["max_seqlen_k"] = max_seqlen_k;
    context->saved_data["kappa"] = kappa;
    context->saved_data["power"] = power;
    context->saved_data["normalize"] = normalize;
    context->mark_non_differentiable({survivors, index});
    context->set_materialize_grads(false);
    return {output, survivors, index};
  }

  static variable_list backward(AutogradContext* context, variable_list cotangents) {
    constexpr std::size_t kParameters = 17;
    variable_list gradients(kParameters);
    if (!cotangents[0].defined()) return gradients;
    const variable_list saved = context->get_saved_variables();
    const auto optional = [&](Saved x) { return saved[x].defined() ? std::optional(saved[x]) : std::nullopt; };
    const std::optional<at::Tensor> q2 = optional(kQ2), k2 = optional(kK2), lam = optional(kLam);
    auto& data = context->saved_data;
    const std::optional<at::Tensor> cu_seqlens_q = optional(kCuSeqlensQ), cu_seqlens_k = optional(kCuSeqlensK);
    const auto packed =
        packed_arguments(cu_seqlens_q, cu_seqlens_k, data["max_seqlen_q"].toSymInt(), data["max_seqlen_k"].toSymInt());
    const AttentionArguments arguments{saved[kQ1],
                                       saved[kK1],
                                       q2,
                                       k2,
                                       saved[kV],
                                       saved[kBeta],
                                       lam,
                                       data["kappa"].toDouble(),
                                       data["power"].toDouble(),
                                       data["normalize"].toBool(),
                                       packed ? &*packed : nullptr};
    // Edges of the graph are numbered over the tensors that are present: q, k, (q2, k2,) v, beta, (lam,)
    // then offsets and counters, which have no gradient.
    GradientMask mask{};
    std::size_t edge = 0;
    for (std::size_t i = 0; i < mask.size(); ++i) {
      if (saved[i].defined()) mask[i] = context->needs_input_grad(edge++);
    }
    auto [dq1, dk1, dq2, dk2, dv, dbeta, dlam] = call_backward(cotangents[0], arguments, saved[kIndex], mask);
    const at::Tensor all[] = {dq1, dk1, dq2, dk2, dv, dbeta, dlam};
    for (std::size_t i = 0; i < mask.size(); ++i) {
      if (mask[i]) gradients[i] = all[i];
    }
    return gradients;
  }
};

bool wants_gradient(const AttentionArguments& a) {
  const auto differentiable = [](const std::optional<at::Tensor>& x) { return x && x->requires_grad(); };
  return at::GradMode::is_enabled() &&
         (a.q1.requires_grad() || a.k1.requires_grad() || differentiable(a.q2) || differentiable(a.k2) ||
          a.v.requires_grad() || a.beta.requires_grad() || differentiable(a.lam));
}

ForwardResult attend(const AttentionArguments& a, bool save_index, bool statistics) {
  if (a.screening.counters) a.screening.counters->unsafeGetTensorImpl()->bump_version();
  if (!wants_gradient(a)) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    return call_forward(a, save_index, statistics);
  }
  std::optional<at::Tensor> cu_seqlens_q, cu_seqlens_k;
  c10::SymInt max_seqlen_q, max_seqlen_k;
  if (a.packed) {
    cu_seqlens_q = a.packed->cu_seqlens_q;
    cu_seqlens_k = a.packed->cu_seqlens_k;
    max_seqlen_q = a.packed->max_seqlen_q;
    max_seqlen_k = a.packed->max_seqlen_k;
  }
  const variable_list results = AttentionFunction::apply(
      a.q1, a.k1, a.q2, a.k2, a.v, a.beta, a.lam, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, a.kappa,
      a.power, a.normalize, statistics, a.screening.choice, a.screening.counters);
  return {results[0], results[1], results[2]};
}

ForwardResult forward_autograd(TDA_ATTENTION_PARAMETERS, double kappa, double power, bool normalize, bool save_index,
                               bool statistics, TDA_SCREENING_PARAMETERS) {
  return attend({q1, k1, q2, k2, v, beta, lam, kappa, power, normalize, nullptr, {screening, screening_counters}},
                save_index, statistics);
}

ForwardResult forward_packed_autograd(TDA_ATTENTION_PARAMETERS, TDA_PACKED_PARAMETERS, double kappa, double power,
                                      bool normalize, bool save_index, bool statistics, TDA_SCREENING_PARAMETERS) {
  const PackedArguments packed{cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k};
  return attend({q1, k1, q2, k2, v, beta, lam, kappa, power, normalize, &packed, {screening, screening_counters}},
                save_index, statistics);
}

// Exists to refuse: without it a second differentiation would silently see constants.
class AttentionBackwardFunction : public Function<AttentionBackwardFunction> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& d_output, TDA_ATTENTION_PARAMETERS,
                               TDA_OPTIONAL_PACKED_PARAMETERS, const at::Tensor& index, double kappa, double power,
                               bool normalize, const GradientMask& mask) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->set_materialize_grads(false);
    const auto packed = packed_arguments(cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k);
    const AttentionArguments arguments{
        q1, k1, q2, k2, v, beta, lam, kappa, power, normalize, packed ? &*packed : nullptr};
    auto [dq1, dk1, dq2, dk2, dv, dbeta, dlam] = call_backward(d_output, arguments, index, mask);
    return {dq1, dk1, dq2, dk2, dv, dbeta, dlam};
  }

  static variable_list backward(AutogradContext*, const variable_list&) {
    TORCH_CHECK_NOT_IMPLEMENTED(false,
                                "threshold_attention: double backward is not implemented; the operator can be "
                                "differentiated once. threshold_attention.reference can be differentiated twice");
  }
};

BackwardResult backward_autograd(const at::Tensor& d_output, TDA_ATTENTION_PARAMETERS, const at::Tensor& index,
                                 double kappa, double power, bool normalize, GradientMask mask) {
  const std::optional<at::Tensor> none;
  const variable_list r =
      AttentionBackwardFunction::apply(d_output, q1, k1, q2, k2, v, beta, lam, none, none, c10::SymInt(0),
                                       c10::SymInt(0), index, kappa, power, normalize, mask);
  return {r[0], r[1], r[2], r[3], r[4], r[5], r[6]};
}

BackwardResult backward_packed_autograd(const at::Tensor& d_output, TDA_ATTENTION_PARAMETERS, TDA_PACKED_PARAMETERS,
                                        const at::Tensor& index, double kappa, double power, bool normalize,
                                        GradientMask mask) {
  const std::optional<at::Tensor> query_offsets = cu_seqlens_q, key_offsets = cu_seqlens_k;
  const variable_list r =
      AttentionBackwardFunction::apply(d_output, q1, k1, q2, k2, v, beta, lam, query_offsets, key_offsets, max_seqlen_q,
                                       max_seqlen_k, index, kappa, power, normalize, mask);
  return {r[0], r[1], r[2], r[3], r[4], r[5], r[6]};
}

}  // namespace

TORCH_LIBRARY_IMPL(threshold_attention, Autograd, library) {
  library.impl("forward", &forward_autograd);
  library.impl("backward", &backward_autograd);
  library.impl("forward_packed", &forward_packed_autograd);
  library.impl("backward_packed", &backward_packed_autograd);
}

}  // namespace tda
