// One call of the operator as the kernel families receive it: validated arguments, nothing derived.
#pragma once

#include "tda/attention_cuda.h"

namespace tda::cuda {

struct ForwardCall {
  AttentionShape shape;
  AttentionOptions options;
  AttentionInputs inputs;
  ForwardOutputs outputs;
  const PackedDocuments* documents = nullptr;  // null: one sequence per batch element
  void* workspace = nullptr;                   // aligned to 256 bytes
  CudaStream stream = nullptr;
  CudaAttentionOptions choice;
};

struct BackwardCall {
  AttentionShape shape;
  AttentionOptions options;
  AttentionInputs inputs;
  ConstTensor d_output;
  const void* survivor_index = nullptr;
  BackwardOutputs outputs;
  const PackedDocuments* documents = nullptr;
  void* workspace = nullptr;
  CudaStream stream = nullptr;
};

}  // namespace tda::cuda
