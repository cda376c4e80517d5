// Checks of the arguments of include/tda/attention_cuda.h that look at no device value. Each failure names the
// argument, its value and what was expected.
#pragma once

#include "tda/attention_cuda.h"

namespace tda::cuda {

Status check_call(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
                  const PackedDocuments* documents);
Status check_outputs(const AttentionShape& shape, const ForwardOutputs& outputs);
Status check_workspace(const void* workspace, std::size_t bytes, std::size_t needed);
Status check_index(const void* index);  // null is fine here
Status check_screening(const CudaAttentionOptions& choice);

// True if no output element depends on any input.
bool is_empty(const AttentionShape& shape);

}  // namespace tda::cuda
