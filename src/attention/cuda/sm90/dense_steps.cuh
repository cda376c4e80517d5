// The dense forward: every visible block of the row blocks that the screen found dense; nothing is skipped.
//
// Plan. Persistent, one block per multiprocessor: 2 or 4 consumer warpgroups, each with one or two parts of 64 query
// rows (StepPlan), and a producer warp. A step is 64 keys.
//   shared   2 query slots, kSlots slots of a step: the keys of step s and their 1/|k|, the values of step s - 1
//   barriers query full/empty, slot full/empty; empties count one arrival per consumer warp
// A warpgroup issues, at step s, Q K' of its parts and then P V of step s - 1, waits for Q K' alone and converts the
// scores while P V runs; it rounds them to weights when P V has let go of the registers of the old ones. Nothing else
// orders the warpgroups.
// Registers a thread: for each part output D/2, scores 32, weights 16, and queries D/4 unless they are read from shared
// memory by the products (kQueriesShared). Shared memory delivers 128 bytes a cycle: at D = 64 a step of 64 rows has
// 256 cycles of products, in which K and V take 128, the copy engine 32 and 1/|k| 32; queries in shared memory 64 more.
#pragma once

#include <type_traits>

#include "attention/cuda/common/barrier.cuh"
#include "attention/cuda/common/copy_engine.cuh"
#include "attention/cuda/sm90/exact_scores.cuh"
#include "attention/cuda/sm90/slice_words.cuh"
#include "attention/cuda/sm90/survivor_lists.cuh"

