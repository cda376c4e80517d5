// The operators on CPU tensors: floor 1 over raw pointers, PyTorch's thread count.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "torch/operator_bodies.h"

namespace tda {
namespace {

// Tasks of floor 1 on the threads that PyTorch computes with: a second pool would fight them for the cores.
void run_on_torch_threads(void* /*context*/, int count, void (*task)(void* argument, int index), void* argument) {
  at::parallel_for(0, count, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t index = begin; index < end; ++index) task(argument, static_cast<int>(index));
  });
}

constexpr TaskRunner kTorchThreads{run_on_torch_threads, nullptr};

AttentionOptions cpu_options(const AttentionArguments& arguments) {
  AttentionOptions options = attention_options(arguments);
  options.threads = at::get_num_threads();
  options.task_runner = &kTorchThreads;
  return options;
}

struct Cpu {
  static AttentionOptions options(const AttentionArguments& arguments) { return cpu_options(arguments); }
  static constexpr auto forward_workspace_bytes = attention_forward_workspace_bytes;
  static constexpr auto backward_workspace_bytes = attention_backward_workspace_bytes;
  static Status forward(const ScreeningArguments& screening, const AttentionShape& shape,
                        const AttentionOptions& options, const AttentionInputs& inputs, const ForwardOutputs& outputs,
                        void* workspace, std::size_t workspace_bytes, const PackedDocuments* documents) {
    clear_counters(screening);
    return attention_forward(shape, options, inputs, outputs, workspace, workspace_bytes, documents);
  }
  static constexpr auto backward = attention_backward;
};

ForwardResult attend(const AttentionArguments& arguments, bool save_index, bool statistics) {
  check_arguments(arguments);
  if (arguments.packed) check_documents(*arguments.packed, attention_shape(arguments));
  check_finite("beta", arguments.beta);
  if (arguments.views() == 2) check_finite("lam", *arguments.lam);
  return run_forward<Cpu>(arguments, save_index, statistics);
}

BackwardResult differentiate(const at::Tensor& d_output, const AttentionArguments& arguments, const at::Tensor& index,
                             GradientMask mask) {
  check_arguments(arguments);
  if (arguments.packed) check_documents(*arguments.packed, attention_shape(arguments));
  return run_backward<Cpu>(d_output, arguments, index, mask);
}

ForwardResult forward_cpu(TDA_ATTENTION_PARAMETERS, double kappa, double power, bool normalize, bool save_index,
                          bool statistics, TDA_SCREENING_PARAMETERS) {
  return attend({q1, k1, q2, k2, v, beta, lam, kappa, power, normalize, nullptr, {screening, screening_counters}},
                save_index, statistics);
}

BackwardResult backward_cpu(const at::Tensor& d_output, TDA_ATTENTION_PARAMETERS, const at::Tensor& index, double kappa,
                            double power, bool normalize, GradientMask mask) {
  return differentiate(d_output, {q1, k1, q2, k2, v, beta, lam, kappa, power, normalize}, index, mask);
}

ForwardResult forward_packed_cpu(TDA_ATTENTION_PARAMETERS, TDA_PACKED_PARAMETERS, double kappa, double power,
                                 bool normalize, bool save_index, bool statistics, TDA_SCREENING_PARAMETERS) {
  const PackedArguments packed{cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k};
  return attend({q1, k1, q2, k2, v, beta, lam, kappa, power, normalize, &packed, {screening, screening_counters}},
                save_index, statistics);
}

BackwardResult backward_packed_cpu(const at::Tensor& d_output, TDA_ATTENTION_PARAMETERS, TDA_PACKED_PARAMETERS,
                                   const at::Tensor& index, double kappa, double power, bool normalize,
                                   GradientMask mask) {
  const PackedArguments packed{cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k};
  return differentiate(d_output, {q1, k1, q2, k2, v, beta, lam, kappa, power, normalize, &packed}, index, mask);
}

}  // namespace

TORCH_LIBRARY_IMPL(threshold_attention, CPU, library) {
  library.impl("forward", &forward_cpu);
  library.impl("backward", &backward_cpu);
  library.impl("forward_packed", &forward_packed_cpu);
  library.impl("backward_packed", &backward_packed_cpu);
}

}  // namespace tda
