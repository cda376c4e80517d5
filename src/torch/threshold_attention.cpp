#include "torch/threshold_attention.h"

#include <ATen/core/grad_mode.h>
#include <torch/library.h>

#include "torch/operator_calls.h"

namespace tda {
namespace {

constexpr std::string_view kScreening = "automatic";  // of C++ callers

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
                                            bool statistics, TDA_SCREENING_PARAMETERS) {
  const ScreeningArguments screen{screening, screening_counters};
  return attend({q, k, std::nullopt, std::nullopt, v, per_head("beta", beta, q), std::nullopt, kappa, power, normalize,
                 nullptr, screen},
                statistics);
}

std::tuple<at::Tensor, at::Tensor> two_views(const at::Tensor& q1, const at::Tensor& k1, const at::Tensor& q2,
                                             const at::Tensor& k2, const at::Tensor& v, const at::Tensor& lam,
                                             const at::Tensor& beta, double kappa, double power, bool normalize,
                                             bool statistics, TDA_SCREENING_PARAMETERS) {
  const ScreeningArguments screen{screening, screening_counters};
  return attend({q1, k1, q2, k2, v, per_head("beta", beta, q1), per_head("lam", lam, q1), kappa, power, normalize,
                 nullptr, screen},
                statistics);
}

// (total, heads, dim) as the operators' (1, heads, total, dim).
at::Tensor unpacked_layout(const char* name, const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.dim() == 3, name, ": expected 3 dimensions (total length, heads, dim), got shape ",
                    x.sym_sizes());
  return x.transpose(0, 1).unsqueeze(0);
}

// The caller's upper bounds of the documents' lengths, and no more than the total lengths. No document has more queries
// than keys, so the bound of the keys serves where there is none for queries. Borrows the offsets.
PackedArguments packed_arguments(const at::Tensor& q, const at::Tensor& k, const at::Tensor& cu_seqlens_q,
                                 const at::Tensor& cu_seqlens_k, const std::optional<c10::SymInt>& max_seqlen_q,
                                 const std::optional<c10::SymInt>& max_seqlen_k) {
  const auto bound = [](const char* name, const std::optional<c10::SymInt>& length, const c10::SymInt& otherwise,
                        const c10::SymInt& total) {
    TORCH_CHECK_VALUE(!length || *length >= 0, name, ": expected 0 or more, or None, got ", *length);
    return length.value_or(otherwise).min(total);
  };
  const c10::SymInt longest_key = bound("max_seqlen_k", max_seqlen_k, k.sym_size(2), k.sym_size(2));
  const c10::SymInt longest_query = bound("max_seqlen_q", max_seqlen_q, longest_key, q.sym_size(2));
  return {cu_seqlens_q, cu_seqlens_k, longest_query.min(longest_key), longest_key};
}

// Back from (1, heads, total, dim) and (1, heads, total).
std::tuple<at::Tensor, at::Tensor> attend_packed(const AttentionArguments& a, bool statistics) {
  const auto [output, survivors] = attend(a, statistics);
  return {output.squeeze(0).transpose(0, 1), statistics ? survivors.squeeze(0) : survivors};
}

// The dispatcher recognizes symbolic lengths by value only.
// NOLINTBEGIN(performance-unnecessary-value-param)
std::tuple<at::Tensor, at::Tensor> one_view_varlen(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                   const at::Tensor& cu_seqlens_q, const at::Tensor& cu_seqlens_k,
                                                   const at::Tensor& beta, std::optional<c10::SymInt> max_seqlen_q,
                                                   std::optional<c10::SymInt> max_seqlen_k, double kappa, double power,
                                                   bool normalize, bool statistics, TDA_SCREENING_PARAMETERS) {
  const ScreeningArguments screen{screening, screening_counters};
  const at::Tensor q1 = unpacked_layout("q", q), k1 = unpacked_layout("k", k), values = unpacked_layout("v", v);
  const PackedArguments packed = packed_arguments(q1, k1, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k);
  return attend_packed({q1, k1, std::nullopt, std::nullopt, values, per_head("beta", beta, q1), std::nullopt, kappa,
                        power, normalize, &packed, screen},
                       statistics);
}

