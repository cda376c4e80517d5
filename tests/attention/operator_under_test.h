// The operator that the tests of this folder judge: on the CPU here, on a CUDA device in the test program of
// tests/cuda, which links another implementation of this header. All pointers are host pointers.
#pragma once

#include "tda/attention.h"

namespace tda::test {

// False for data types that the operator does not offer on its device.
bool operator_takes(DataType type);

// `documents` is null or holds host pointers.
std::size_t operator_index_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                 const PackedDocuments* documents);
std::size_t operator_forward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                             const PackedDocuments* documents);
std::size_t operator_backward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                              const PackedDocuments* documents);

Status operator_forward(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
                        const ForwardOutputs& outputs, void* workspace, std::size_t workspace_bytes,
                        const PackedDocuments* documents);
Status operator_backward(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
                         const ConstTensor& d_output, const void* survivor_index, const BackwardOutputs& outputs,
                         void* workspace, std::size_t workspace_bytes, const PackedDocuments* documents);

}  // namespace tda::test
