// The dense forward: every visible block of the row blocks that the screen found dense; nothing is skipped.
//
// Plan. Persistent, one block per multiprocessor: 2 consumer warpgroups (240 registers) and a producer warp (24). At
// D = 64 a warpgroup owns two parts of 64 query rows (256 rows a job), at D = 128 one (128 rows a job).
//   shared   2 query slots, kSlots slots of 128 keys that hold K or V in turn, 1/|k| per slot                   ~195
//   KiB barriers query full/empty, slot full/empty; empties count one arrival per consumer warp
// The tensor work of a warpgroup comes in segments, [P V of the part before + Q K' of this part], each followed by the
// conversion of scores to weights. The two warpgroups take turns: one converts while the other's segment runs. A turn
// passes on as soon as the segment is issued.
// Cycles of 64 rows x 128 keys: 512 (D = 64) or 1024 (D = 128) on the tensor cores, about 190 instructions a warp to
// convert; power limits the clock before the tensor cores are full.
#pragma once

#include "attention/cuda/common/barrier.cuh"
#include "attention/cuda/common/copy_engine.cuh"
#include "attention/cuda/sm90/exact_scores.cuh"
#include "attention/cuda/sm90/survivor_lists.cuh"

namespace tda::cuda::sm90 {

template <int kHeadDim>
struct DensePlan {
  static constexpr int kThreads = 384;
  static constexpr int kParts = 128 / kHeadDim;        // of 64 rows, a warpgroup
  static constexpr int kRows = 2 * kParts * kRowTile;  // a job
  static constexpr int kJobsPerBlock = kScreenRows / kRows;
  static constexpr int kKeys = 128;
  static constexpr int kSlots = kHeadDim == 64 ? 8 : 4;
  static constexpr int kQueryBytes = kRows * kHeadDim * 2;
  static constexpr int kSlotBytes = kKeys * kHeadDim * 2;
  static constexpr int kScaleBytes = kKeys * 4;
  static constexpr int kSharedBytes = 1024 + 2 * kQueryBytes + kSlots * (kSlotBytes + kScaleBytes) + 256;
};

struct DenseTail {
  std::uint64_t query_full[2], query_empty[2];
  std::uint64_t full[8], empty[8];
  int job[2];
};

struct DenseJob {
  int batch, head, first_row, tiles;
};

// Job `claimed` of the dense list; the second half of a row block, which is longer, comes first.
template <int kHeadDim>
__device__ __forceinline__ DenseJob dense_job(const ForwardArguments& a, int claimed) {
  using Plan = DensePlan<kHeadDim>;
  const int block = a.dense_list[claimed / Plan::kJobsPerBlock];
  const int part = Plan::kJobsPerBlock - 1 - claimed % Plan::kJobsPerBlock;
  const int head_of_all = block / a.row_blocks;
  DenseJob job;
  job.batch = head_of_all / a.query_heads;
  job.head = head_of_all % a.query_heads;
  job.first_row = block % a.row_blocks * kScreenRows + part * Plan::kRows;
  const int last_row = min(job.first_row + Plan::kRows, a.query_length) - 1;
  job.tiles = job.first_row < a.query_length ? (a.position_offset + last_row) / Plan::kKeys + 1 : 0;
  return job;
}

template <int kHeadDim>
__device__ __forceinline__ void dense_producer(const ForwardArguments& a, std::uint32_t queries, std::uint32_t slots,
                                               std::uint32_t scales, DenseTail& tail) {
  using Plan = DensePlan<kHeadDim>;
  const int jobs = a.counters->dense_jobs * Plan::kJobsPerBlock;
  SlotRing<Plan::kSlots> ring(1);
  for (int use = 0;; ++use) {
    const int claimed = atomicAdd(&a.counters->dense_claims, 1);
    const int query_slot = use & 1;
    const std::uint32_t query_full = shared_address(&tail.query_full[query_slot]);
    barrier_wait(shared_address(&tail.query_empty[query_slot]), ((use >> 1) & 1) ^ 1);
    tail.job[query_slot] = claimed < jobs ? claimed : -1;
    if (claimed >= jobs) {
      barrier_arrive(query_full);
      return;
    }
    const DenseJob job = dense_job<kHeadDim>(a, claimed);
    const int key_head = job.head / a.heads_per_key;
    barrier_arrive_expect(query_full, Plan::kQueryBytes);
#pragma unroll
    for (int half = 0; half < kHeadDim / 64; ++half) {
      for (int part = 0; part < Plan::kRows / 64; ++part) {
        copy_tile(queries + query_slot * Plan::kQueryBytes + (half * Plan::kRows + part * 64) * 128, a.query[0],
                  query_full, half * 64, job.first_row + part * 64, job.head, job.batch);
      }
    }
    const float* key_scale =
        a.key_scale + static_cast<std::int64_t>(job.batch * a.key_heads + key_head) * a.key_tiles * kScreenKeys;
    for (int tile = 0; tile < job.tiles; ++tile) {
#pragma unroll
      for (int is_value = 0; is_value < 2; ++is_value) {
        barrier_wait(shared_address(&tail.empty[ring.slot]), ring.phase);
        const std::uint32_t full = shared_address(&tail.full[ring.slot]);
        barrier_arrive_expect(full, Plan::kSlotBytes + (is_value ? 0 : Plan::kScaleBytes));
#pragma unroll
        for (int half = 0; half < kHeadDim / 64; ++half) {
#pragma unroll
          for (int part = 0; part < 2; ++part) {
            copy_tile(slots + ring.slot * Plan::kSlotBytes + (half * Plan::kKeys + part * 64) * 128,
                      is_value ? a.value : a.key[0], full, half * 64, tile * Plan::kKeys + part * 64, key_head,
                      job.batch);
          }
        }
        if (!is_value) {
          copy_bytes(scales + ring.slot * Plan::kScaleBytes, key_scale + tile * Plan::kKeys, Plan::kScaleBytes, full);
        }
        ring.advance();
      }
    }
  }
}

// Every slice that the rows see counts as live: the backward finds out itself which are.
__device__ __forceinline__ void write_full_index(const ForwardArguments& a, const DenseJob& job, int row_tile) {
  const int last_slice = (a.position_offset + min((row_tile + 1) * kRowTile, a.query_length) - 1) / kSliceKeys;
  std::uint32_t* words =
      a.index + a.index_layout.word_offset(0, job.head, static_cast<std::int64_t>(job.batch) * a.row_tiles + row_tile);
  for (int w = static_cast<int>(threadIdx.x & 127); w <= last_slice / 32; w += 128) {
    const int left = last_slice - w * 32;
    words[w] = left >= 31 ? 0xffffffffu : (2u << left) - 1u;
  }
}

// Turns of the tensor cores between the two warpgroups (named barriers 2 and 3).
__device__ __forceinline__ void take_turn(int warpgroup) { named_barrier_sync(2 + warpgroup, 256); }
__device__ __forceinline__ void pass_turn(int warpgroup) { named_barrier_arrive(3 - warpgroup, 256); }

template <typename Element, int kHeadDim, bool kSquare>
__device__ __forceinline__ void dense_consumer(const ForwardArguments& a, std::uint32_t queries, std::uint32_t slots,
                                               std::uint32_t scales, DenseTail& tail) {
  using Plan = DensePlan<kHeadDim>;
  constexpr int kSteps = kHeadDim / 16;
  constexpr int kParts = Plan::kParts;
  const int warp = static_cast<int>(threadIdx.x >> 5);
  const int warpgroup = warp >> 2;
  const int lane = static_cast<int>(threadIdx.x & 31);
  SlotRing<Plan::kSlots> ring(0);
  if (warpgroup == 1) pass_turn(1);
  for (int use = 0;; ++use) {
    const int query_slot = use & 1;
    barrier_wait(shared_address(&tail.query_full[query_slot]), (use >> 1) & 1);
    const int claimed = tail.job[query_slot];
    if (claimed < 0) return;
    const DenseJob job = dense_job<kHeadDim>(a, claimed);
    const int first_row = job.first_row + warpgroup * kParts * kRowTile;
    const int row_in_tile = (warp & 3) * 16 + (lane >> 2);
    const int first_position = a.position_offset + first_row;

    std::uint32_t address[kSteps];
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      address[k] = queries + query_slot * Plan::kQueryBytes +
                   ((k / 4) * Plan::kRows + warpgroup * kParts * kRowTile) * 128 +
                   swizzled_offset<128>((warp & 3) * 16 + (lane & 15), (k % 4) * 2 + (lane >> 4));
    }
    QueryRows rows[kParts];
    ListWriter lists[kParts];
    float output[kParts][kHeadDim / 2];
    int survivors[kParts][2] = {};
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      std::uint32_t q[kSteps][4];
#pragma unroll
      for (int k = 0; k < kSteps; ++k) load_matrices(address[k] + part * kRowTile * 128, q[k]);
      lists[part].begin(a, 0, job.batch * a.query_heads + job.head, first_row + part * kRowTile + row_in_tile);
      rows[part] =
          prepare_queries<Element, kHeadDim>(a, a.beta[job.head], first_row + part * kRowTile + row_in_tile, q);
#pragma unroll
      for (int k = 0; k < kSteps; ++k) store_matrices(address[k] + part * kRowTile * 128, q[k]);
#pragma unroll
      for (int i = 0; i < kHeadDim / 2; ++i) output[part][i] = 0.0f;
    }
    __syncwarp();