std::tuple<at::Tensor, at::Tensor> two_views_varlen(const at::Tensor& q1, const at::Tensor& k1, const at::Tensor& q2,
                                                    const at::Tensor& k2, const at::Tensor& v,
                                                    const at::Tensor& cu_seqlens_q, const at::Tensor& cu_seqlens_k,
                                                    const at::Tensor& lam, const at::Tensor& beta,
                                                    std::optional<c10::SymInt> max_seqlen_q,
                                                    std::optional<c10::SymInt> max_seqlen_k, double kappa, double power,
                                                    bool normalize, bool statistics, TDA_SCREENING_PARAMETERS) {
  const ScreeningArguments screen{screening, screening_counters};
  const at::Tensor first_q = unpacked_layout("q1", q1), first_k = unpacked_layout("k1", k1);
  const at::Tensor second_q = unpacked_layout("q2", q2), second_k = unpacked_layout("k2", k2);
  const at::Tensor values = unpacked_layout("v", v);
  const PackedArguments packed =
      packed_arguments(first_q, first_k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k);
  return attend_packed({first_q, first_k, second_q, second_k, values, per_head("beta", beta, first_q),
                        per_head("lam", lam, first_q), kappa, power, normalize, &packed, screen},
                       statistics);
}
// NOLINTEND(performance-unnecessary-value-param)

}  // namespace

TORCH_LIBRARY_IMPL(threshold_attention, CompositeImplicitAutograd, library) {
  library.impl("threshold_rela", &one_view);
  library.impl("differential_threshold_rela", &two_views);
  library.impl("threshold_rela_varlen", &one_view_varlen);
  library.impl("differential_threshold_rela_varlen", &two_views_varlen);
}

at::Tensor threshold_rela(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& beta,
                          const ThresholdOptions& o) {
  return std::get<0>(one_view(q, k, v, beta, o.kappa, o.power, o.normalize, false, kScreening, o.screening_counters));
}

at::Tensor differential_threshold_rela(const at::Tensor& q1, const at::Tensor& k1, const at::Tensor& q2,
                                       const at::Tensor& k2, const at::Tensor& v, const at::Tensor& lambda,
                                       const at::Tensor& beta, const ThresholdOptions& o) {
  return std::get<0>(two_views(q1, k1, q2, k2, v, lambda, beta, o.kappa, o.power, o.normalize, false, kScreening,
                               o.screening_counters));
}

at::Tensor threshold_rela_varlen(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const Documents& documents, const at::Tensor& beta, const ThresholdOptions& o) {
  return std::get<0>(one_view_varlen(q, k, v, documents.cu_seqlens_q, documents.cu_seqlens_k, beta,
                                     documents.max_seqlen_q, documents.max_seqlen_k, o.kappa, o.power, o.normalize,
                                     false, kScreening, o.screening_counters));
}

at::Tensor differential_threshold_rela_varlen(const at::Tensor& q1, const at::Tensor& k1, const at::Tensor& q2,
                                              const at::Tensor& k2, const at::Tensor& v, const Documents& documents,
                                              const at::Tensor& lambda, const at::Tensor& beta,
                                              const ThresholdOptions& o) {
  return std::get<0>(two_views_varlen(q1, k1, q2, k2, v, documents.cu_seqlens_q, documents.cu_seqlens_k, lambda, beta,
                                      documents.max_seqlen_q, documents.max_seqlen_k, o.kappa, o.power, o.normalize,
                                      false, kScreening, o.screening_counters));
}

OutputAndSurvivors threshold_rela_with_survivors(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                                 const at::Tensor& beta, const ThresholdOptions& o) {
  auto [output, survivors] =
      one_view(q, k, v, beta, o.kappa, o.power, o.normalize, true, kScreening, o.screening_counters);
  return {output, survivors};
}

OutputAndSurvivors differential_threshold_rela_with_survivors(const at::Tensor& q1, const at::Tensor& k1,
                                                              const at::Tensor& q2, const at::Tensor& k2,
                                                              const at::Tensor& v, const at::Tensor& lambda,
                                                              const at::Tensor& beta, const ThresholdOptions& o) {
  auto [output, survivors] =
      two_views(q1, k1, q2, k2, v, lambda, beta, o.kappa, o.power, o.normalize, true, kScreening, o.screening_counters);
  return {output, survivors};
}

}  // namespace tda
