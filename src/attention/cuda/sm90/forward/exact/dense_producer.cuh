// Plans, jobs and shared memory of the dense kernel (dense.cuh), and the warp that fetches its tiles.
#pragma once

#include <type_traits>

#include "attention/cuda/common/barrier.cuh"
#include "attention/cuda/common/copy_engine.cuh"
#include "attention/cuda/sm90/forward/row_block_jobs.cuh"
#include "attention/cuda/sm90/forward/row_formulas.cuh"

namespace tda::cuda::sm90 {

template <int kHeadDim_, int kViews_, int kWarpgroups_, int kParts_, bool kQueriesShared_>
struct StepPlan {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kViews = kViews_;
  static constexpr int kWarpgroups = kWarpgroups_;
  static constexpr int kParts = kParts_;  // of 64 rows, a warpgroup
  static constexpr bool kQueriesShared = kQueriesShared_;
  static constexpr int kConsumers = kWarpgroups * 128;
  static constexpr int kThreads = kConsumers + 128;
  static constexpr int kConsumerRegisters = kWarpgroups == 4 ? 112 : 240;
  static constexpr int kProducerRegisters = kWarpgroups == 4 ? 32 : 24;
  // The warps beside the producer can compute 1/|k|, where few jobs read a key (ForwardArguments::dense_scales).
  static constexpr bool kMayScale = dense_may_scale(kHeadDim, kViews);
  static constexpr int kRows = kWarpgroups * kParts * kRowTile;  // a job
  static constexpr int kJobsPerBlock = kScreenRows / kRows;
  static constexpr int kSets = kParts * kViews;         // of 64 x 64 scores, a warpgroup
  static constexpr int kTileBytes = 64 * kHeadDim * 2;  // 64 rows of q, k or v: D/64 blocks of 8 KiB
  // Queries that go to registers leave their slot at once.
  static constexpr int kQuerySlots = kViews * kHeadDim == 256 ? 1 : 2;
  static constexpr int kQueryTiles = kRows / kRowTile;  // of each view
  static constexpr int kQueryBytes = kViews * kQueryTiles * kTileBytes;
  static constexpr int kSlots = kViews == 1 ? (kHeadDim == 64 ? 8 : 4) : (kHeadDim == 64 ? 6 : 3);
  static constexpr int kSlotBytes = (kViews + 1) * kTileBytes;  // keys of each view, values
  static constexpr int kScaleBytes = kBlockKeys * 4;            // of one view
  static constexpr int kTailBytes = 2560;
  static constexpr int kSharedBytes =
      1024 + kQuerySlots * kQueryBytes + kSlots * (kSlotBytes + kViews * kScaleBytes) + kTailBytes;
  static_assert(kSets <= 2 && kSharedBytes <= 227 * 1024);
};

// The plan of a problem. For one view and D = 64 four warpgroups hide the conversions better than two with two parts
// each (<64, 1, 2, 2, false>): docs/experiments/2026-11-22-hopper-forward.md.
template <int kHeadDim, int kViews>
using DensePlan = std::conditional_t<kHeadDim == 64 && kViews == 1, StepPlan<64, 1, 4, 1, true>,
                                     StepPlan<kHeadDim, kViews, 2, 1, false>>;

enum class SlotContent : int { kValues, kKeys, kEnd };
constexpr int kScalingWarps = 2;  // a row a thread

struct StepTail {
  std::uint64_t query_full[2], query_empty[2];
  std::uint64_t full[8], empty[8];
  std::uint32_t slices[2 * 4 * 4];  // exchanges of SliceWords: halves x sets of all warpgroups x warps
  float row[8][kRowTile];           // what consumers keep here of each row for want of registers
  int job[2];                       // row block * kJobsPerBlock + part of it, or -1
  SlotContent content[8];           // with dense_scales
  std::uint64_t scaled[8];          // 1/|k| of the slot is there; with dense_scales
};

static_assert(sizeof(StepTail) <= 2560);

template <bool kPacked>
struct StepJob {
  Sequence<kPacked> sequence;
  int head, first_row;
};

// Steps that `rows` rows from `first_row` see; 0 behind the end.
template <bool kPacked>
__device__ __forceinline__ int visible_steps(const Sequence<kPacked>& s, int first_row, int rows) {
  if (first_row >= s.query_length()) return 0;
  return (s.offset() + min(first_row + rows, s.query_length()) - 1) / kBlockKeys + 1;
}

// Slots that `steps` steps take: the last holds values alone.
__device__ __forceinline__ int turns_of(int steps) { return steps > 0 ? steps + 1 : 0; }

template <typename Plan, bool kPacked>
__device__ __forceinline__ StepJob<kPacked> step_job(const ForwardArguments& a, int job_of_all) {
  const int block = job_of_all / Plan::kJobsPerBlock;
  const RowBlock<kPacked> rows = row_block<kPacked>(a, block / a.row_blocks, block % a.row_blocks);
  return {rows.sequence, rows.head, rows.block * kScreenRows + job_of_all % Plan::kJobsPerBlock * Plan::kRows};
}

// The row block of a claim: head * row_blocks + slot.
template <bool kPacked>
__device__ __forceinline__ int dense_block(const ForwardArguments& a, int claimed) {
  if (kPacked || !a.all_dense) return a.dense_list[claimed];
  const RowBlockJob job = row_block_job<kPacked>(a, claimed);
  return job.head_of_all * a.row_blocks + job.slot;
}

template <typename Plan, bool kPacked>
__device__ __forceinline__ bool scales_here(const ForwardArguments& a) {
  return !kPacked && Plan::kMayScale && a.dense_scales;
}

// 1/|k| of the keys of each slot, to the bit as prepare_keys computes it. A consumer of slots like any other.
template <typename Element, typename Plan>
__device__ __forceinline__ void step_scaler(const ForwardArguments& a, std::uint32_t slots, std::uint32_t scales,
                                            StepTail& tail, int row) {
  for (SlotRing<Plan::kSlots> ring(0);; ring.advance()) {
    barrier_wait(shared_address(&tail.full[ring.slot]), ring.phase);
    const SlotContent content = tail.content[ring.slot];
    if (content == SlotContent::kEnd) return;
    if (content == SlotContent::kKeys) {
      const std::uint32_t keys = slots + ring.slot * Plan::kSlotBytes;
      float squares[8];
#pragma unroll
      for (int chunk = 0; chunk < 8; ++chunk) {
        squares[chunk] = sum_of_squares<Element>(load_shared_uint4(keys + swizzled_offset<128>(row, chunk)));
      }
#pragma unroll
      for (int distance = 1; distance < 8; distance *= 2) {
#pragma unroll
        for (int chunk = 0; chunk < 8; chunk += 2 * distance) squares[chunk] += squares[chunk + distance];
      }
      store_shared_float(scales + ring.slot * Plan::kScaleBytes + row * 4, key_scale(a.normalize, squares[0]));
    }
    __syncwarp();
    if ((threadIdx.x & 31) == 0) {
      barrier_arrive(shared_address(&tail.scaled[ring.slot]));
      barrier_arrive(shared_address(&tail.empty[ring.slot]));
    }
  }
}

template <typename Plan, bool kPacked>
__device__ __forceinline__ void step_producer(const ForwardArguments& a, std::uint32_t queries, std::uint32_t slots,
                                              std::uint32_t scales, StepTail& tail) {
  const int blocks = !kPacked && a.all_dense ? RowBlockJobs<kPacked>(a).count() : a.counters->dense_jobs;
  SlotRing<Plan::kSlots> ring(1);
  const auto copy = [&](std::uint32_t destination, const CUtensorMap& map, std::uint32_t full, int row, int head,
                        int batch) {
#pragma unroll
    for (int half = 0; half < Plan::kHeadDim / 64; ++half) {
      copy_tile(destination + half * 8192, map, full, half * 64, row, head, batch);
    }
  };
  const int scale_bytes = scales_here<Plan, kPacked>(a) ? 0 : Plan::kScaleBytes;
  SlotRing<Plan::kQuerySlots> query_ring(1);
  for (;; query_ring.advance()) {
    const int claimed = atomicAdd(&a.counters->dense_claims, 1);
    const std::uint32_t query_full = shared_address(&tail.query_full[query_ring.slot]);
    barrier_wait(shared_address(&tail.query_empty[query_ring.slot]), query_ring.phase);
    const int block = claimed / Plan::kJobsPerBlock;
    if (block >= blocks) {
      tail.job[query_ring.slot] = -1;
      barrier_arrive(query_full);
      if (!scales_here<Plan, kPacked>(a)) return;
      barrier_wait(shared_address(&tail.empty[ring.slot]), ring.phase);
      tail.content[ring.slot] = SlotContent::kEnd;
      barrier_arrive(shared_address(&tail.full[ring.slot]));
      return;
    }
    // The second half of a row block, which is longer, comes first.
    const int part_of_block = Plan::kJobsPerBlock - 1 - claimed % Plan::kJobsPerBlock;
    const int job_of_all = dense_block<kPacked>(a, block) * Plan::kJobsPerBlock + part_of_block;
    tail.job[query_ring.slot] = job_of_all;
    const StepJob<kPacked> job = step_job<Plan, kPacked>(a, job_of_all);
    const Sequence<kPacked>& s = job.sequence;
    const int steps = visible_steps(s, job.first_row, Plan::kRows);
    const int key_head = job.head / a.heads_per_key;
    barrier_arrive_expect(query_full, Plan::kQueryBytes);
#pragma unroll
    for (int view = 0; view < Plan::kViews; ++view) {
      for (int tile = 0; tile < Plan::kQueryTiles; ++tile) {
        copy(queries + query_ring.slot * Plan::kQueryBytes + (view * Plan::kQueryTiles + tile) * Plan::kTileBytes,
             a.query[view], query_full, s.first_query() + job.first_row + tile * kRowTile, job.head, s.batch());
      }
    }
    for (int step = 0; step < turns_of(steps); ++step) {
      barrier_wait(shared_address(&tail.empty[ring.slot]), ring.phase);
      const std::uint32_t full = shared_address(&tail.full[ring.slot]);
      const std::uint32_t tiles = slots + ring.slot * Plan::kSlotBytes;
      const int value_bytes = step > 0 ? Plan::kTileBytes : 0;
      const int key_bytes = step < steps ? Plan::kViews * (Plan::kTileBytes + scale_bytes) : 0;
      if (scales_here<Plan, kPacked>(a)) {
        tail.content[ring.slot] = step < steps ? SlotContent::kKeys : SlotContent::kValues;
      }
      barrier_arrive_expect(full, value_bytes + key_bytes);
      if (step > 0) {
        copy(tiles + Plan::kViews * Plan::kTileBytes, a.value, full, s.first_key() + (step - 1) * kBlockKeys, key_head,
             s.batch());
      }
      if (step < steps) {
#pragma unroll
        for (int view = 0; view < Plan::kViews; ++view) {
          copy(tiles + view * Plan::kTileBytes, a.key[view], full, s.first_key() + step * kBlockKeys, key_head,
               s.batch());
          if (scales_here<Plan, kPacked>(a)) continue;
          copy_bytes(scales + (ring.slot * Plan::kViews + view) * Plan::kScaleBytes,
                     key_scales(a, view, s, key_head) + step * kBlockKeys, Plan::kScaleBytes, full);
        }
      }
      ring.advance();
    }
  }
}

}  // namespace tda::cuda::sm90
