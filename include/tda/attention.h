// Threshold Differential Attention: the operator, for callers without a tensor framework.
//
// Offers the forward and the backward pass of threshold rectified attention (TRA, one view) and threshold differential
// attention (TDA, two views) over raw pointers with strides. Nothing here knows PyTorch, allocates tensors, or throws.
//
// Definition (0-indexed; query row i stands at absolute position n = key_length - query_length + i and sees keys
// j <= n; D = head_dim; per query head h):
//   c_n   = sqrt(2 * max(0, ln((n + 1) / kappa)) / D)            natural logarithm
//   tau_n = beta_h * c_n
//   s_ij  = <q_i / |q_i|, k_j / |k_j|>                           or <q_i, k_j> with normalize = false
//   a_ij  = max(0, s_ij - tau_n)^power
//   one view:  u_i = sum_j a_ij v_j
//   two views: u_i = sum_j (a1_ij - clamp(lambda_h, 0, 1) * a2_ij) v_j
// A norm is max(|x|, 1e-12). A row without a survivor (a_ij = 0 for all j) is normal: output 0 and gradients 0.
// NaN or Inf in q_i makes output row i NaN; in k_j, the rows that see key j; in v_j, only rows with a_ij != 0.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace tda {

#if defined(__GNUC__)
#define TDA_PUBLIC __attribute__((visibility("default")))
#else
#define TDA_PUBLIC
#endif

enum class DataType { kFloat32, kBFloat16, kFloat16, kFloat64 };

// Result of a call. `message` is empty on success; otherwise it names the argument, its value and what was expected.
struct [[nodiscard]] Status {
  std::string message;
  bool ok() const { return message.empty(); }
};

// A tensor of shape (batch, heads, length, dim) whose last stride is 1. Strides count elements and may be any value,
// 0 (broadcast) included, except for outputs, whose elements must not overlap.
struct ConstTensor {
  const void* data = nullptr;
  std::int64_t batch_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t row_stride = 0;
};

struct Tensor {
  void* data = nullptr;
  std::int64_t batch_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t row_stride = 0;
};

// q: (batch, query_heads, query_length, head_dim); k: (batch, key_heads, key_length, head_dim);
// v: (batch, key_heads, key_length, value_dim); output: (batch, query_heads, query_length, value_dim).
// query_heads is a multiple of key_heads (query head h reads key head h / (query_heads / key_heads)),
// query_length <= key_length, 1 <= head_dim <= 256, value_dim is head_dim or 2 * head_dim.
struct AttentionShape {
  std::int64_t batch = 0;
  std::int64_t query_heads = 0;
  std::int64_t key_heads = 0;
  std::int64_t query_length = 0;
  std::int64_t key_length = 0;
  std::int64_t head_dim = 0;
  std::int64_t value_dim = 0;
};

// A caller's own threads. run() calls task(argument, index) once for every index in [0, count), concurrently if it can,
// and returns when all calls have returned.
struct TaskRunner {
  void (*run)(void* context, int count, void (*task)(void* argument, int index), void* argument) = nullptr;
  void* context = nullptr;
};

struct AttentionOptions {
  DataType data_type = DataType::kFloat32;
  int views = 1;          // 1: TRA, 2: TDA
  double kappa = 1.0;     // > 0
  double power = 2.0;     // >= 1
  bool normalize = true;  // L2-normalize q and k
  int threads = 0;        // CPU threads to use; 0: one per core
  // Null: threads of the library. A framework passes its own pool here, so that two pools do not fight for the cores.
  const TaskRunner* task_runner = nullptr;
};

// Inputs that forward and backward share. q[1] and k[1] are read only with two views.
// beta and lambda hold query_heads values each, as double when data_type is kFloat64 and as float otherwise;
// lambda is read only with two views.
struct AttentionInputs {
  ConstTensor q[2];
  ConstTensor k[2];
  ConstTensor v;
  const void* beta = nullptr;
  const void* lambda = nullptr;
};

struct ForwardOutputs {
  Tensor output;  // (batch, query_heads, query_length, value_dim)
  // Optional, contiguous (batch, query_heads, query_length): pairs with a non-zero weight in any view.
  std::int32_t* survivors = nullptr;
  // Optional, attention_survivor_index_bytes() bytes: what the backward needs to visit survivors only.
  void* survivor_index = nullptr;
};

// Gradients have the shapes and the data type of their inputs; strides are free. Any data pointer may be null to skip
// that gradient. dbeta and dlambda are contiguous (query_heads) in the type of beta. All are overwritten.
struct BackwardOutputs {
  Tensor dq[2];
  Tensor dk[2];
  Tensor dv;
  void* dbeta = nullptr;
  void* dlambda = nullptr;
};

// Documents packed one after the other along the length: tensors have batch 1, document d owns the query rows
// query_offsets[d] .. query_offsets[d + 1] - 1 and the key rows key_offsets[d] .. key_offsets[d + 1] - 1. Attention
// stays inside a document: positions count from its first key, and its last query is aligned with its last key. The
// count + 1 offsets begin at 0, never decrease (equal neighbours are an empty document) and end at the shape's
// query_length and key_length; no document has more queries than keys. longest_query and longest_key are upper bounds
// of the documents' lengths, at most the total lengths, which serve where nothing better is known; the size of the
// survivor index depends on them. The gradients of beta and lambda are sums over documents, in their order.
struct PackedDocuments {
  const std::int32_t* query_offsets = nullptr;
  const std::int32_t* key_offsets = nullptr;
  std::int64_t count = 0;
  std::int64_t longest_query = 0;
  std::int64_t longest_key = 0;
};

// Bytes of the survivor index and of scratch memory. Functions of shape and options only; with packed documents, the
// index also depends on count and longest lengths (offsets may be null there), scratch memory on the offsets.
TDA_PUBLIC std::size_t attention_survivor_index_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                                      const PackedDocuments* documents = nullptr);
TDA_PUBLIC std::size_t attention_forward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                                         const PackedDocuments* documents = nullptr);
TDA_PUBLIC std::size_t attention_backward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                                          const PackedDocuments* documents = nullptr);

// Computes the output on the CPU. `workspace` has attention_forward_workspace_bytes() bytes, aligned to 64.
TDA_PUBLIC Status attention_forward(const AttentionShape& shape, const AttentionOptions& options,
                                    const AttentionInputs& inputs, const ForwardOutputs& outputs, void* workspace,
                                    std::size_t workspace_bytes, const PackedDocuments* documents = nullptr);

// Computes the gradients for the cotangent `d_output` (shape of the output) on the CPU, bitwise repeatable.
// `survivor_index` is what attention_forward wrote for the same shape, options, inputs and documents.
TDA_PUBLIC Status attention_backward(const AttentionShape& shape, const AttentionOptions& options,
                                     const AttentionInputs& inputs, const ConstTensor& d_output,
                                     const void* survivor_index, const BackwardOutputs& outputs, void* workspace,
                                     std::size_t workspace_bytes, const PackedDocuments* documents = nullptr);

}  // namespace tda