namespace tda::cuda::sm90 {

template <int kHeadDim_, int kWarpgroups_, int kParts_, bool kQueriesShared_>
struct StepPlan {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kWarpgroups = kWarpgroups_;
  static constexpr int kParts = kParts_;  // of 64 rows, a warpgroup
  static constexpr bool kQueriesShared = kQueriesShared_;
  static constexpr int kConsumers = kWarpgroups * 128;
  static constexpr int kThreads = kConsumers + 128;
  static constexpr int kConsumerRegisters = kWarpgroups == 4 ? 112 : 240;
  static constexpr int kProducerRegisters = kWarpgroups == 4 ? 32 : 24;
  static constexpr int kRows = kWarpgroups * kParts * kRowTile;  // a job
  static constexpr int kJobsPerBlock = kScreenRows / kRows;
  static constexpr int kSlots = kHeadDim == 64 ? 8 : 4;
  static constexpr int kTileBytes = 64 * kHeadDim * 2;  // 64 rows of q, k or v: D/64 blocks of 8 KiB
  static constexpr int kQueryBytes = kRows / 64 * kTileBytes;
  static constexpr int kSlotBytes = 2 * kTileBytes;
  static constexpr int kScaleBytes = kBlockKeys * 4;
  static constexpr int kTailBytes = 512;
  static constexpr int kSharedBytes = 1024 + 2 * kQueryBytes + kSlots * (kSlotBytes + kScaleBytes) + kTailBytes;
};

// The plan of a head dimension. To measure others: <64, 4, 1, true> has four warpgroups, which must leave the queries
// in shared memory.
template <int kHeadDim>
using DenseStepPlan = std::conditional_t<kHeadDim == 64, StepPlan<64, 2, 2, false>, StepPlan<128, 2, 1, false>>;

// Which dense kernel runs: by steps (here) or by turns (dense.cuh).
template <int kHeadDim>
constexpr bool kDenseBySteps = true;

struct StepTail {
  std::uint64_t query_full[2], query_empty[2];
  std::uint64_t full[8], empty[8];
  std::uint32_t slices[2 * 4 * 4];  // exchanges of SliceWords: halves x row tiles x warps
  int job[2];                       // row block * kJobsPerBlock + part of it, or -1
};

struct StepJob {
  int batch, head, first_row, steps;
};

// Steps that `rows` rows from `first_row` see; 0 behind the end.
__device__ __forceinline__ int visible_steps(const ForwardArguments& a, int first_row, int rows) {
  if (first_row >= a.query_length) return 0;
  return (a.position_offset + min(first_row + rows, a.query_length) - 1) / kBlockKeys + 1;
}

// Slots that `steps` steps take: the last holds values alone.
__device__ __forceinline__ int turns_of(int steps) { return steps > 0 ? steps + 1 : 0; }

template <typename Plan>
__device__ __forceinline__ StepJob step_job(const ForwardArguments& a, int job_of_all) {
  const int block = job_of_all / Plan::kJobsPerBlock;
  const int head_of_all = block / a.row_blocks;
  StepJob job;
  job.batch = head_of_all / a.query_heads;
  job.head = head_of_all % a.query_heads;
  job.first_row = block % a.row_blocks * kScreenRows + job_of_all % Plan::kJobsPerBlock * Plan::kRows;
  job.steps = visible_steps(a, job.first_row, Plan::kRows);
  return job;
}

template <typename Plan>
__device__ __forceinline__ void step_producer(const ForwardArguments& a, std::uint32_t queries, std::uint32_t slots,
                                              std::uint32_t scales, StepTail& tail) {
  const int jobs = a.counters->dense_jobs * Plan::kJobsPerBlock;
  SlotRing<Plan::kSlots> ring(1);
  const auto copy = [&](std::uint32_t destination, const CUtensorMap& map, std::uint32_t full, int row, int head,
                        int batch) {
#pragma unroll
    for (int half = 0; half < Plan::kHeadDim / 64; ++half) {
      copy_tile(destination + half * 8192, map, full, half * 64, row, head, batch);
    }
  };
  for (int use = 0;; ++use) {
    const int claimed = atomicAdd(&a.counters->dense_claims, 1);
    const int query_slot = use & 1;
    const std::uint32_t query_full = shared_address(&tail.query_full[query_slot]);
    barrier_wait(shared_address(&tail.query_empty[query_slot]), ((use >> 1) & 1) ^ 1);
    if (claimed >= jobs) {
      tail.job[query_slot] = -1;
      barrier_arrive(query_full);
      return;
    }
    // The second half of a row block, which is longer, comes first.
    const int part_of_block = Plan::kJobsPerBlock - 1 - claimed % Plan::kJobsPerBlock;
    const int job_of_all = a.dense_list[claimed / Plan::kJobsPerBlock] * Plan::kJobsPerBlock + part_of_block;
    tail.job[query_slot] = job_of_all;
    const StepJob job = step_job<Plan>(a, job_of_all);
    const int key_head = job.head / a.heads_per_key;
    barrier_arrive_expect(query_full, Plan::kQueryBytes);
    for (int tile = 0; tile < Plan::kRows / 64; ++tile) {
      copy(queries + query_slot * Plan::kQueryBytes + tile * Plan::kTileBytes, a.query[0], query_full,
           job.first_row + tile * 64, job.head, job.batch);
    }
    const float* key_scale =
        a.key_scale + static_cast<std::int64_t>(job.batch * a.key_heads + key_head) * a.key_tiles * kScreenKeys;
    for (int step = 0; step < turns_of(job.steps); ++step) {
      barrier_wait(shared_address(&tail.empty[ring.slot]), ring.phase);
      const std::uint32_t full = shared_address(&tail.full[ring.slot]);
      const std::uint32_t tiles = slots + ring.slot * Plan::kSlotBytes;
      const int value_bytes = step > 0 ? Plan::kTileBytes : 0;
      const int key_bytes = step < job.steps ? Plan::kTileBytes + Plan::kScaleBytes : 0;
      barrier_arrive_expect(full, value_bytes + key_bytes);
      if (step > 0) copy(tiles + Plan::kTileBytes, a.value, full, (step - 1) * kBlockKeys, key_head, job.batch);
      if (step < job.steps) {
        copy(tiles, a.key[0], full, step * kBlockKeys, key_head, job.batch);
        copy_bytes(scales + ring.slot * Plan::kScaleBytes, key_scale + step * kBlockKeys, Plan::kScaleBytes, full);
      }
      ring.advance();
    }
  }
}

template <typename Element, bool kSquare, typename Plan>
__device__ __forceinline__ void step_consumer(const ForwardArguments& a, std::uint32_t queries, std::uint32_t slots,
                                              std::uint32_t scales, StepTail& tail) {
  constexpr int kHeadDim = Plan::kHeadDim;
  constexpr int kChunks = kHeadDim / 16;
  constexpr int kParts = Plan::kParts;
  const int warpgroup = uniform(static_cast<int>(threadIdx.x >> 7));
  const int warp = static_cast<int>(threadIdx.x >> 5) & 3;
  const int lane = static_cast<int>(threadIdx.x & 31);
  const int row_in_tile = warp * 16 + (lane >> 2);
  SlotRing<Plan::kSlots> ring(0);
  SliceWords<kParts> index;
  auto& exchange = reinterpret_cast<typename SliceWords<kParts>::Exchange*>(tail.slices)[warpgroup];
  for (int use = 0;; ++use) {
    const int query_slot = use & 1;
    barrier_wait(shared_address(&tail.query_full[query_slot]), (use >> 1) & 1);
    const int job_of_all = uniform(tail.job[query_slot]);
    if (job_of_all < 0) return;
    const StepJob job = step_job<Plan>(a, job_of_all);
    const int first_row = job.first_row + warpgroup * kParts * kRowTile;
    const int first_position = a.position_offset + first_row;
    const std::uint32_t query_tiles = queries + query_slot * Plan::kQueryBytes + warpgroup * kParts * Plan::kTileBytes;
    const auto free_queries = [&] {
      __syncwarp();
      if (lane == 0) barrier_arrive(shared_address(&tail.query_empty[query_slot]));
    };

    std::uint32_t q[kParts][kChunks][4];
    QueryRows rows[kParts];
    ListWriter lists[kParts];
    float output[kParts][kHeadDim / 2];
    int survivors[kParts][2] = {};
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      std::uint32_t address[kChunks];
#pragma unroll
      for (int k = 0; k < kChunks; ++k) {
        address[k] = query_tiles + part * Plan::kTileBytes + k / 4 * 8192 +
                     swizzled_offset<128>(warp * 16 + (lane & 15), (k % 4) * 2 + (lane >> 4));
        load_matrices(address[k], q[part][k]);
      }
      const int row = first_row + part * kRowTile + row_in_tile;
      lists[part].begin(a, 0, job.batch * a.query_heads + job.head, row);
      rows[part] = prepare_queries<Element, kHeadDim>(a, a.beta[job.head], row, q[part]);
      if constexpr (Plan::kQueriesShared) {
#pragma unroll
        for (int k = 0; k < kChunks; ++k) store_matrices(address[k], q[part][k]);
      }
#pragma unroll
      for (int i = 0; i < kHeadDim / 2; ++i) output[part][i] = 0.0f;
    }
    if constexpr (Plan::kQueriesShared) {
      fence_shared_for_copies();  // products read shared memory as the copy engine does
      named_barrier_sync(1 + warpgroup, 128);
    } else {
      free_queries();
    }

    float t[kParts][32];
    std::uint32_t weights[kParts][4][4];
    const auto scores = [&](int part, std::uint32_t tiles) {
#pragma unroll
      for (int k = 0; k < kChunks; ++k) {
        const std::uint64_t key = k_major_descriptor<128>(tiles + k / 4 * 8192) + 2 * (k % 4);
        if constexpr (Plan::kQueriesShared) {
          const std::uint64_t query =
              k_major_descriptor<128>(query_tiles + part * Plan::kTileBytes + k / 4 * 8192) + 2 * (k % 4);
          if (k == 0) {
            wgmma<Element, false>(t[part], query, key);
          } else {
            wgmma<Element, true>(t[part], query, key);
          }
        } else {
          if (k == 0) {
            wgmma<Element, false, false>(t[part], q[part][k], key);
          } else {
            wgmma<Element, true, false>(t[part], q[part][k], key);
          }
        }
      }
      wgmma_commit();
    };
    const auto accumulate = [&](std::uint32_t tiles) {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          wgmma<Element, true, true>(output[part], weights[part][k],
                                     mn_major_descriptor(tiles + Plan::kTileBytes, 8192) + 128 * k);
        }
      }
      wgmma_commit();
    };
    const auto convert = [&](int part, int step, std::uint32_t key_scales) {
      subtract_threshold(t[part], key_scales, rows[part]);
      const int position = first_position + part * kRowTile;
      if (step * kBlockKeys + kBlockKeys - 1 > position) {
        hide_future(t[part], position + row_in_tile - step * kBlockKeys);
      }
      if (a.survivors != nullptr) {
#pragma unroll
        for (int i = 0; i < 32; ++i) survivors[part][(i >> 1) & 1] += t[part][i] > 0.0f ? 1 : 0;
      }
      if (a.index != nullptr) {
        const std::uint32_t slices = live_slices(t[part]);
        index.add(part, slices, step);
        if (lists[part].lists()) {
          lists[part].add(a, t[part], __reduce_or_sync(0xffffffffu, slices), step * kBlockKeys);
        }
      }
      raise<kSquare>(t[part], a.power);
    };
    const auto write_index = [&](int step, bool last) {
      if (a.index == nullptr) return;
      index.finish_block(step, last, exchange, 1 + warpgroup, [&](int part) -> std::uint32_t* {
        const int tile = first_row / kRowTile + part;
        if (tile >= a.row_tiles) return nullptr;
        return a.index +
               a.index_layout.word_offset(0, job.head, static_cast<std::int64_t>(job.batch) * a.row_tiles + tile);
      });
    };
    const auto hold_all = [&] {
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        hold(t[part]);
        hold(output[part]);
#pragma unroll
        for (int k = 0; k < 4; ++k) hold(weights[part][k]);
      }
    };
    const auto finish_step = [&] {
      if (lane == 0) barrier_arrive(shared_address(&tail.empty[ring.slot]));
      ring.advance();
    };

    index.begin();
    // Steps of this warpgroup; the job's may be more.
    const int steps = visible_steps(a, first_row, kParts * kRowTile);
    if (steps > 0) {
      barrier_wait(shared_address(&tail.full[ring.slot]), ring.phase);
      hold_all();
      wgmma_fence();
#pragma unroll
      for (int part = 0; part < kParts; ++part) scores(part, slots + ring.slot * Plan::kSlotBytes);
      wgmma_wait<0>();
      hold_all();
      const std::uint32_t key_scales = scales + ring.slot * Plan::kScaleBytes;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        convert(part, 0, key_scales);
        round_weights<Element, kSquare>(t[part], weights[part]);
      }
      write_index(0, steps == 1);
      finish_step();
    }
