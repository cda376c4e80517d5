// The operators on CUDA tensors: floor 1 on the tensors' device and PyTorch's current stream. Nothing waits for the
// device.
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "tda/attention_cuda.h"
#include "torch/operator_bodies.h"

namespace tda {
namespace {

CudaStream current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

struct Cuda {
  static AttentionOptions options(const AttentionArguments& arguments) { return attention_options(arguments); }
  static constexpr auto forward_workspace_bytes = attention_cuda_forward_workspace_bytes;
  static constexpr auto backward_workspace_bytes = attention_cuda_backward_workspace_bytes;
  static Status forward(const ScreeningArguments& screening, const AttentionShape& shape,
                        const AttentionOptions& options, const AttentionInputs& inputs, const ForwardOutputs& outputs,
                        void* workspace, std::size_t workspace_bytes, const PackedDocuments* documents) {
    return attention_cuda_forward(shape, options, inputs, outputs, workspace, workspace_bytes, current_stream(),
                                  cuda_attention_options(screening), documents);
  }
  static Status backward(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
                         const ConstTensor& d_output, const void* survivor_index, const BackwardOutputs& outputs,
                         void* workspace, std::size_t workspace_bytes, const PackedDocuments* documents) {
    return attention_cuda_backward(shape, options, inputs, d_output, survivor_index, outputs, workspace,
                                   workspace_bytes, current_stream(), {}, documents);
  }
};

ForwardResult attend(const AttentionArguments& arguments, bool save_index, bool statistics) {
  check_arguments(arguments);
  const c10::cuda::CUDAGuard device(arguments.q1.device());
  return run_forward<Cuda>(arguments, save_index, statistics);
}

BackwardResult differentiate(const at::Tensor& d_output, const AttentionArguments& arguments, const at::Tensor& index,
                             GradientMask mask) {
  check_arguments(arguments);
  const c10::cuda::CUDAGuard device(arguments.q1.device());
  return run_backward<Cuda>(d_output, arguments, index, mask);
}

ForwardResult forward_cuda(TDA_ATTENTION_PARAMETERS, double kappa, double power, bool normalize, bool save_index,
                           bool statistics, TDA_SCREENING_PARAMETERS) {
  return attend({q1, k1, q2, k2, v, beta, lam, kappa, power, normalize, nullptr, {screening, screening_counters}},
                save_index, statistics);
}

BackwardResult backward_cuda(const at::Tensor& d_output, TDA_ATTENTION_PARAMETERS, const at::Tensor& index,
                             double kappa, double power, bool normalize, GradientMask mask) {
  return differentiate(d_output, {q1, k1, q2, k2, v, beta, lam, kappa, power, normalize}, index, mask);
}

ForwardResult forward_packed_cuda(TDA_ATTENTION_PARAMETERS, TDA_PACKED_PARAMETERS, double kappa, double power,
                                  bool normalize, bool save_index, bool statistics, TDA_SCREENING_PARAMETERS) {
  const PackedArguments packed{cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k};
  return attend({q1, k1, q2, k2, v, beta, lam, kappa, power, normalize, &packed, {screening, screening_counters}},
                save_index, statistics);
}

BackwardResult backward_packed_cuda(const at::Tensor& d_output, TDA_ATTENTION_PARAMETERS, TDA_PACKED_PARAMETERS,
                                    const at::Tensor& index, double kappa, double power, bool normalize,
                                    GradientMask mask) {
  const PackedArguments packed{cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k};
  return differentiate(d_output, {q1, k1, q2, k2, v, beta, lam, kappa, power, normalize, &packed}, index, mask);
}

}  // namespace

TORCH_LIBRARY_IMPL(threshold_attention, CUDA, library) {
  library.impl("forward", &forward_cuda);
  library.impl("backward", &backward_cuda);
  library.impl("forward_packed", &forward_packed_cuda);
  library.impl("backward_packed", &backward_packed_cuda);
}

}  // namespace tda
