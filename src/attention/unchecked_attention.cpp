#include "attention/unchecked_attention.h"

#include "attention/cpu/cpu_attention.h"
#include "attention/reference/reference_attention.h"
#include "attention/validation.h"

namespace tda::unchecked {
namespace {

bool needs_memory(const AttentionShape& shape, const AttentionOptions& options) {
  return !uses_reference(options) && !has_no_queries(shape);
}

}  // namespace

bool uses_reference(const AttentionOptions& options) { return options.data_type == DataType::kFloat64; }

std::size_t survivor_index_bytes(const AttentionShape& shape, const AttentionOptions& options) {
  return needs_memory(shape, options) ? cpu::survivor_index_bytes(shape, options) : 0;
}

std::size_t forward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options) {
  return needs_memory(shape, options) ? cpu::forward_workspace_bytes(shape, options) : 0;
}

std::size_t backward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options) {
  return needs_memory(shape, options) ? cpu::backward_workspace_bytes(shape, options) : 0;
}

void forward(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
             const ForwardOutputs& outputs, void* workspace) {
  if (uses_reference(options)) {
    reference_forward(shape, options, inputs, outputs);
  } else {
    cpu::forward(shape, options, inputs, outputs, workspace);
  }
}

void backward(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
              const ConstTensor& d_output, const void* survivor_index, const BackwardOutputs& outputs,
              void* workspace) {
  if (uses_reference(options) || has_no_queries(shape)) {
    reference_backward(shape, options, inputs, d_output, outputs);
  } else {
    cpu::backward(shape, options, inputs, d_output, survivor_index, outputs, workspace);
  }
}

}  // namespace tda::unchecked