#pragma unroll 1
    for (int step = 1; step < steps; ++step) {
      const std::uint32_t tiles = slots + ring.slot * Plan::kSlotBytes;
      barrier_wait(shared_address(&tail.full[ring.slot]), ring.phase);
      hold_all();
      wgmma_fence();
#pragma unroll
      for (int part = 0; part < kParts; ++part) scores(part, tiles);
      accumulate(tiles);
      const std::uint32_t key_scales = scales + ring.slot * Plan::kScaleBytes;
      if constexpr (kParts == 2) {
        wgmma_wait<2>();
        hold(t[0]);
        convert(0, step, key_scales);
      }
      wgmma_wait<1>();
      hold(t[kParts - 1]);
      convert(kParts - 1, step, key_scales);
      write_index(step, step == steps - 1);
      wgmma_wait<0>();
      hold_all();
      finish_step();
#pragma unroll
      for (int part = 0; part < kParts; ++part) round_weights<Element, kSquare>(t[part], weights[part]);
    }
    if (steps > 0) {
      barrier_wait(shared_address(&tail.full[ring.slot]), ring.phase);
      hold_all();
      wgmma_fence();
      accumulate(slots + ring.slot * Plan::kSlotBytes);
      wgmma_wait<0>();
#pragma unroll
      for (int part = 0; part < kParts; ++part) hold(output[part]);
      finish_step();
    }
    for (int turn = turns_of(steps); turn < turns_of(job.steps); ++turn) {  // of the other warpgroups alone
      barrier_wait(shared_address(&tail.full[ring.slot]), ring.phase);
      finish_step();
    }
    if constexpr (Plan::kQueriesShared) {
      fence_shared_for_copies();
      free_queries();
    }

