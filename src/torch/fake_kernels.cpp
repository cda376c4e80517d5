// Shapes, data types and strides of what the operators return, for torch.compile and the meta device.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "torch/operator_calls.h"

namespace tda {
namespace {

at::Tensor no_elements(const at::TensorOptions& options) { return at::empty_symint({c10::SymInt(0)}, options); }

// The index has a size that floor 1 alone knows, so a symbolic shape is specialized where an index is saved.
std::int64_t index_bytes(const AttentionArguments& a) {
  const auto size = [](const at::Tensor& x, std::int64_t dim) { return x.sym_size(dim).guard_int(__FILE__, __LINE__); };
  const AttentionShape shape{size(a.q1, 0), size(a.q1, 1), size(a.k1, 1), size(a.q1, 2),
                             size(a.k1, 2), size(a.q1, 3), size(a.v, 3)};
  return saved_index_bytes(shape, attention_options(a));
}

ForwardResult forward_fake(TDA_ATTENTION_PARAMETERS, double kappa, double power, bool normalize, bool save_index,
                           bool statistics) {
  const AttentionArguments arguments{q1, k1, q2, k2, v, beta, lam, kappa, power, normalize};
  check_arguments(arguments);
  at::Tensor survivors = no_elements(q1.options().dtype(at::kInt));
  if (statistics) {
    survivors = at::empty_symint({q1.sym_size(0), q1.sym_size(1), q1.sym_size(2)}, q1.options().dtype(at::kInt));
  }
  at::Tensor index = no_elements(q1.options().dtype(at::kByte));
  if (save_index) index = at::empty({index_bytes(arguments)}, q1.options().dtype(at::kByte));
  return {empty_stored_like(q1, v.sym_size(3)), survivors, index};
}

BackwardResult backward_fake(const at::Tensor& /*d_output*/, TDA_ATTENTION_PARAMETERS, const at::Tensor& /*index*/,
                             double kappa, double power, bool normalize, GradientMask mask) {
  const AttentionArguments arguments{q1, k1, q2, k2, v, beta, lam, kappa, power, normalize};
  check_arguments(arguments);
  const bool two_views = arguments.views() == 2;
  const auto gradient = [](bool wanted, const at::Tensor& x) {
    return wanted ? empty_stored_like(x, x.sym_size(3)) : no_elements(x.options());
  };
  const auto parameter = [&](bool wanted) {
    return wanted ? at::empty_symint({q1.sym_size(1)}, beta.options()) : no_elements(beta.options());
  };
  return {gradient(mask[0], q1),
          gradient(mask[1], k1),
          gradient(mask[2] && two_views, q2.value_or(q1)),
          gradient(mask[3] && two_views, k2.value_or(k1)),
          gradient(mask[4], v),
          parameter(mask[5]),
          parameter(mask[6] && two_views)};
}

}  // namespace

TORCH_LIBRARY_IMPL(threshold_attention, Meta, library) {
  library.impl("forward", &forward_fake);
  library.impl("backward", &backward_fake);
}

}  // namespace tda
