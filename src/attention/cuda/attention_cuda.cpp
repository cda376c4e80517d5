// The entry points of include/tda/attention_cuda.h: checks, then the fastest kernel family that takes the call.
#include "tda/attention_cuda.h"

#include <cuda_runtime_api.h>

#include <algorithm>

#include "attention/cuda/argument_checks.h"
#include "attention/cuda/common/kernel_family.h"
#include "attention/cuda/common/survivor_index.h"

namespace tda {
namespace {

// 90 for sm_90; a Status when there is no usable device.
Status current_compute_capability(int& capability) {
  int device = 0, major = 0, minor = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (error != cudaSuccess) return {std::string("CUDA device: ") + cudaGetErrorString(error)};
  capability = major * 10 + minor;
  if (capability < 80) {
    return {"CUDA device has compute capability " + std::to_string(major) + "." + std::to_string(minor) +
            ", expected 8.0 or higher"};
  }
  return {};
}

// For a call that the screen does not serve.
Status clear_screening_counters(const AttentionShape& shape, const CudaAttentionOptions& choice, CudaStream stream) {
  if (!choice.screening_counters) return {};
  const std::size_t bytes = static_cast<std::size_t>(shape.query_heads) * sizeof(ScreeningCounters);
  const cudaError_t error = cudaMemsetAsync(choice.screening_counters, 0, bytes, static_cast<cudaStream_t>(stream));
  if (error == cudaSuccess) return {};
  return {std::string("attention_cuda_forward: memset of screening_counters failed: ") + cudaGetErrorString(error)};
}

}  // namespace

bool attention_cuda_built() { return true; }

std::size_t attention_cuda_survivor_index_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                                const PackedDocuments* documents) {
  return cuda::survivor_index_bytes(shape, options, documents);
}

std::size_t attention_cuda_forward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                                   const PackedDocuments* documents) {
  std::size_t bytes = cuda::portable::forward_workspace_bytes(shape, options, documents);
#if TDA_CUDA_SM90
  bytes = std::max(bytes, cuda::sm90::forward_workspace_bytes(shape, options, documents));
#endif
  return bytes;
}

std::size_t attention_cuda_backward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                                    const PackedDocuments* documents) {
  return cuda::portable::backward_workspace_bytes(shape, options, documents);
}

Status attention_cuda_forward(const AttentionShape& shape, const AttentionOptions& options,
                              const AttentionInputs& inputs, const ForwardOutputs& outputs, void* workspace,
                              std::size_t workspace_bytes, CudaStream stream, const CudaAttentionOptions& choice,
                              const PackedDocuments* documents) {
  if (Status s = cuda::check_call(shape, options, inputs, documents); !s.ok()) return s;
  if (Status s = cuda::check_outputs(shape, outputs); !s.ok()) return s;
  if (Status s = cuda::check_index(outputs.survivor_index); !s.ok()) return s;
  if (Status s = cuda::check_screening(choice); !s.ok()) return s;
  if (cuda::is_empty(shape) || shape.query_length == 0) return clear_screening_counters(shape, choice, stream);
  const std::size_t needed = attention_cuda_forward_workspace_bytes(shape, options, documents);
  if (Status s = cuda::check_workspace(workspace, workspace_bytes, needed); !s.ok()) return s;
  int capability = 0;
  if (Status s = current_compute_capability(capability); !s.ok()) return s;
  const cuda::ForwardCall call{shape, options, inputs, outputs, documents, workspace, stream, choice};
#if TDA_CUDA_SM90
  if (choice.kernels == CudaKernels::kAutomatic && cuda::sm90::forward_supports(call, capability)) {
    return cuda::sm90::forward(call);
  }
#endif
  if (Status s = clear_screening_counters(shape, choice, stream); !s.ok()) return s;
  return cuda::portable::forward(call);
}

Status attention_cuda_backward(const AttentionShape& shape, const AttentionOptions& options,
                               const AttentionInputs& inputs, const ConstTensor& d_output, const void* survivor_index,
                               const BackwardOutputs& outputs, void* workspace, std::size_t workspace_bytes,
                               CudaStream stream, const CudaAttentionOptions& choice,
                               const PackedDocuments* documents) {
  if (Status s = cuda::check_call(shape, options, inputs, documents); !s.ok()) return s;
  if (cuda::is_empty(shape)) return {};
  if (!d_output.data && shape.query_length > 0) return {"d_output is null, expected a tensor"};
  if (!survivor_index && shape.query_length > 0) {
    return {"survivor_index is null, expected what attention_cuda_forward wrote"};
  }
  if (Status s = cuda::check_index(survivor_index); !s.ok()) return s;
  const std::size_t needed = attention_cuda_backward_workspace_bytes(shape, options, documents);
  if (Status s = cuda::check_workspace(workspace, workspace_bytes, needed); !s.ok()) return s;
  int capability = 0;
  if (Status s = current_compute_capability(capability); !s.ok()) return s;
  const cuda::BackwardCall call{shape,   options,   inputs,    d_output, survivor_index,
                                outputs, documents, workspace, stream};
  cuda::portable::DenseBackward dense = nullptr;
#if TDA_CUDA_SM90
  if (choice.kernels == CudaKernels::kAutomatic) dense = cuda::sm90::dense_backward(call, capability);
#endif
  static_cast<void>(choice);
  return cuda::portable::backward(call, dense);
}

}  // namespace tda
