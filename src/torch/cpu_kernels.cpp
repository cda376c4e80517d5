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
  static std::size_t forward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options) {
    return attention_forward_workspace_bytes(shape, options);
  }
  static std::size_t backward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options) {
    return attention_backward_workspace_bytes(shape, options);
  }
  static Status forward(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
                        const ForwardOutputs& outputs, void* workspace, std::size_t workspace_bytes) {
    return attention_forward(shape, options, inputs, outputs, workspace, workspace_bytes);
  }
  static Status backward(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
                         const ConstTensor& d_output, const void* survivor_index, const BackwardOutputs& outputs,
                         void* workspace, std::size_t workspace_bytes) {
    return attention_backward(shape, options, inputs, d_output, survivor_index, outputs, workspace, workspace_bytes);
  }
};

ForwardResult forward_cpu(TDA_ATTENTION_PARAMETERS, double kappa, double power, bool normalize, bool save_index,
                          bool statistics) {
  const AttentionArguments arguments{q1, k1, q2, k2, v, beta, lam, kappa, power, normalize};
  check_arguments(arguments);
  check_finite("beta", beta);
  if (arguments.views() == 2) check_finite("lam", *lam);
  return run_forward<Cpu>(arguments, save_index, statistics);
}

BackwardResult backward_cpu(const at::Tensor& d_output, TDA_ATTENTION_PARAMETERS, const at::Tensor& index, double kappa,
                            double power, bool normalize, GradientMask mask) {
  const AttentionArguments arguments{q1, k1, q2, k2, v, beta, lam, kappa, power, normalize};
  check_arguments(arguments);
  return run_backward<Cpu>(d_output, arguments, index, mask);
}

}  // namespace

TORCH_LIBRARY_IMPL(threshold_attention, CPU, library) {
  library.impl("forward", &forward_cpu);
  library.impl("backward", &backward_cpu);
}

}  // namespace tda
