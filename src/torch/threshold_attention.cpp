#include "torch/threshold_attention.h"

#include <ATen/core/grad_mode.h>
#include <torch/library.h>

#include "torch/operator_calls.h"

namespace tda {
namespace {

// beta or lam as `forward` wants it: one value per query head, fp64 for fp64 inputs and fp32 otherwise. Plain tensor
// operations, so that a 0-d parameter receives the sum over heads as its gradient.
at::Tensor per_head(const char* name, const at::Tensor& parameter, const at::Tensor& q) {
  check_per_head(name, parameter, q);
  return parameter.to(q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat).expand_symint({q.sym_size(1)});
}

std::tuple<at::Tensor, at::Tensor> attend(const AttentionArguments& a, bool statistics) {
  auto [output, survivors, index] = call_forward(a, /*save_index=*/false, statistics);
  return {output, survivors};
}

std::tuple<at::Tensor, at::Tensor> one_view(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                            const at::Tensor& beta, double kappa, double power, bool normalize,
                                            bool statistics) {
  return attend({q, k, std::nullopt, std::nullopt, v, per_head("beta", beta, q), std::nullopt, kappa, power, normalize},
                statistics);
}

std::tuple<at::Tensor, at::Tensor> two_views(const at::Tensor& q1, const at::Tensor& k1, const at::Tensor& q2,
                                             const at::Tensor& k2, const at::Tensor& v, const at::Tensor& lam,
                                             const at::Tensor& beta, double kappa, double power, bool normalize,
                                             bool statistics) {
  return attend({q1, k1, q2, k2, v, per_head("beta", beta, q1), per_head("lam", lam, q1), kappa, power, normalize},
                statistics);
}

}  // namespace

TORCH_LIBRARY_IMPL(threshold_attention, CompositeImplicitAutograd, library) {
  library.impl("threshold_rela", &one_view);
  library.impl("differential_threshold_rela", &two_views);
}

at::Tensor threshold_rela(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& beta,
                          const ThresholdOptions& o) {
  return std::get<0>(one_view(q, k, v, beta, o.kappa, o.power, o.normalize, false));
}

at::Tensor differential_threshold_rela(const at::Tensor& q1, const at::Tensor& k1, const at::Tensor& q2,
                                       const at::Tensor& k2, const at::Tensor& v, const at::Tensor& lambda,
                                       const at::Tensor& beta, const ThresholdOptions& o) {
  return std::get<0>(two_views(q1, k1, q2, k2, v, lambda, beta, o.kappa, o.power, o.normalize, false));
}

OutputAndSurvivors threshold_rela_with_survivors(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                 const at::Tensor& beta, const ThresholdOptions& o) {
  auto [output, survivors] = one_view(q, k, v, beta, o.kappa, o.power, o.normalize, true);
  return {output, survivors};
}

OutputAndSurvivors differential_threshold_rela_with_survivors(const at::Tensor& q1, const at::Tensor& k1,
                                                              const at::Tensor& q2, const at::Tensor& k2,
                                                              const at::Tensor& v, const at::Tensor& lambda,
                                                              const at::Tensor& beta, const ThresholdOptions& o) {
  auto [output, survivors] = two_views(q1, k1, q2, k2, v, lambda, beta, o.kappa, o.power, o.normalize, true);
  return {output, survivors};
}

}  // namespace tda