    float t[64];
    std::uint32_t weights[8][4];
    std::uint32_t q[kSteps][4];  // loaded anew for each segment, before the turn
    auto load_queries = [&](int part) {
#pragma unroll
      for (int k = 0; k < kSteps; ++k) load_matrices(address[k] + part * kRowTile * 128, q[k]);
    };
    auto scores = [&](std::uint32_t keys) {
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < kSteps; ++k) {
        const std::uint64_t key = k_major_descriptor<128>(keys + (k / 4) * Plan::kKeys * 128) + 2 * (k % 4);
        if (k == 0) {
          wgmma<Element, false, false>(t, q[k], key);
        } else {
          wgmma<Element, true, false>(t, q[k], key);
        }
      }
    };
    auto accumulate = [&](float(&sum)[kHeadDim / 2], std::uint32_t values) {
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        wgmma<Element, true, true>(sum, weights[k], mn_major_descriptor(values, Plan::kKeys * 128) + 128 * k);
      }
    };
    auto convert = [&](int part, int tile, std::uint32_t key_scales) {
      subtract_threshold(t, key_scales, rows[part]);
      const int position = first_position + part * kRowTile;
      if (tile * Plan::kKeys + Plan::kKeys - 1 > position) hide_future(t, position + row_in_tile - tile * Plan::kKeys);
      if (a.survivors != nullptr) {
#pragma unroll
        for (int i = 0; i < 64; ++i) survivors[part][(i >> 1) & 1] += t[i] > 0.0f ? 1 : 0;
      }
      if (lists[part].lists()) {
        lists[part].add(a, t, __reduce_or_sync(0xffffffffu, live_slices(t)), tile * Plan::kKeys);
      }
      weigh<Element, kSquare>(t, a.power, weights);
    };
    auto release = [&](int slot) {
      if (lane == 0) barrier_arrive(shared_address(&tail.empty[slot]));
    };

    // Tiles that this warpgroup's last row sees; the other's may be one more.
    const int last_row = min(first_row + kParts * kRowTile, a.query_length) - 1;
    const int tiles = first_row < a.query_length ? (a.position_offset + last_row) / Plan::kKeys + 1 : 0;
    int value_slot = 0;  // of the pending product
    for (int tile = 0; tile < tiles; ++tile) {
      const int key_slot = ring.slot;
      const std::uint32_t keys = slots + key_slot * Plan::kSlotBytes;
      barrier_wait(shared_address(&tail.full[key_slot]), ring.phase);
      ring.advance();
      const int next_value_slot = ring.slot;
      const std::uint32_t value_phase = ring.phase;
      ring.advance();
      load_queries(0);
      hold(t);
      hold(output[kParts - 1]);
      take_turn(warpgroup);
      if (tile > 0) {
        accumulate(output[kParts - 1], slots + value_slot * Plan::kSlotBytes);
        scores(keys);
        wgmma_commit();
        pass_turn(warpgroup);
        wgmma_wait<0>();
        hold(t);
        hold(output[kParts - 1]);
        release(value_slot);
      } else {
        scores(keys);
        wgmma_commit();
        pass_turn(warpgroup);
        wgmma_wait<0>();
        hold(t);
      }
      convert(0, tile, scales + key_slot * Plan::kScaleBytes);
      barrier_wait(shared_address(&tail.full[next_value_slot]), value_phase);
      value_slot = next_value_slot;
      if constexpr (kParts == 2) {
        load_queries(1);
        hold(t);
        hold(output[0]);
        take_turn(warpgroup);
        accumulate(output[0], slots + value_slot * Plan::kSlotBytes);
        scores(keys);
        wgmma_commit();
        pass_turn(warpgroup);
        wgmma_wait<0>();
        hold(t);
        hold(output[0]);
        convert(1, tile, scales + key_slot * Plan::kScaleBytes);
      }
      release(key_slot);
    }
    if (tiles > 0) {
      hold(output[kParts - 1]);
      accumulate(output[kParts - 1], slots + value_slot * Plan::kSlotBytes);
      wgmma_commit();
      wgmma_wait<0>();
      hold(output[kParts - 1]);
      release(value_slot);
    }
    for (int tile = tiles; tile < job.tiles; ++tile) {  // tiles of the other warpgroup alone
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        take_turn(warpgroup);
        pass_turn(warpgroup);
      }