#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int tile_row = first_row + part * kRowTile;
      store_output<Element, kHeadDim>(a, job.batch, job.head, tile_row + warp * 16, output[part], rows[part]);
      if (a.survivors != nullptr) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          int count = survivors[part][h];
          count += __shfl_xor_sync(0xffffffffu, count, 1);
          count += __shfl_xor_sync(0xffffffffu, count, 2);
          const int row = tile_row + row_in_tile + 8 * h;
          if ((lane & 3) == 0 && row < a.query_length) {
            a.survivors[(static_cast<std::int64_t>(job.batch) * a.query_heads + job.head) * a.query_length + row] =
                count;
          }
        }
      }
      lists[part].finish(a);
    }
  }
}

template <typename Element, bool kSquare, typename Plan>
__global__ void __launch_bounds__(Plan::kThreads, 1) dense_steps(const __grid_constant__ ForwardArguments a) {
  extern __shared__ std::uint8_t shared[];
  const std::uint32_t queries = uniform(aligned_shared_address(shared));
  const std::uint32_t slots = queries + 2 * Plan::kQueryBytes;
  const std::uint32_t scales = slots + Plan::kSlots * Plan::kSlotBytes;
  auto& tail =
      *reinterpret_cast<StepTail*>(shared + (scales - shared_address(shared)) + Plan::kSlots * Plan::kScaleBytes);
  if (threadIdx.x == 0) {
    constexpr int kWarps = Plan::kConsumers / 32;
    for (int i = 0; i < 2; ++i) {
      barrier_init(shared_address(&tail.query_full[i]), 1);
      barrier_init(shared_address(&tail.query_empty[i]), kWarps);
    }
    for (int i = 0; i < Plan::kSlots; ++i) {
      barrier_init(shared_address(&tail.full[i]), 1);
      barrier_init(shared_address(&tail.empty[i]), kWarps);
    }
    barrier_init_fence();
  }
  __syncthreads();
  wait_for_previous_kernel();
  if (threadIdx.x >= Plan::kConsumers) {
    shrink_registers<Plan::kProducerRegisters>();
    if (threadIdx.x == Plan::kConsumers) step_producer<Plan>(a, queries, slots, scales, tail);
  } else {
    grow_registers<Plan::kConsumerRegisters>();
    step_consumer<Element, kSquare, Plan>(a, queries, slots, scales, tail);
  }
}

}  // namespace tda::cuda::sm90
