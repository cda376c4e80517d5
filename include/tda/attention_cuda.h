// Threshold Differential Attention on CUDA devices, for callers without a tensor framework.
//
// The operator, its structs and its rules are those of tda/attention.h; here every data pointer (beta and lambda
// included) is a device pointer of the current device, the data types are float32, bfloat16 and float16, and the work
// is enqueued on `stream`. Nothing is allocated, nothing waits for the device and no device value is read by the host,
// so that a call can be captured into a CUDA graph. Built when TDA_CUDA is on; otherwise the calls return an error.
//
// Packed documents: the offsets of PackedDocuments are device pointers, and as the host does not read them, they are
// not checked: offsets that break the rules, or a document longer than longest_query and longest_key say, are undefined
// behaviour. But the last offset may be less than the total length: no other row sees the rows behind it, and their
// outputs and gradients are not written. longest_query and longest_key bound memory (below), and the launches of the
// backward and of the portable kernels; those of the forward on Hopper follow from total lengths and count. There the
// same kernels serve as without documents, and a document has the bits of a call of its own, except that from 8,192
// keys such a call goes by lists: its gradients are sums in another order, and a row that meets a value that is not
// finite may be computed another way (080).
//
// Errors. A bad argument gives a Status that names the argument, its value and what was expected, before any launch.
// A launch that fails gives a Status with the kernel's name; a fault inside a running kernel surfaces, as always with
// CUDA, at a later call on the device.
//
// Example (device pointers q, k, v, beta, out from cudaMalloc):
//   tda::AttentionShape shape{.batch = 1, .query_heads = 8, .key_heads = 8, .query_length = 4096, ...};
//   size_t bytes = tda::attention_cuda_forward_workspace_bytes(shape, options);
//   cudaMalloc(&workspace, bytes);
//   Status status = tda::attention_cuda_forward(shape, options, inputs, outputs, workspace, bytes, stream);
#pragma once

#include "tda/attention.h"

namespace tda {

// A cudaStream_t; null is the legacy default stream.
using CudaStream = void*;

// Which kernels a call may use. kAutomatic takes the fastest that supports the case on the current device.
enum class CudaKernels { kAutomatic, kPortable };

// The forward of 16-bit inputs on Hopper screens scores in 8 bits and computes exactly what the screen cannot certify
// as empty. kNever computes everything exactly, kAlways screens every head, kAutomatic every head for which the
// counters of the last call do not say that it does not pay (without counters: every head), and none where T_k <= 12 D,
// packed documents aside. Rows whose threshold is not positive are never screened. With finite v, the outputs and what
// the backward reads of the survivor index are the same bits whatever is chosen (a row that meets a value that is not
// finite may be computed another way, see 080).
enum class Screening { kAutomatic, kAlways, kNever };

// What a forward call counted for one query head over the batch, in row tiles of 64 queries.
struct ScreeningCounters {
  std::int32_t row_tiles;  // all; empty + sparse + dense
  std::int32_t empty;      // certified to be without a survivor
  std::int32_t sparse;     // computed where the screen found candidates
  std::int32_t dense;      // computed entirely
  std::int32_t screened;   // went through the screen: their threshold is positive and their head was screened
  std::int32_t crowded;  // of these, with candidates nearly everywhere (src/attention/cuda/sm90/forward/screen/rule.h)
  // The last calls, this one included, in which kAutomatic left the head unscreened for what had been counted. Calls
  // that are unscreened for another reason (short ones, kNever) leave 0, and nothing for the next call to choose by.
  std::int32_t unscreened_calls;
};
constexpr int kScreeningCounters = 7;
static_assert(sizeof(ScreeningCounters) == kScreeningCounters * sizeof(std::int32_t));

struct CudaAttentionOptions {
  CudaKernels kernels = CudaKernels::kAutomatic;
  // Of the forward; the backward ignores both.
  Screening screening = Screening::kAutomatic;
  // Optional device memory of the caller: query_heads entries, i.e. contiguous int32 (query_heads, kScreeningCounters),
  // zero before the first call. A call reads what the last call counted, to choose, and replaces it by what it counts
  // itself, both on the device: a captured graph does so at each replay. A buffer serves calls that follow each other
  // on a stream, one layer's, and not two streams at a time. Any other content is as safe as zeros. Calls that other
  // kernels than those of this screen compute, and empty ones, leave zeros: nothing was screened, nothing is known.
  ScreeningCounters* screening_counters = nullptr;
};

// True when the CUDA kernels were built into this library.
TDA_PUBLIC bool attention_cuda_built();

// Bytes of the survivor index and of scratch memory: functions of shapes and options, and of the count and longest
// lengths of packed documents. The index holds one bit per view and slice of 64 queries x 16 keys, and from 8,192 keys
// 64 bytes per view and row for 16-bit inputs with D = D_v = 64 or 128; of such inputs, when they are normalized, also
// 4 bytes per view, head and row of q and of k (layout: src/attention/cuda/common/survivor_index.h). Its address is a
// multiple of 64. On Hopper the forward's scratch memory holds one bit per view and 16 queries x 64 keys. Of packed
// documents both take query_length * longest_key / 8192 bytes per view and head: with the total length for longest_key
// they grow with its square.
TDA_PUBLIC std::size_t attention_cuda_survivor_index_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                                           const PackedDocuments* documents = nullptr);
TDA_PUBLIC std::size_t attention_cuda_forward_workspace_bytes(const AttentionShape& shape,
                                                              const AttentionOptions& options,
                                                              const PackedDocuments* documents = nullptr);
TDA_PUBLIC std::size_t attention_cuda_backward_workspace_bytes(const AttentionShape& shape,
                                                               const AttentionOptions& options,
                                                               const PackedDocuments* documents = nullptr);

// Computes the output on the current device. `workspace` is device memory aligned to 256 bytes, at least
// attention_cuda_forward_workspace_bytes() long, and free for reuse once the stream has passed the call.
// outputs.survivors and outputs.survivor_index are optional device pointers.
TDA_PUBLIC Status attention_cuda_forward(const AttentionShape& shape, const AttentionOptions& options,
                                         const AttentionInputs& inputs, const ForwardOutputs& outputs, void* workspace,
                                         std::size_t workspace_bytes, CudaStream stream,
                                         const CudaAttentionOptions& cuda = {},
                                         const PackedDocuments* documents = nullptr);

// Computes the gradients, bitwise repeatable. `survivor_index` is what attention_cuda_forward wrote for the same shape,
// options, inputs and documents.
TDA_PUBLIC Status attention_cuda_backward(const AttentionShape& shape, const AttentionOptions& options,
                                          const AttentionInputs& inputs, const ConstTensor& d_output,
                                          const void* survivor_index, const BackwardOutputs& outputs, void* workspace,
                                          std::size_t workspace_bytes, CudaStream stream,
                                          const CudaAttentionOptions& cuda = {},
                                          const PackedDocuments* documents = nullptr);

}  // namespace tda
