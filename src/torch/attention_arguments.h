// The arguments that the operators `forward` and `backward` share, and their checks.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "tda/attention_cuda.h"

namespace tda {

// Packed documents of a call: tensors are (1, heads, total length, dim), document d owns the query rows cu_seqlens_q[d]
// to cu_seqlens_q[d + 1] - 1 and the key rows of cu_seqlens_k alike (tda::PackedDocuments). The lengths are upper
// bounds of the documents' lengths, at least 0 and at most the total lengths.
struct PackedArguments {
  const at::Tensor& cu_seqlens_q;
  const at::Tensor& cu_seqlens_k;
  c10::SymInt max_seqlen_q;
  c10::SymInt max_seqlen_k;
};

// The screen of the CUDA forward (tda::CudaAttentionOptions); the backward does not look at it. Borrowed references.
struct ScreeningArguments {
  static inline const std::optional<at::Tensor> kNoCounters;

  std::string_view choice = "automatic";                    // or "always", "never"
  const std::optional<at::Tensor>& counters = kNoCounters;  // int32 (H_q, kScreeningCounters), replaced by the call
};

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
  const PackedArguments* packed = nullptr;  // null: a batch of equal lengths
  ScreeningArguments screening = {};

  int views() const { return q2.has_value() ? 2 : 1; }
};

// Everything that shapes, data types, devices and options alone decide: usable on fake tensors with symbolic sizes.
// Throws c10::ValueError that names the argument, its value and what was expected.
void check_arguments(const AttentionArguments& arguments);

// cu_seqlens_q and cu_seqlens_k: begin at 0, never decrease, end at the total length; no document longer than
// max_seqlen_q and max_seqlen_k or with more queries than keys. Reads values, so: CPU tensors only. check_arguments has
// passed.
void check_documents(const PackedArguments& packed, const AttentionShape& shape);

// beta (or lam) as the user gave it to a query of `query_heads` heads: 0-d or (H_q,).
void check_per_head(const char* name, const at::Tensor& parameter, const at::Tensor& q);

// beta and lam must be finite. Reads values, so: CPU tensors only.
void check_finite(const char* name, const at::Tensor& parameter);

AttentionShape attention_shape(const AttentionArguments& arguments);
AttentionOptions attention_options(const AttentionArguments& arguments);
CudaAttentionOptions cuda_attention_options(const ScreeningArguments& screening);

// Count and longest lengths; the offsets stay null, because they may lie anywhere or not exist (fake tensors).
std::optional<PackedDocuments> attention_documents(const AttentionArguments& arguments);

// Bytes of the index tensor that forward saves, on every device alike: the fake kernel, which must foretell the size,
// does not learn the device of its tensors.
std::int64_t saved_index_bytes(const AttentionShape& shape, const AttentionOptions& options,
                               const PackedDocuments* documents);

// An uninitialized tensor of x's batch, heads and length with `dim` elements per row, stored in x's order of heads and
// rows, so that (B, T, H, D) storage stays (B, T, H, D) storage.
at::Tensor empty_stored_like(const at::Tensor& x, const c10::SymInt& dim);

}  // namespace tda
