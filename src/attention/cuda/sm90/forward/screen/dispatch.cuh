// What happens with the rows of a finished screen job: they are handed out to the kernels behind the screen, and row
// tiles and listed strips without a candidate are zeroed at once.
#pragma once

#include "attention/cuda/common/barrier.cuh"
#include "attention/cuda/common/copy_engine.cuh"
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

// What the screen found in a row block. A dispatcher's lane holds `candidates` and `keys` of row tile `lane`,
// `strip_keys` of strip `lane` (of both views, see list_lengths).
struct Findings {
  int candidates;
  int keys;
  int strip_keys;
};

__device__ __forceinline__ Findings findings(const ScreenTail& tail, int place) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  Findings found{0, 0, tail.listed[place][lane & (kStripsPerBlock - 1)]};
  if (lane < kTilesPerBlock) {
    const int* parts = &tail.candidates[place][lane * kStripsPerTile];
    found.candidates = parts[0] < 0 ? parts[0] : parts[0] + parts[1] + parts[2] + parts[3];
    const int* listed = &tail.listed[place][lane * kStripsPerTile];
    found.keys =
        min(min(listed[0], listed[1]), min(listed[2], listed[3])) < 0
            ? kNotListed
            : list_lengths(listed[0]) + list_lengths(listed[1]) + list_lengths(listed[2]) + list_lengths(listed[3]);
  }
  return found;
}

// Whether the dispatcher itself writes zeros for a strip of a listed row tile that has no candidate: not if something
// else is asked for, which the listed kernel writes (survivor counts, survivor lists, saved factors).
__device__ __forceinline__ bool zeroes_strips(const ForwardArguments& a) {
  return a.survivors == nullptr && a.index == nullptr;
}

// Hands out the 256 rows of a finished job: dense together, or sparse row tiles by their number of candidates, or by
// strips with lists.
template <bool kPacked, bool kListing>
__device__ __forceinline__ void hand_out(const ForwardArguments& a, const RowBlockJob& job,
                                         const RowBlock<kPacked>& rows, const Findings& found) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  const int candidates = found.candidates;
  const int tile = rows.block * kTilesPerBlock + lane;
  const bool exists = lane < kTilesPerBlock && tile * kRowTile < rows.sequence.query_length();
  const bool dense = a.dense_kernel && __all_sync(0xffffffffu, !exists || candidates < 0);
  const bool listed = exists && is_listed<kListing>(candidates, found.keys);
  // What goes by lists is not crowded, however many blocks hold a candidate.
  count_row_tile(a, rows.head, last_visible_key(rows.sequence, tile), exists, dense, listed ? 1 : candidates,
                 candidates != kUnscreened);
  if (dense) {
    if (lane == 0) a.dense_list[atomicAdd(&a.counters->dense_jobs, 1)] = job.head_of_all * a.row_blocks + job.slot;
    return;
  }
  const std::int64_t strips = static_cast<std::int64_t>(a.batch) * a.query_heads * a.row_blocks * kStripsPerBlock;
  const int first_row = rows.block * kScreenRows + lane * kStripRows;
  const int sum = list_lengths(found.strip_keys);
  if (__shfl_sync(0xffffffffu, listed, lane / kStripsPerTile) && lane < kStripsPerBlock &&
      first_row < rows.sequence.query_length() && !(sum == 0 && zeroes_strips(a))) {
    const int bucket = sum == 0 ? 0 : 31 - __clz(sum);
    const int position = atomicAdd(&a.counters->listed_jobs[bucket], 1);
    a.listed_list[bucket * strips + position] =
        ListedJob{rows.sequence.batch(), rows.head, first_row, found.strip_keys};
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

// Begins to write zeros to the output of the strips without a candidate, but for those that hand_out() hands out.
// `zeros`: kZeroBytes in shared memory. Survivor counts of row tiles without a candidate become zero, too.
template <typename Element, int kHeadDim, bool kPacked, bool kListing>
__device__ __forceinline__ void zero_empty_strips(const ForwardArguments& a, const RowBlock<kPacked>& block,
                                                  const Findings& found, std::uint32_t zeros) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  const Sequence<kPacked>& s = block.sequence;
  const int tile = lane / kStripsPerTile;
  const int candidates = __shfl_sync(0xffffffffu, found.candidates, tile);
  const bool listed = is_listed<kListing>(candidates, __shfl_sync(0xffffffffu, found.keys, tile));
  const int first_row = block.block * kScreenRows;
  const int row = first_row + lane * kStripRows;
  const int rows = lane < kStripsPerBlock ? min(kStripRows, s.query_length() - row) : 0;
  const bool empty = candidates == 0 || (listed && list_lengths(found.strip_keys) == 0 && zeroes_strips(a));
  if (rows > 0 && empty) {
    int done = 0;
    for (; done + kZeroRows <= rows; done += kZeroRows) {
#pragma unroll
      for (int half = 0; half < kHeadDim / 64; ++half) {
        store_tile(zeros, a.zeroed_output, half * 64, s.first_query() + row + done, block.head, s.batch());
      }
    }
    auto* const output = static_cast<Element*>(a.output) + s.batch() * a.output_batch_stride +
                         block.head * a.output_head_stride + (s.first_query() + row) * a.output_row_stride;
    for (; done < rows; ++done) store_bytes(output + done * a.output_row_stride, zeros, kHeadDim * 2);
  }
  if (a.survivors == nullptr) return;
  const std::uint32_t strips = __ballot_sync(0xffffffffu, empty);
  std::int32_t* const counts = a.survivors + flat_row(a, s, block.head) + first_row;
  for (int i = lane; i < min(kScreenRows, s.query_length() - first_row); i += 32) {
    if ((strips >> i / kStripRows & 1u) != 0) counts[i] = 0;
  }
}

