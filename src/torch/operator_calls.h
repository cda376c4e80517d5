// Typed calls of the operators `forward` and `backward`, or, with packed documents, `forward_packed` and
// `backward_packed`, through PyTorch's dispatcher. Schemas: operator_schemas.cpp and docs/operator.md.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

#include "torch/attention_arguments.h"

namespace tda {

using ForwardResult = std::tuple<at::Tensor, at::Tensor, at::Tensor>;  // output, survivors, index

// dq1, dk1, dq2, dk2, dv, dbeta, dlam; what was not asked for is an empty tensor.
using BackwardResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using GradientMask = std::array<bool, 7>;

ForwardResult call_forward(const AttentionArguments& arguments, bool save_index, bool statistics);

BackwardResult call_backward(const at::Tensor& d_output, const AttentionArguments& arguments, const at::Tensor& index,
                             GradientMask mask);

// The parameter list of `forward` and of `backward` as the dispatcher passes it.
#define TDA_ATTENTION_PARAMETERS                                                                                      \
  const at::Tensor &q1, const at::Tensor &k1, const std::optional<at::Tensor>&q2, const std::optional<at::Tensor>&k2, \
      const at::Tensor &v, const at::Tensor &beta, const std::optional<at::Tensor>&lam

// What `forward_packed` and `backward_packed` have more.
#define TDA_PACKED_PARAMETERS \
  const at::Tensor &cu_seqlens_q, const at::Tensor &cu_seqlens_k, c10::SymInt max_seqlen_q, c10::SymInt max_seqlen_k

// What the forwards take about the screen of the CUDA kernels.
#define TDA_SCREENING_PARAMETERS std::string_view screening, const std::optional<at::Tensor>&screening_counters

using ForwardSignature = ForwardResult(TDA_ATTENTION_PARAMETERS, double kappa, double power, bool normalize,
                                       bool save_index, bool statistics, TDA_SCREENING_PARAMETERS);
using ForwardPackedSignature = ForwardResult(TDA_ATTENTION_PARAMETERS, TDA_PACKED_PARAMETERS, double kappa,
                                             double power, bool normalize, bool save_index, bool statistics,
                                             TDA_SCREENING_PARAMETERS);
using BackwardSignature = BackwardResult(const at::Tensor& d_output, TDA_ATTENTION_PARAMETERS, const at::Tensor& index,
                                         double kappa, double power, bool normalize, GradientMask mask);
using BackwardPackedSignature = BackwardResult(const at::Tensor& d_output, TDA_ATTENTION_PARAMETERS,
                                               TDA_PACKED_PARAMETERS, const at::Tensor& index, double kappa,
                                               double power, bool normalize, GradientMask mask);

}  // namespace tda
