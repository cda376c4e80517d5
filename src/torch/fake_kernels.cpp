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
  const std::optional<PackedDocuments> documents = attention_documents(a);
  return saved_index_bytes(shape, attention_options(a), documents ? &*documents : nullptr);
}

ForwardResult attend(const AttentionArguments& arguments, bool save_index, bool statistics) {
  check_arguments(arguments);
  const at::Tensor& q1 = arguments.q1;
  at::Tensor survivors = no_elements(q1.options().dtype(at::kInt));
  if (statistics) {
    survivors = at::empty_symint({q1.sym_size(0), q1.sym_size(1), q1.sym_size(2)}, q1.options().dtype(at::kInt));
  }
  at::Tensor index = no_elements(q1.options().dtype(at::kByte));
  if (save_index) index = at::empty({index_bytes(arguments)}, q1.options().dtype(at::kByte));
  return {empty_stored_like(q1, arguments.v.sym_size(3)), survivors, index};
}

BackwardResult differentiate(const AttentionArguments& arguments, GradientMask mask) {
  check_arguments(arguments);
  const bool two_views = arguments.views() == 2;
  const auto gradient = [](bool wanted, const at::Tensor& x) {
    return wanted ? empty_stored_like(x, x.sym_size(3)) : no_elements(x.options());
  };
  const auto parameter = [&](bool wanted) {
    return wanted ? at::empty_symint({arguments.q1.sym_size(1)}, arguments.beta.options())
                  : no_elements(arguments.beta.options());
  };
  return {gradient(mask[0], arguments.q1),
          gradient(mask[1], arguments.k1),
          gradient(mask[2] && two_views, arguments.q2.value_or(arguments.q1)),
          gradient(mask[3] && two_views, arguments.k2.value_or(arguments.k1)),
          gradient(mask[4], arguments.v),
          parameter(mask[5]),
          parameter(mask[6] && two_views)};
}

ForwardResult forward_fake(TDA_ATTENTION_PARAMETERS, double kappa, double power, bool normalize, bool save_index,
                           bool statistics, TDA_SCREENING_PARAMETERS) {
  return attend({q1, k1, q2, k2, v, beta, lam, kappa, power, normalize, nullptr, {screening, screening_counters}},
                save_index, statistics);
}

BackwardResult backward_fake(const at::Tensor& /*d_output*/, TDA_ATTENTION_PARAMETERS, const at::Tensor& /*index*/,
                             double kappa, double power, bool normalize, GradientMask mask) {
  return differentiate({q1, k1, q2, k2, v, beta, lam, kappa, power, normalize}, mask);
}

ForwardResult forward_packed_fake(TDA_ATTENTION_PARAMETERS, TDA_PACKED_PARAMETERS, double kappa, double power,
                                  bool normalize, bool save_index, bool statistics, TDA_SCREENING_PARAMETERS) {
  const PackedArguments packed{cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k};
  return attend({q1, k1, q2, k2, v, beta, lam, kappa, power, normalize, &packed, {screening, screening_counters}},
                save_index, statistics);
}

BackwardResult backward_packed_fake(const at::Tensor& /*d_output*/, TDA_ATTENTION_PARAMETERS, TDA_PACKED_PARAMETERS,
                                    const at::Tensor& /*index*/, double kappa, double power, bool normalize,
                                    GradientMask mask) {
  const PackedArguments packed{cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k};
  return differentiate({q1, k1, q2, k2, v, beta, lam, kappa, power, normalize, &packed}, mask);
}

}  // namespace

TORCH_LIBRARY_IMPL(threshold_attention, Meta, library) {
  library.impl("forward", &forward_fake);
  library.impl("backward", &backward_fake);
  library.impl("forward_packed", &forward_packed_fake);
  library.impl("backward_packed", &backward_packed_fake);
}

}  // namespace tda
