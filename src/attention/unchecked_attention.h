// The two passes over arguments that have been validated: the CPU kernels, or the reference for fp64, which serves
// gradient checks on small inputs and needs neither a workspace nor a survivor index.
#pragma once

#include <cstddef>

#include "tda/attention.h"

namespace tda::unchecked {

bool uses_reference(const AttentionOptions& options);

std::size_t survivor_index_bytes(const AttentionShape& shape, const AttentionOptions& options);
std::size_t forward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options);
std::size_t backward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options);

// The shape has queries.
void forward(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
             const ForwardOutputs& outputs, void* workspace);

// Without queries the gradients are zeros.
void backward(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
              const ConstTensor& d_output, const void* survivor_index, const BackwardOutputs& outputs, void* workspace);

}  // namespace tda::unchecked
