// Packed documents, read from their offsets: which document a slot of 256 rows or keys belongs to, and the list of the
// row blocks that exist, by weight.
//
// Plan. A warp takes a document; its lanes take the blocks. Slots that no document has stay as they were cleared. As
// the host reads no offset, a document is checked here, and one that would reach beyond tensors or scratch memory is
// taken as empty. Costs two dependent loads, 32 bytes a slot, and a round trip of an atomic for each 8,192 rows of a
// document.
#include "attention/cuda/common/kernel_order.cuh"
#include "attention/cuda/sm90/forward/launch.h"

namespace tda::cuda::sm90 {
namespace {

constexpr int kThreads = 256;
constexpr int kDocumentsPerBlock = kThreads / 32;

// Whether a document keeps the rules (PackedDocuments), as far as it alone can break them.
__device__ __forceinline__ bool keeps_rules(const ForwardArguments& a, int first_query, int query_end, int first_key,
                                            int key_end) {
  if (first_query < 0 || query_end < first_query || query_end > a.query_length) return false;
  if (first_key < 0 || key_end < first_key || key_end > a.key_length) return false;
  const int keys = key_end - first_key;
  return query_end - first_query <= keys && keys <= a.longest_key;
}

__global__ void __launch_bounds__(kThreads) plan_documents(const __grid_constant__ ForwardArguments a) {
  allow_next_kernel();
  const int document = static_cast<int>(blockIdx.x) * kDocumentsPerBlock + static_cast<int>(threadIdx.x >> 5);
  if (document >= a.documents) return;
  const int first_query = a.query_offsets[document], query_end = a.query_offsets[document + 1];
  const int first_key = a.key_offsets[document], key_end = a.key_offsets[document + 1];
  if (first_query == query_end || !keeps_rules(a, first_query, query_end, first_key, key_end)) return;
  const int lane = static_cast<int>(threadIdx.x & 31);
  DocumentSlot slot{};
  slot.document = document;
  slot.first_query = first_query;
  slot.first_key = first_key;
  slot.query_length = query_end - first_query;
  slot.key_length = key_end - first_key;

  const int first_block = first_query / kScreenRows + document;
  for (slot.part = lane; slot.part * kScreenRows < slot.query_length; slot.part += 32) {
    a.row_slots[first_block + slot.part] = slot;
    const int end = min((slot.part + 1) * kScreenRows, slot.query_length);
    const int key_tiles = (slot.key_length - slot.query_length + end - 1) / kScreenKeys + 1;  // that its rows see
    const int bucket = min(31 - __clz(key_tiles), kBlockBuckets - 1);
    const int place = atomicAdd(&a.counters->row_blocks[bucket], 1);
    a.block_list[static_cast<std::int64_t>(bucket) * a.row_blocks + place] = first_block + slot.part;
  }

  const int first_tile = first_key / kScreenKeys + document;
  for (slot.part = lane; slot.part * kScreenKeys < slot.key_length; slot.part += 32) {
    a.key_slots[first_tile + slot.part] = slot;
  }
}

}  // namespace

Status launch_plan_documents(const ForwardArguments& a, cudaStream_t stream) {
  // The counters and the slots, which lie behind them.
  const auto cleared = reinterpret_cast<std::uintptr_t>(a.block_list) - reinterpret_cast<std::uintptr_t>(a.counters);
  cudaError_t error = cudaMemsetAsync(a.counters, 0, cleared, stream);
  const Launch documents{static_cast<unsigned>((a.documents + kDocumentsPerBlock - 1) / kDocumentsPerBlock), kThreads};
  if (error == cudaSuccess) error = launch_kernel(plan_documents, documents, stream, a);
  if (error == cudaSuccess) return {};
  return {std::string("attention_cuda_forward: launch of kernel plan_documents failed: ") + cudaGetErrorString(error)};
}

}  // namespace tda::cuda::sm90
