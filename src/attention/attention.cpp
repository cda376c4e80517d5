// The public entry points: validate, then hand over, document by document where documents are packed.
#include "tda/attention.h"

#include "attention/packed_documents.h"
#include "attention/unchecked_attention.h"
#include "attention/validation.h"

namespace tda {
namespace {

// What the size queries require; the offsets of packed documents are another matter.
Status validate_sizes(const AttentionShape& shape, const AttentionOptions& options, const PackedDocuments* documents) {
  if (Status status = validate_shape(shape, options); !status.ok()) return status;
  return documents ? validate_document_bounds(shape, *documents) : Status{};
}

Status validate(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
                const PackedDocuments* documents) {
  if (Status status = validate_sizes(shape, options, documents); !status.ok()) return status;
  if (documents != nullptr) {
    if (Status status = validate_document_offsets(shape, *documents); !status.ok()) return status;
  }
  return validate_inputs(shape, options, inputs);
}

}  // namespace

std::size_t attention_survivor_index_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                           const PackedDocuments* documents) {
  if (!validate_sizes(shape, options, documents).ok() || has_no_queries(shape)) return 0;
  return documents ? packed_survivor_index_bytes(shape, options, *documents)
                   : unchecked::survivor_index_bytes(shape, options);
}

std::size_t attention_forward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                              const PackedDocuments* documents) {
  if (!validate_sizes(shape, options, documents).ok() || has_no_queries(shape)) return 0;
  if (documents == nullptr) return unchecked::forward_workspace_bytes(shape, options);
  if (!validate_document_offsets(shape, *documents).ok()) return 0;
  return packed_forward_workspace_bytes(shape, options, *documents);
}

std::size_t attention_backward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                               const PackedDocuments* documents) {
  if (!validate_sizes(shape, options, documents).ok() || has_no_queries(shape)) return 0;
  if (documents == nullptr) return unchecked::backward_workspace_bytes(shape, options);
  if (!validate_document_offsets(shape, *documents).ok()) return 0;
  return packed_backward_workspace_bytes(shape, options, *documents);
}

Status attention_forward(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
                         const ForwardOutputs& outputs, void* workspace, std::size_t workspace_bytes,
                         const PackedDocuments* documents) {
  if (Status status = validate(shape, options, inputs, documents); !status.ok()) return status;
  if (has_no_queries(shape)) return {};
  if (outputs.output.data == nullptr) return {"output is null, expected a tensor"};
  const std::size_t needed = attention_forward_workspace_bytes(shape, options, documents);
  if (Status status = validate_buffer("workspace", workspace, workspace_bytes, needed, 64); !status.ok()) return status;
  if (documents != nullptr) {
    packed_forward(shape, options, inputs, outputs, workspace, *documents);
  } else {
    unchecked::forward(shape, options, inputs, outputs, workspace);
  }
  return {};
}

Status attention_backward(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
                          const ConstTensor& d_output, const void* survivor_index, const BackwardOutputs& outputs,
                          void* workspace, std::size_t workspace_bytes, const PackedDocuments* documents) {
  if (Status status = validate(shape, options, inputs, documents); !status.ok()) return status;
  if (has_no_queries(shape)) {
    // The gradients of keys and values are still to be overwritten, with zeros.
    unchecked::backward(shape, options, inputs, d_output, nullptr, outputs, nullptr);
    return {};
  }
  if (d_output.data == nullptr) return {"d_output is null, expected a tensor"};
  if (survivor_index == nullptr && !unchecked::uses_reference(options)) {
    return {"survivor_index is null, expected what attention_forward wrote"};
  }
  const std::size_t needed = attention_backward_workspace_bytes(shape, options, documents);
  if (Status status = validate_buffer("workspace", workspace, workspace_bytes, needed, 64); !status.ok()) return status;
  if (documents != nullptr) {
    packed_backward(shape, options, inputs, d_output, survivor_index, outputs, workspace, *documents);
  } else {
    unchecked::backward(shape, options, inputs, d_output, survivor_index, outputs, workspace);
  }
  return {};
}

}  // namespace tda
