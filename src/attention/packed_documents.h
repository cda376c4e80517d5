// Packed documents on the CPU: every document is a call of its own over views of its rows, so that its numbers are
// those of a call with the document alone.
//
// Threads: a document with more than a quarter of a thread's fair share of the work is computed by all threads
// together, the heaviest first; the others have one thread each, so that thousands of short documents cost no waiting.
// Arguments have been validated, offsets included; the shape has queries.
#pragma once

#include <cstddef>

#include "tda/attention.h"

namespace tda {

// Document d's part of the index begins behind an upper bound of what the documents before it need, which no offset but
// its own decides; the size is a function of total lengths, count and longest_key. Offsets are not read.
std::size_t packed_survivor_index_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                        const PackedDocuments& documents);
std::size_t packed_forward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                           const PackedDocuments& documents);
std::size_t packed_backward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                            const PackedDocuments& documents);

void packed_forward(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
                    const ForwardOutputs& outputs, void* workspace, const PackedDocuments& documents);
void packed_backward(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
                     const ConstTensor& d_output, const void* survivor_index, const BackwardOutputs& outputs,
                     void* workspace, const PackedDocuments& documents);

}  // namespace tda
