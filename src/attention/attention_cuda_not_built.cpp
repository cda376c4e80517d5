// The entry points of include/tda/attention_cuda.h in a build without CUDA.
#include "tda/attention_cuda.h"

namespace tda {
namespace {

Status not_built() { return {"CUDA is not part of this build, expected a build with TDA_CUDA=ON"}; }

}  // namespace

bool attention_cuda_built() { return false; }

std::size_t attention_cuda_survivor_index_bytes(const AttentionShape&, const AttentionOptions&,
                                                const PackedDocuments*) {
  return 0;
}
std::size_t attention_cuda_forward_workspace_bytes(const AttentionShape&, const AttentionOptions&,
                                                   const PackedDocuments*) {
  return 0;
}
std::size_t attention_cuda_backward_workspace_bytes(const AttentionShape&, const AttentionOptions&,
                                                    const PackedDocuments*) {
  return 0;
}

Status attention_cuda_forward(const AttentionShape&, const AttentionOptions&, const AttentionInputs&,
                              const ForwardOutputs&, void*, std::size_t, CudaStream, const CudaAttentionOptions&,
                              const PackedDocuments*) {
  return not_built();
}

Status attention_cuda_backward(const AttentionShape&, const AttentionOptions&, const AttentionInputs&,
                               const ConstTensor&, const void*, const BackwardOutputs&, void*, std::size_t, CudaStream,
                               const CudaAttentionOptions&, const PackedDocuments*) {
  return not_built();
}

}  // namespace tda
