// The arguments that the operators `forward` and `backward` share, and their checks.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "tda/attention.h"

namespace tda {

// Borrowed references: valid during one operator call. Second view and lam are absent for TRA, present for TDA.
struct AttentionArguments {
  const at::Tensor& q1;
  const at::Tensor& k1;
  const std::optional<at::Tensor>& q2;
  const std::optional<at::Tensor>& k2;
  const at::Tensor& v;
  const at::Tensor& beta;
  const std::optional<at::Tensor>& lam;
  double kappa;
  double power;
  bool normalize;

  int views() const { return q2.has_value() ? 2 : 1; }
};

// Everything that shapes, data types, devices and options alone decide: usable on fake tensors with symbolic sizes.
// Throws c10::ValueError that names the argument, its value and what was expected.
void check_arguments(const AttentionArguments& arguments);

// beta (or lam) as the user gave it to a query of `query_heads` heads: 0-d or (H_q,).
void check_per_head(const char* name, const at::Tensor& parameter, const at::Tensor& q);

// beta and lam must be finite. Reads values, so: CPU tensors only.
void check_finite(const char* name, const at::Tensor& parameter);

AttentionShape attention_shape(const AttentionArguments& arguments);
AttentionOptions attention_options(const AttentionArguments& arguments);

// Bytes of the index tensor that forward saves, on every device alike: the fake kernel, which must foretell the size,
// does not learn the device of its tensors.
std::int64_t saved_index_bytes(const AttentionShape& shape, const AttentionOptions& options);

// An uninitialized tensor of x's batch, heads and length with `dim` elements per row, stored in x's order of heads and
// rows, so that (B, T, H, D) storage stays (B, T, H, D) storage.
at::Tensor empty_stored_like(const at::Tensor& x, const c10::SymInt& dim);

}  // namespace tda
