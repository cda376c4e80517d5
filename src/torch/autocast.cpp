// Under autocast q, k and v are cast to the autocast dtype; beta and lam keep fp32, as floor 1 wants them.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "torch/operator_calls.h"

namespace tda {
namespace {

template <c10::DispatchKey key, c10::DeviceType device>
ForwardResult attend(const AttentionArguments& a, bool save_index, bool statistics) {
  const c10::impl::ExcludeDispatchKeyGuard once(key);
  const auto cast = [](const auto& x) {
    return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), x, device);
  };
  const at::Tensor q1 = cast(a.q1), k1 = cast(a.k1), v = cast(a.v);
  const std::optional<at::Tensor> q2 = cast(a.q2), k2 = cast(a.k2);
  return call_forward({q1, k1, q2, k2, v, a.beta, a.lam, a.kappa, a.power, a.normalize, a.packed, a.screening},
                      save_index, statistics);
}

template <c10::DispatchKey key, c10::DeviceType device>
ForwardResult forward_autocast(TDA_ATTENTION_PARAMETERS, double kappa, double power, bool normalize, bool save_index,
                               bool statistics, TDA_SCREENING_PARAMETERS) {
  return attend<key, device>(
      {q1, k1, q2, k2, v, beta, lam, kappa, power, normalize, nullptr, {screening, screening_counters}}, save_index,
      statistics);
}

template <c10::DispatchKey key, c10::DeviceType device>
ForwardResult forward_packed_autocast(TDA_ATTENTION_PARAMETERS, TDA_PACKED_PARAMETERS, double kappa, double power,
                                      bool normalize, bool save_index, bool statistics, TDA_SCREENING_PARAMETERS) {
  const PackedArguments packed{cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k};
  return attend<key, device>(
      {q1, k1, q2, k2, v, beta, lam, kappa, power, normalize, &packed, {screening, screening_counters}}, save_index,
      statistics);
}

}  // namespace

TORCH_LIBRARY_IMPL(threshold_attention, AutocastCPU, library) {
  library.impl("forward", &forward_autocast<c10::DispatchKey::AutocastCPU, at::kCPU>);
  library.impl("forward_packed", &forward_packed_autocast<c10::DispatchKey::AutocastCPU, at::kCPU>);
}

TORCH_LIBRARY_IMPL(threshold_attention, AutocastCUDA, library) {
  library.impl("forward", &forward_autocast<c10::DispatchKey::AutocastCUDA, at::kCUDA>);
  library.impl("forward_packed", &forward_packed_autocast<c10::DispatchKey::AutocastCUDA, at::kCUDA>);
}

}  // namespace tda