// Clears the words of the survivor index of row tiles without a candidate and of listed ones, whose live slices the
// listed kernel marks.
template <bool kPacked, bool kListing>
__device__ __forceinline__ void clear_index(const ForwardArguments& a, const RowBlock<kPacked>& rows,
                                            const Findings& found) {
  if (a.index == nullptr) return;
  const Sequence<kPacked>& s = rows.sequence;
#pragma unroll 1
  for (int i = 0; i < kTilesPerBlock; ++i) {
    const int tile = rows.block * kTilesPerBlock + i;
    if (tile * kRowTile >= s.query_length()) break;
    const int candidates = __shfl_sync(0xffffffffu, found.candidates, i);
    const int keys = __shfl_sync(0xffffffffu, found.keys, i);
    if (candidates != 0 && !is_listed<kListing>(candidates, keys)) continue;
    const int last = last_visible_key(s, tile);
    for (int view = 0; view < a.views; ++view) {
      std::uint32_t* words = a.index + a.index_layout.word_offset(view, rows.head, s.first_row_tile() + tile);
      for (int w = static_cast<int>(threadIdx.x & 31); w <= last / kKeysPerWord; w += 32) words[w] = 0;
    }
  }
}

// Three warps beside the producer see to finished jobs, while the consumers go on: warp 0 hands out rows, warp 1 writes
// zeros, warp 2 clears the index.
template <typename Element, int kHeadDim, bool kPacked, bool kListing>
__device__ __forceinline__ void screen_dispatcher(const ForwardArguments& a, ScreenTail& tail, std::uint32_t zeros,
                                                  int warp) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  for (int turn = 0;; ++turn) {
    const int place = turn & 3;
    barrier_wait(shared_address(&tail.finished[place]), (turn >> 2) & 1);
    const RowBlockJob job = tail.finished_job[place];
    if (job.head_of_all < 0) break;
    const Findings found = findings(tail, place);
    __syncwarp();
    if (lane == 0) barrier_arrive(shared_address(&tail.dispatched[place]));
    const RowBlock<kPacked> rows = row_block<kPacked>(a, job.head_of_all, job.slot);
    if (warp == 0) {
      hand_out<kPacked, kListing>(a, job, rows, found);
    } else if (warp == 1) {
      zero_empty_strips<Element, kHeadDim, kPacked, kListing>(a, rows, found, zeros);
    } else {
      clear_index<kPacked, kListing>(a, rows, found);
    }
  }
  if (warp == 1) wait_for_stores();  // of all jobs: their source never changes
}

}  // namespace tda::cuda::sm90