#pragma unroll
      for (int is_value = 0; is_value < 2; ++is_value) {
        barrier_wait(shared_address(&tail.full[ring.slot]), ring.phase);
        release(ring.slot);
        ring.advance();
      }
    }
    fence_shared_for_copies();
    __syncwarp();
    if (lane == 0) barrier_arrive(shared_address(&tail.query_empty[query_slot]));

#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int tile_row = first_row + part * kRowTile;
      store_output<Element, kHeadDim>(a, job.batch, job.head, tile_row + (warp & 3) * 16, output[part], rows[part]);
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
      if (a.index != nullptr && tile_row < a.query_length) write_full_index(a, job, tile_row / kRowTile);
    }
  }
}

template <typename Element, int kHeadDim, bool kSquare>
__global__ void __launch_bounds__(DensePlan<kHeadDim>::kThreads, 1) dense(const __grid_constant__ ForwardArguments a) {
  using Plan = DensePlan<kHeadDim>;
  extern __shared__ std::uint8_t shared[];
  const std::uint32_t queries = aligned_shared_address(shared);
  const std::uint32_t slots = queries + 2 * Plan::kQueryBytes;
  const std::uint32_t scales = slots + Plan::kSlots * Plan::kSlotBytes;
  auto& tail =
      *reinterpret_cast<DenseTail*>(shared + (scales - shared_address(shared)) + Plan::kSlots * Plan::kScaleBytes);
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      barrier_init(shared_address(&tail.query_full[i]), 1);
      barrier_init(shared_address(&tail.query_empty[i]), 8);
    }
    for (int i = 0; i < Plan::kSlots; ++i) {
      barrier_init(shared_address(&tail.full[i]), 1);
      barrier_init(shared_address(&tail.empty[i]), 8);
    }
    barrier_init_fence();
  }
  __syncthreads();
  wait_for_previous_kernel();
  if (threadIdx.x >= 256) {
    shrink_registers<24>();
    if (threadIdx.x == 256) dense_producer<kHeadDim>(a, queries, slots, scales, tail);
  } else {
    grow_registers<240>();
    dense_consumer<Element, kHeadDim, kSquare>(a, queries, slots, scales, tail);
  }
}

}  // namespace tda::cuda::sm90
