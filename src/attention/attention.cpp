// The public entry points: validate, then hand over to the CPU kernels, or to the reference for fp64.
#include "tda/attention.h"

#include "attention/cpu/cpu_attention.h"
#include "attention/reference/reference_attention.h"
#include "attention/validation.h"

namespace tda {
namespace {

// fp64 serves gradient checks on small inputs; the definition itself computes it.
bool uses_reference(const AttentionOptions& options) { return options.data_type == DataType::kFloat64; }

bool needs_memory(const AttentionShape& shape, const AttentionOptions& options) {
  return !uses_reference(options) && !has_no_queries(shape) && validate_shape(shape, options).ok();
}

}  // namespace

std::size_t attention_survivor_index_bytes(const AttentionShape& shape, const AttentionOptions& options) {
  return needs_memory(shape, options) ? cpu::survivor_index_bytes(shape, options) : 0;
}

std::size_t attention_forward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options) {
  return needs_memory(shape, options) ? cpu::forward_workspace_bytes(shape, options) : 0;
}

std::size_t attention_backward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options) {
  return needs_memory(shape, options) ? cpu::backward_workspace_bytes(shape, options) : 0;
}

Status attention_forward(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
                         const ForwardOutputs& outputs, void* workspace, std::size_t workspace_bytes) {
  if (Status status = validate_shape(shape, options); !status.ok()) return status;
  if (has_no_queries(shape)) return {};
  if (Status status = validate_inputs(shape, options, inputs); !status.ok()) return status;
  if (outputs.output.data == nullptr) return {"output is null, expected a tensor"};
  if (uses_reference(options)) {
    reference_forward(shape, options, inputs, outputs);
    return {};
  }
  const std::size_t needed = cpu::forward_workspace_bytes(shape, options);
  if (Status status = validate_buffer("workspace", workspace, workspace_bytes, needed, 64); !status.ok()) return status;
  cpu::forward(shape, options, inputs, outputs, workspace);
  return {};
}

Status attention_backward(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
                          const ConstTensor& d_output, const void* survivor_index, const BackwardOutputs& outputs,
                          void* workspace, std::size_t workspace_bytes) {
  if (Status status = validate_shape(shape, options); !status.ok()) return status;
  // Without queries the gradients of keys and values are still to be overwritten, with zeros.
  if (has_no_queries(shape) || uses_reference(options)) {
    if (Status status = validate_inputs(shape, options, inputs); !status.ok()) return status;
    if (!has_no_queries(shape) && d_output.data == nullptr) return {"d_output is null, expected a tensor"};
    reference_backward(shape, options, inputs, d_output, outputs);
    return {};
  }
  if (Status status = validate_inputs(shape, options, inputs); !status.ok()) return status;
  if (d_output.data == nullptr) return {"d_output is null, expected a tensor"};
  if (survivor_index == nullptr) return {"survivor_index is null, expected what attention_forward wrote"};
  const std::size_t needed = cpu::backward_workspace_bytes(shape, options);
  if (Status status = validate_buffer("workspace", workspace, workspace_bytes, needed, 64); !status.ok()) return status;
  cpu::backward(shape, options, inputs, d_output, survivor_index, outputs, workspace);
  return {};
}

}  // namespace tda
