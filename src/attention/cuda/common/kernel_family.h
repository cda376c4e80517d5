// The kernel families behind attention_cuda_forward/backward. Each family is a folder with these functions; the
// dispatcher (src/attention/cuda/attention_cuda.cpp) asks them in order and reserves workspace for the largest.
//
// `supports` sees the device's compute capability (90 for sm_90) and the pointers' alignment, and decides on the host
// alone. `workspace_bytes` is a function of shapes and options only, and of the count and longest lengths of packed
// documents; 0 where `supports` refuses whatever the pointers are.
#pragma once

#include <cstddef>

#include "attention/cuda/common/attention_call.h"
#include "attention/cuda/portable/backward_plan.h"

namespace tda::cuda {

namespace sm90 {
bool forward_supports(const ForwardCall& call, int compute_capability);
std::size_t forward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                    const PackedDocuments* documents);
Status forward(const ForwardCall& call);
// What takes the tasks of the portable backward's plan in this family's stead, or null when it cannot in this call.
portable::DenseBackward dense_backward(const BackwardCall& call, int compute_capability);
}  // namespace sm90

namespace portable {
std::size_t forward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                    const PackedDocuments* documents);
Status forward(const ForwardCall& call);
std::size_t backward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                     const PackedDocuments* documents);
// `dense`: kernels of another family for the tasks of 16-bit inputs, or null.
Status backward(const BackwardCall& call, DenseBackward dense);
}  // namespace portable

}  // namespace tda::cuda
