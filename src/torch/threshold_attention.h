// The PyTorch operators of floor 2 as C++ functions, for floor 3.
//
// Both are differentiable in every tensor argument and dispatch on the device of `q`. Definitions and promises:
// include/tda/attention.h and docs/operator.md.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "tda/attention.h"

namespace tda {

struct ThresholdOptions {
  double kappa = 1.0;
  double power = 2.0;
  bool normalize = true;
  // int32 (H_q, kScreeningCounters) on the device of q, zeros at first, kept from call to call of one layer: by them
  // the CUDA forward chooses the heads that it screens (tda/attention_cuda.h). They change its time, never a result.
  std::optional<at::Tensor> screening_counters = std::nullopt;
};

// TRA. q: (B, H_q, T_q, D); k: (B, H_kv, T_k, D); v: (B, H_kv, T_k, D_v); beta: 0-d or (H_q). Returns (B, H_q, T_q,
// D_v).
TDA_PUBLIC at::Tensor threshold_rela(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                     const at::Tensor& beta, const ThresholdOptions& options = {});

// TDA. lambda: 0-d or (H_q), clamped to [0, 1] with gradient 1 on the closed interval.
TDA_PUBLIC at::Tensor differential_threshold_rela(const at::Tensor& q1, const at::Tensor& k1, const at::Tensor& q2,
                                                  const at::Tensor& k2, const at::Tensor& v, const at::Tensor& lambda,
                                                  const at::Tensor& beta, const ThresholdOptions& options = {});

// Documents packed along the length. cu_seqlens_q, cu_seqlens_k: int32 (documents + 1) on the device of q, from 0,
// never decreasing, to the total lengths of q and k; document d owns the rows cu_seqlens[d] to cu_seqlens[d + 1] - 1,
// and has at most as many queries as keys. max_seqlen_q, max_seqlen_k: upper bounds of the documents' lengths; by
// default the total lengths. On CUDA they bound launches and memory, and the host reads no offset.
struct Documents {
  at::Tensor cu_seqlens_q;
  at::Tensor cu_seqlens_k;
  std::optional<c10::SymInt> max_seqlen_q;
  std::optional<c10::SymInt> max_seqlen_k;
};

// TRA and TDA inside every document. q: (total_q, H_q, D); k: (total_k, H_kv, D); v: (total_k, H_kv, D_v). Returns
// (total_q, H_q, D_v).
TDA_PUBLIC at::Tensor threshold_rela_varlen(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                            const Documents& documents, const at::Tensor& beta,
                                            const ThresholdOptions& options = {});

TDA_PUBLIC at::Tensor differential_threshold_rela_varlen(const at::Tensor& q1, const at::Tensor& k1,
                                                         const at::Tensor& q2, const at::Tensor& k2,
                                                         const at::Tensor& v, const Documents& documents,
                                                         const at::Tensor& lambda, const at::Tensor& beta,
                                                         const ThresholdOptions& options = {});

// threshold_rela and differential_threshold_rela with int32 (B, H_q, T_q): per row, the pairs with a non-zero weight in
// any view.
struct OutputAndSurvivors {
  at::Tensor output;
  at::Tensor survivors;
};

TDA_PUBLIC OutputAndSurvivors threshold_rela_with_survivors(const at::Tensor& q, const at::Tensor& k,
                                                            const at::Tensor& v, const at::Tensor& beta,
                                                            const ThresholdOptions& options = {});

TDA_PUBLIC OutputAndSurvivors differential_threshold_rela_with_survivors(const at::Tensor& q1, const at::Tensor& k1,
                                                                         const at::Tensor& q2, const at::Tensor& k2,
                                                                         const at::Tensor& v, const at::Tensor& lambda,
                                                                         const at::Tensor& beta,
                                                                         const ThresholdOptions& options = {});

}  // namespace tda
