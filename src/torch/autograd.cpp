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

class AttentionFunction : public Function<AttentionFunction> {
 public:
  static variable_list forward(AutogradContext* context, TDA_ATTENTION_PARAMETERS, double kappa, double power,
                               bool normalize, bool statistics) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const AttentionArguments arguments{q1, k1, q2, k2, v, beta, lam, kappa, power, normalize};
    auto [output, survivors, index] = call_forward(arguments, /*save_index=*/true, statistics);
    context->save_for_backward(
        {q1, k1, q2.value_or(at::Tensor()), k2.value_or(at::Tensor()), v, beta, lam.value_or(at::Tensor()), index});
    context->saved_data["kappa"] = kappa;
    context->saved_data["power"] = power;
    context->saved_data["normalize"] = normalize;
    context->mark_non_differentiable({survivors, index});
    context->set_materialize_grads(false);
    return {output, survivors, index};
  }

  static variable_list backward(AutogradContext* context, variable_list cotangents) {
    constexpr std::size_t kParameters = 11;
    variable_list gradients(kParameters);
    if (!cotangents[0].defined()) return gradients;
    const variable_list saved = context->get_saved_variables();
    const auto optional = [](const at::Tensor& x) { return x.defined() ? std::optional(x) : std::nullopt; };
    const std::optional<at::Tensor> q2 = optional(saved[2]), k2 = optional(saved[3]), lam = optional(saved[6]);
    const AttentionArguments arguments{saved[0],
                                       saved[1],
                                       q2,
                                       k2,
                                       saved[4],
                                       saved[5],
                                       lam,
                                       context->saved_data["kappa"].toDouble(),
                                       context->saved_data["power"].toDouble(),
                                       context->saved_data["normalize"].toBool()};
    // Edges of the graph are numbered over the tensors that are present: q, k, (q2, k2,) v, beta, (lam).
    GradientMask mask{};
    std::size_t edge = 0;
    for (std::size_t i = 0; i < mask.size(); ++i) {
      if (saved[i].defined()) mask[i] = context->needs_input_grad(edge++);
    }
    auto [dq1, dk1, dq2, dk2, dv, dbeta, dlam] = call_backward(cotangents[0], arguments, saved[7], mask);
    const at::Tensor all[] = {dq1, dk1, dq2, dk2, dv, dbeta, dlam};
    for (std::size_t i = 0; i < mask.size(); ++i) {
      if (mask[i]) gradients[i] = all[i];
    }
    return gradients;
  }
};

ForwardResult forward_autograd(TDA_ATTENTION_PARAMETERS, double kappa, double power, bool normalize, bool save_index,
                               bool statistics) {
  const auto differentiable = [](const std::optional<at::Tensor>& x) { return x && x->requires_grad(); };
  const bool wanted = at::GradMode::is_enabled() &&
                      (q1.requires_grad() || k1.requires_grad() || differentiable(q2) || differentiable(k2) ||
                       v.requires_grad() || beta.requires_grad() || differentiable(lam));
  if (!wanted) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    return call_forward({q1, k1, q2, k2, v, beta, lam, kappa, power, normalize}, save_index, statistics);
  }
  const variable_list results =
      AttentionFunction::apply(q1, k1, q2, k2, v, beta, lam, kappa, power, normalize, statistics);
  return {results[0], results[1], results[2]};
}

// Exists to refuse: without it a second differentiation would silently see constants.
class AttentionBackwardFunction : public Function<AttentionBackwardFunction> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& d_output, TDA_ATTENTION_PARAMETERS,
                               const at::Tensor& index, double kappa, double power, bool normalize,
                               const GradientMask& mask) {
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    context->set_materialize_grads(false);
    auto [dq1, dk1, dq2, dk2, dv, dbeta, dlam] =
        call_backward(d_output, {q1, k1, q2, k2, v, beta, lam, kappa, power, normalize}, index, mask);
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
  const variable_list r =
      AttentionBackwardFunction::apply(d_output, q1, k1, q2, k2, v, beta, lam, index, kappa, power, normalize, mask);
  return {r[0], r[1], r[2], r[3], r[4], r[5], r[6]};
}

}  // namespace

TORCH_LIBRARY_IMPL(threshold_attention, Autograd, library) {
  library.impl("forward", &forward_autograd);
  library.impl("backward", &backward_autograd);
}

}  // namespace tda
