// The CPU kernels behind include/tda/attention.h for fp32, bf16 and fp16. Arguments have been validated.
#pragma once

#include <cstddef>

#include "tda/attention.h"

namespace tda::cpu {

std::size_t forward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options);
std::size_t backward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options);
std::size_t survivor_index_bytes(const AttentionShape& shape, const AttentionOptions& options);

void forward(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
             const ForwardOutputs& outputs, void* workspace);
void backward(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
              const ConstTensor& d_output, const void* survivor_index, const BackwardOutputs& outputs, void* workspace);

}  // namespace tda::cpu
