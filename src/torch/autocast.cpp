// Under autocast q, k and v are cast to the autocast dtype; beta and lam keep fp32, as floor 1 wants them.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "torch/operator_calls.h"

namespace tda {
namespace {

template <c10::DispatchKey key, c10::DeviceType device>
ForwardResult forward_autocast(TDA_ATTENTION_PARAMETERS, double kappa, double power, bool normalize, bool save_index,
                               bool statistics) {
  const c10::impl::ExcludeDispatchKeyGuard once(key);
  const auto cast = [](const auto& x) {
    return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), x, device);
  };
  const at::Tensor cast_q1 = cast(q1), cast_k1 = cast(k1), cast_v = cast(v);
  const std::optional<at::Tensor> cast_q2 = cast(q2), cast_k2 = cast(k2);
  return call_forward({cast_q1, cast_k1, cast_q2, cast_k2, cast_v, beta, lam, kappa, power, normalize}, save_index,
                      statistics);
}

}  // namespace

TORCH_LIBRARY_IMPL(threshold_attention, AutocastCPU, library) {
  library.impl("forward", &forward_autocast<c10::DispatchKey::AutocastCPU, at::kCPU>);
}

TORCH_LIBRARY_IMPL(threshold_attention, AutocastCUDA, library) {
  library.impl("forward", &forward_autocast<c10::DispatchKey::AutocastCUDA, at::kCUDA>);
}

}  // namespace tda
