// Checks of the arguments of include/tda/attention.h. Each failure names the argument, its value and what was expected.
#pragma once

#include <cstddef>

#include "tda/attention.h"

namespace tda {

// Shape and options alone; what the size queries and both passes require.
Status validate_shape(const AttentionShape& shape, const AttentionOptions& options);

// Batch, count and longest lengths of packed documents; their offsets. The shape has been validated.
Status validate_document_bounds(const AttentionShape& shape, const PackedDocuments& documents);
Status validate_document_offsets(const AttentionShape& shape, const PackedDocuments& documents);

// Pointers and parameter values of the inputs. The shape has been validated.
Status validate_inputs(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs);

// A buffer that must hold `needed` bytes and, where `alignment` > 1, start at a multiple of it.
Status validate_buffer(const char* name, const void* data, std::size_t bytes, std::size_t needed,
                       std::size_t alignment);

// True if there is nothing to compute and pointers may be null.
bool has_no_queries(const AttentionShape& shape);

}  // namespace tda
