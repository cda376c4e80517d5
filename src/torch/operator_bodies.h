// The bodies of the operators `forward` and `backward`, for any device: memory from PyTorch's allocator, arithmetic
// from floor 1.
//
// Device is a struct of static functions: options(arguments), and forward_workspace_bytes, backward_workspace_bytes,
// forward and backward with the parameters of tda::attention_forward_workspace_bytes and so on; forward has those of
// the screen in front. Arguments have been checked.
#pragma once

#include <ATen/ops/empty.h>
#include <ATen/ops/zero.h>

#include <optional>

#include "torch/operator_calls.h"

namespace tda {

// Floor 1 wants a unit last stride and takes every other stride as it is.
inline at::Tensor with_unit_rows(const at::Tensor& x) {
  return x.stride(3) == 1 || x.size(3) == 1 ? x : x.contiguous();
}

inline ConstTensor view_of(const at::Tensor& x) { return {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2)}; }
inline Tensor mutable_view_of(const at::Tensor& x) {
  return {x.mutable_data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
}

// Keeps the tensors alive whose pointers `inputs` holds.
struct BoundInputs {
  at::Tensor q[2], k[2], v, beta, lam, query_offsets, key_offsets;
  AttentionInputs inputs;
  std::optional<PackedDocuments> packed;

  const PackedDocuments* documents() const { return packed ? &*packed : nullptr; }
};

inline BoundInputs bind_inputs(const AttentionArguments& a) {
  BoundInputs bound;
  bound.q[0] = with_unit_rows(a.q1);
  bound.k[0] = with_unit_rows(a.k1);
  bound.v = with_unit_rows(a.v);
  bound.beta = a.beta.contiguous();
  if (a.views() == 2) {
    bound.q[1] = with_unit_rows(*a.q2);
    bound.k[1] = with_unit_rows(*a.k2);
    bound.lam = a.lam->contiguous();
    bound.inputs.lambda = bound.lam.const_data_ptr();
  }
  for (int view = 0; view < a.views(); ++view) {
    bound.inputs.q[view] = view_of(bound.q[view]);
    bound.inputs.k[view] = view_of(bound.k[view]);
  }
  bound.inputs.v = view_of(bound.v);
  bound.inputs.beta = bound.beta.const_data_ptr();
  bound.packed = attention_documents(a);
  if (bound.packed) {
    bound.query_offsets = a.packed->cu_seqlens_q.contiguous();
    bound.key_offsets = a.packed->cu_seqlens_k.contiguous();
    bound.packed->query_offsets = bound.query_offsets.const_data_ptr<std::int32_t>();
    bound.packed->key_offsets = bound.key_offsets.const_data_ptr<std::int32_t>();
  }
  return bound;
}

inline at::Tensor empty_bytes(std::size_t bytes, const at::Tensor& like) {
  return at::empty({static_cast<std::int64_t>(bytes)}, like.options().dtype(at::kByte));
}

inline std::int64_t index_bytes_of(const AttentionArguments& arguments, const AttentionShape& shape,
                                   const AttentionOptions& options) {
  const std::optional<PackedDocuments> documents = attention_documents(arguments);
  return saved_index_bytes(shape, options, documents ? &*documents : nullptr);
}

// For a call that no screen serves.
inline void clear_counters(const ScreeningArguments& screening) {
  if (screening.counters) screening.counters->zero_();
}

inline void require_ok(const Status& status) { TORCH_CHECK_VALUE(status.ok(), status.message); }

template <class Device>
ForwardResult run_forward(const AttentionArguments& arguments, bool save_index, bool statistics) {
  const AttentionShape shape = attention_shape(arguments);
  const AttentionOptions options = Device::options(arguments);

  at::Tensor output = empty_stored_like(arguments.q1, shape.value_dim);
  at::Tensor survivors = at::empty({0}, arguments.q1.options().dtype(at::kInt));
  if (statistics) {
    survivors = at::empty({shape.batch, shape.query_heads, shape.query_length}, arguments.q1.options().dtype(at::kInt));
  }
  at::Tensor index = empty_bytes(save_index ? index_bytes_of(arguments, shape, options) : 0, arguments.q1);
  if (output.numel() == 0) {
    clear_counters(arguments.screening);
    return {output, survivors, index};
  }

  const BoundInputs bound = bind_inputs(arguments);
  ForwardOutputs outputs;
  outputs.output = mutable_view_of(output);
  if (statistics) outputs.survivors = survivors.mutable_data_ptr<std::int32_t>();
  if (save_index) outputs.survivor_index = index.mutable_data_ptr();
  const at::Tensor workspace =
      empty_bytes(Device::forward_workspace_bytes(shape, options, bound.documents()), arguments.q1);
  require_ok(Device::forward(arguments.screening, shape, options, bound.inputs, outputs, workspace.mutable_data_ptr(),
                             static_cast<std::size_t>(workspace.numel()), bound.documents()));
  return {output, survivors, index};
}

template <class Device>
BackwardResult run_backward(const at::Tensor& d_output, const AttentionArguments& arguments, const at::Tensor& index,
                            const GradientMask& mask) {
  const AttentionShape shape = attention_shape(arguments);
  const AttentionOptions options = Device::options(arguments);
  const std::int64_t index_bytes = index_bytes_of(arguments, shape, options);
  TORCH_CHECK_VALUE(index.numel() == index_bytes, "index: expected the ", index_bytes,
                    " bytes that forward wrote with save_index, got ", index.numel());
  TORCH_CHECK_VALUE(
      d_output.sizes() == at::IntArrayRef({shape.batch, shape.query_heads, shape.query_length, shape.value_dim}) &&
          d_output.scalar_type() == arguments.q1.scalar_type(),
      "d_output: expected the shape and dtype of the output, got ", d_output.sizes(), " ", d_output.scalar_type());

  const bool two_views = arguments.views() == 2;
  const auto gradient = [&](bool wanted, const at::Tensor& x) {
    return wanted ? empty_stored_like(x, x.size(3)) : at::empty({0}, x.options());
  };
  at::Tensor dq1 = gradient(mask[0], arguments.q1), dk1 = gradient(mask[1], arguments.k1),
             dv = gradient(mask[4], arguments.v);
  at::Tensor dq2 = gradient(mask[2] && two_views, arguments.q2.value_or(arguments.q1)),
             dk2 = gradient(mask[3] && two_views, arguments.k2.value_or(arguments.k1));
  at::Tensor dbeta = at::empty({mask[5] ? shape.query_heads : 0}, arguments.beta.options());
  at::Tensor dlam = at::empty({mask[6] && two_views ? shape.query_heads : 0}, arguments.beta.options());
  const BackwardResult result{dq1, dk1, dq2, dk2, dv, dbeta, dlam};
  if (d_output.numel() == 0) {
    for (const at::Tensor* x : {&dq1, &dk1, &dq2, &dk2, &dv, &dbeta, &dlam}) x->zero_();
    return result;
  }

  const BoundInputs bound = bind_inputs(arguments);
  const at::Tensor cotangent = with_unit_rows(d_output);
  BackwardOutputs outputs;
  if (mask[0]) outputs.dq[0] = mutable_view_of(dq1);
  if (mask[1]) outputs.dk[0] = mutable_view_of(dk1);
  if (mask[2] && two_views) outputs.dq[1] = mutable_view_of(dq2);
  if (mask[3] && two_views) outputs.dk[1] = mutable_view_of(dk2);
  if (mask[4]) outputs.dv = mutable_view_of(dv);
  if (mask[5]) outputs.dbeta = dbeta.mutable_data_ptr();
  if (mask[6] && two_views) outputs.dlambda = dlam.mutable_data_ptr();
  const at::Tensor workspace =
      empty_bytes(Device::backward_workspace_bytes(shape, options, bound.documents()), arguments.q1);
  require_ok(Device::backward(shape, options, bound.inputs, view_of(cotangent), index.const_data_ptr(), outputs,
                              workspace.mutable_data_ptr(), static_cast<std::size_t>(workspace.numel()),
                              bound.documents()));
  return result;
}

}  // namespace tda
