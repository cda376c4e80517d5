// What happens with the rows of a finished screen job: they are handed out to the kernels behind the screen, and rows
// without a candidate are written at once.
#pragma once

#include "attention/cuda/common/barrier.cuh"
#include "attention/cuda/sm90/forward/screen/candidate_lists.cuh"
#include "attention/cuda/sm90/forward/screen/plan.cuh"

namespace tda::cuda::sm90 {

// Of the rows of a row tile.
template <bool kPacked>
__device__ __forceinline__ int last_visible_key(const Sequence<kPacked>& s, int tile) {
  return s.offset() + min((tile + 1) * kRowTile, s.query_length()) - 1;
}

// Whether a row tile goes by its lists of `keys` candidate keys rather than by its candidate blocks of 64 keys. The
// blocks of strips may coincide, so there are candidates / 4 of them at least.
template <bool kListing>
__device__ __forceinline__ bool is_listed(int candidates, int keys) {
  return kListing && candidates > 0 && keys != kNotListed && keys <= kKeysPerStripBlock * candidates;
}

// Hands out the 256 rows of a finished job: dense together, or sparse row tiles by their number of candidates, or by
// strips with lists. `candidates` and `keys` are those of row tile `lane` of the block, `strip_keys` those of both
// views of strip `lane`.
template <bool kPacked, bool kListing>
__device__ __forceinline__ void hand_out(const ForwardArguments& a, const RowBlockJob& job,
                                         const RowBlock<kPacked>& rows, int candidates, int keys, int strip_keys) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  const int tile = rows.block * kTilesPerBlock + lane;
  const bool exists = lane < kTilesPerBlock && tile * kRowTile < rows.sequence.query_length();
  const bool dense = a.dense_kernel && __all_sync(0xffffffffu, !exists || candidates < 0);
  const bool listed = exists && is_listed<kListing>(candidates, keys);
  // What goes by lists is not crowded, however many blocks hold a candidate.
  count_row_tile(a, rows.head, last_visible_key(rows.sequence, tile), exists, dense, listed ? 1 : candidates,
                 candidates != kUnscreened);
  if (dense) {
    if (lane == 0) a.dense_list[atomicAdd(&a.counters->dense_jobs, 1)] = job.head_of_all * a.row_blocks + job.slot;
    return;
  }
  const std::int64_t strips = static_cast<std::int64_t>(a.batch) * a.query_heads * a.row_blocks * kStripsPerBlock;
  const int first_row = rows.block * kScreenRows + lane * kStripRows;
  if (__shfl_sync(0xffffffffu, listed, lane / 4) && lane < kStripsPerBlock &&
      first_row < rows.sequence.query_length()) {
    const int sum = list_lengths(strip_keys);
    const int bucket = sum == 0 ? 0 : 31 - __clz(sum);
    const int position = atomicAdd(&a.counters->listed_jobs[bucket], 1);
    a.listed_list[bucket * strips + position] = ListedJob{rows.sequence.batch(), rows.head, first_row, strip_keys};
  }
  if (!exists || candidates == 0 || listed) return;
  constexpr int kHeaviest = kBuckets - 1;
  const int bucket = candidates == kUnscreened  ? kHeaviest
                     : candidates == kDenseVote ? kHeaviest - 1
                                                : min(31 - __clz(candidates), kHeaviest - 1);
  const int position = atomicAdd(&a.counters->sparse_jobs[bucket], 1);
  a.sparse_list[bucket * (strips / kStripsPerTile) + position] =
      (job.head_of_all * a.row_blocks + job.slot) * kTilesPerBlock + lane;
}

// The words of the survivor index of a row tile: all slices dead.
template <bool kPacked>
__device__ __forceinline__ void clear_index(const ForwardArguments& a, const RowBlock<kPacked>& rows, int tile,
                                            int thread) {
  if (a.index == nullptr) return;
  const int last = last_visible_key(rows.sequence, tile);
  for (int view = 0; view < a.views; ++view) {
    std::uint32_t* words = a.index + a.index_layout.word_offset(view, rows.head, rows.sequence.first_row_tile() + tile);
    for (int w = thread; w <= last / kKeysPerWord; w += kDispatchThreads) words[w] = 0;
  }
}

// Rows of a row tile without a candidate: output and survivor counts are zero.
template <typename Element, int kHeadDim, bool kPacked>
__device__ __forceinline__ void write_empty_rows(const ForwardArguments& a, const RowBlock<kPacked>& block, int tile,
                                                 int thread) {
  const Sequence<kPacked>& s = block.sequence;
  auto* output =
      static_cast<Element*>(a.output) + s.batch() * a.output_batch_stride + block.head * a.output_head_stride;
  constexpr int kChunks = kHeadDim / 8;
  const int first_row = s.first_query() + tile * kRowTile;
  const int rows = min(kRowTile, s.query_length() - tile * kRowTile);
#pragma unroll 4
  for (int i = thread; i < rows * kChunks; i += kDispatchThreads) {
    *reinterpret_cast<uint4*>(output + (first_row + i / kChunks) * a.output_row_stride + i % kChunks * 8) =
        make_uint4(0, 0, 0, 0);
  }
  if (a.survivors != nullptr && thread < rows) a.survivors[flat_row(a, s, block.head) + tile * kRowTile + thread] = 0;
}

// Three warps beside the producer: they hand out finished jobs and write empty rows, while the consumers go on.
template <typename Element, int kHeadDim, bool kPacked, bool kListing>
__device__ __forceinline__ void screen_dispatcher(const ForwardArguments& a, ScreenTail& tail, int thread) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  for (int turn = 0;; ++turn) {
    const int place = turn & 3;
    barrier_wait(shared_address(&tail.finished[place]), (turn >> 2) & 1);
    const RowBlockJob job = tail.finished_job[place];
    if (job.head_of_all < 0) return;
    int candidates = 0;
    int keys = 0;
    if (lane < kTilesPerBlock) {
      const int* parts = &tail.candidates[place][lane * 4];
      candidates = parts[0] < 0 ? parts[0] : parts[0] + parts[1] + parts[2] + parts[3];
      const int* listed = &tail.listed[place][lane * 4];
      keys =
          min(min(listed[0], listed[1]), min(listed[2], listed[3])) < 0
              ? kNotListed
              : list_lengths(listed[0]) + list_lengths(listed[1]) + list_lengths(listed[2]) + list_lengths(listed[3]);
    }
    const int strip_keys = tail.listed[place][lane & (kStripsPerBlock - 1)];
    __syncwarp();
    if (lane == 0) barrier_arrive(shared_address(&tail.dispatched[place]));
    const RowBlock<kPacked> rows = row_block<kPacked>(a, job.head_of_all, job.slot);
    if (thread < 32) hand_out<kPacked, kListing>(a, job, rows, candidates, keys, strip_keys);
#pragma unroll 1
    for (int w = 0; w < kTilesPerBlock; ++w) {
      const int tile = rows.block * kTilesPerBlock + w;
      if (tile * kRowTile >= rows.sequence.query_length()) break;
      const int tile_candidates = __shfl_sync(0xffffffffu, candidates, w);
      if (tile_candidates == 0) write_empty_rows<Element, kHeadDim>(a, rows, tile, thread);
      if (tile_candidates == 0 || is_listed<kListing>(tile_candidates, __shfl_sync(0xffffffffu, keys, w))) {
        clear_index(a, rows, tile, thread);
      }
    }
  }
}

}  // namespace tda::cuda::sm90
