#include "tda/attention.h"

#include "attention/reference/reference_attention.h"

namespace tda {

std::size_t attention_survivor_index_bytes(const AttentionShape&, const AttentionOptions&) { return 0; }
std::size_t attention_forward_workspace_bytes(const AttentionShape&, const AttentionOptions&) { return 0; }
std::size_t attention_backward_workspace_bytes(const AttentionShape&, const AttentionOptions&) { return 0; }

Status attention_forward(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
                         const ForwardOutputs& outputs, void*, std::size_t) {
  reference_forward(shape, options, inputs, outputs);
  return {};
}

Status attention_backward(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
                          const ConstTensor& d_output, const void*, const BackwardOutputs& outputs, void*,
                          std::size_t) {
  reference_backward(shape, options, inputs, d_output, outputs);
  return {};
}

}  // namespace tda
