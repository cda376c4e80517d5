#include "operator_under_test.h"

namespace tda::test {

bool operator_takes(DataType) { return true; }

std::size_t operator_index_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                 const PackedDocuments* documents) {
  return attention_survivor_index_bytes(shape, options, documents);
}
std::size_t operator_forward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                             const PackedDocuments* documents) {
  return attention_forward_workspace_bytes(shape, options, documents);
}
std::size_t operator_backward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                              const PackedDocuments* documents) {
  return attention_backward_workspace_bytes(shape, options, documents);
}

Status operator_forward(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
                        const ForwardOutputs& outputs, void* workspace, std::size_t workspace_bytes,
                        const PackedDocuments* documents) {
  return attention_forward(shape, options, inputs, outputs, workspace, workspace_bytes, documents);
}

Status operator_backward(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
                         const ConstTensor& d_output, const void* survivor_index, const BackwardOutputs& outputs,
                         void* workspace, std::size_t workspace_bytes, const PackedDocuments* documents) {
  return attention_backward(shape, options, inputs, d_output, survivor_index, outputs, workspace, workspace_bytes,
                            documents);
}

}  // namespace tda::test
