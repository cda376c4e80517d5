// Packed documents, read from their offsets: which document a slot of 256 rows or keys belongs to, and the list of the
// row blocks that exist, by weight.
//
// Plan. A warp takes a document; its lanes take the slots. Costs two dependent loads, and 32 bytes a slot.
#include "attention/cuda/common/kernel_order.cuh"
#include "attention/cuda/sm90/forward_launch.h"

namespace tda::cuda::sm90 {
namespace {

constexpr int kThreads = 256;
constexpr int kDocumentsPerBlock = kThreads / 32;

__global__ void __launch_bounds__(kThreads) plan_documents(const __grid_constant__ ForwardArguments a) {
  allow_next_kernel();
  const int document = static_cast<int>(blockIdx.x) * kDocumentsPerBlock + static_cast<int>(threadIdx.x >> 5);
  if (document >= a.documents) return;
  const int lane = static_cast<int>(threadIdx.x & 31);
  const int query_end = a.query_offsets[document + 1], key_end = a.key_offsets[document + 1];
  DocumentSlot slot{};
  slot.document = document;
  slot.first_query = a.query_offsets[document];
  slot.first_key = a.key_offsets[document];
  slot.query_length = query_end - slot.first_query;
  slot.key_length = key_end - slot.first_key;

  // Slots up to the next document's; the last may hold nothing.
  const int first_block = slot.first_query / kScreenRows + document;
  const int blocks = query_end / kScreenRows + document + 1 - first_block;
  for (slot.part = lane; slot.part < blocks; slot.part += 32) {
    a.row_slots[first_block + slot.part] = slot;
    const int end = min((slot.part + 1) * kScreenRows, slot.query_length);
    if (slot.part * kScreenRows >= end) continue;
    const int key_tiles = (slot.key_length - slot.query_length + end - 1) / kScreenKeys + 1;  // that its rows see
    const int bucket = min(31 - __clz(key_tiles), kBlockBuckets - 1);
    const int place = atomicAdd(&a.counters->row_blocks[bucket], 1);
    a.block_list[static_cast<std::int64_t>(bucket) * a.row_blocks + place] = first_block + slot.part;
  }

  const int first_tile = slot.first_key / kScreenKeys + document;
  const int tiles = key_end / kScreenKeys + document + 1 - first_tile;
  for (slot.part = lane; slot.part < tiles; slot.part += 32) {
    DocumentSlot tile = slot;
    if (slot.query_length == 0 || slot.part * kScreenKeys >= slot.key_length) tile.key_length = 0;  // nobody sees them
    a.key_slots[first_tile + slot.part] = tile;
  }
}

}  // namespace

Status launch_plan_documents(const ForwardArguments& a, cudaStream_t stream) {
  cudaError_t error = cudaMemsetAsync(a.counters, 0, sizeof(Counters), stream);
  const Launch documents{static_cast<unsigned>((a.documents + kDocumentsPerBlock - 1) / kDocumentsPerBlock), kThreads};
  if (error == cudaSuccess) error = launch_kernel(plan_documents, documents, stream, a);
  if (error == cudaSuccess) return {};
  return {std::string("attention_cuda_forward: launch of kernel plan_documents failed: ") + cudaGetErrorString(error)};
}

}  // namespace tda::cuda::sm90
