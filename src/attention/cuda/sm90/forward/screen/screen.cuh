// The screen: 8-bit scores of every visible pair, one proved yes or no per 16 queries x 64 keys, and the keys
// themselves where they are few.
//
// Bound and thresholds: bounds.cuh; memory and jobs: plan.cuh; finished jobs: dispatch.cuh.
//
// Plan. Persistent, one block per multiprocessor: 4 consumer warpgroups x 64 query rows (112 registers), a producer
// warp and three dispatcher warps (32). A job is 256 query rows of one head (both views of it); jobs go to blocks
// dynamically, longest first.
//   shared   2 query slots of 256 rows (16-bit, 128-byte swizzle), slots of 256 keys (8-bit), barriers, zeros:
//            195 or 227 KiB
//   barriers query full/empty per slot, key full/empty per slot; empties count one arrival per consumer warp;
//            finished/dispatched per job, so that atomics and zero fills of a finished job delay no consumer
//   consumer quantises its 16 rows in registers (A operand), per 128 keys: D/32 products m64n128k32, row maxima by
//            three-input maximum, threshold, one bit per 64 keys; 32 bits are OR-ed over the warp and stored
// While one warpgroup reduces, the others keep the tensor cores busy. Cycles a tile of 256 x 256: 4 x D/32 x 128 on the
// tensor cores; about 230 instructions in each of 16 warps, of which 64 are maxima. The second is the limit at D = 64.
//
// A job whose threshold is not positive is not screened, and a warpgroup for which 3/4 of the blocks of the first 1024
// keys are candidates stops screening, unless lists could hold them: such row blocks are dense. A warp whose blocks
// hold candidates also lists their keys (candidate_lists.cuh; about 90 instructions for 64 keys with a candidate).
// Anything a bit or a list says too much costs time, never exactness.
#pragma once

#include "attention/cuda/common/barrier.cuh"
#include "attention/cuda/common/copy_engine.cuh"
#include "attention/cuda/common/kernel_order.cuh"
#include "attention/cuda/common/wgmma.cuh"
#include "attention/cuda/sm90/forward/screen/bounds.cuh"
#include "attention/cuda/sm90/forward/screen/dispatch.cuh"
#include "attention/cuda/sm90/forward/screen/plan.cuh"

namespace tda::cuda::sm90 {

template <int kHeadDim, bool kPacked>
__device__ __forceinline__ void screen_producer(const ForwardArguments& a, std::uint32_t queries, std::uint32_t keys,
                                                ScreenTail& tail) {
  using Plan = ScreenPlan<kHeadDim>;
  RowBlockJobs<kPacked> jobs(a);
  SlotRing<Plan::kKeySlots> ring(1);
  int query_use = 0;
  // With many jobs a block the next claim is under way while this job's tiles are; with few it would cost the balance.
  const bool early = jobs.count() > 16 * static_cast<int>(gridDim.x);
  int next = 0;
  if (early) next = atomicAdd(&a.counters->screen_claims, 1);
  for (;;) {
    const int claimed = early ? next : atomicAdd(&a.counters->screen_claims, 1);
    const bool valid = claimed < jobs.count();
    if (early && valid) next = atomicAdd(&a.counters->screen_claims, 1);
    const RowBlockJob job = valid ? row_block_job<kPacked>(a, jobs.job_of(a, claimed)) : RowBlockJob{-1, 0};
    const RowBlock<kPacked> rows = row_block<kPacked>(a, max(job.head_of_all, 0), job.slot);
    const Sequence<kPacked>& s = rows.sequence;
    const float beta = a.beta[rows.head];
    const bool dense = valid && block_is_dense<kHeadDim>(a, rows, beta);
    const int first_row = rows.block * kScreenRows;
    const int tiles = visible_key_tiles(s, first_row + kScreenRows - 1);
    // Behind a tensor's end the copy engine brings zeros, behind a document's end rows that nobody wants.
    const int parts =
        kPacked ? min((s.query_length() - first_row + kRowTile - 1) / kRowTile, kTilesPerBlock) : kTilesPerBlock;
    for (int view = 0; view < a.views; ++view) {
      const int slot = query_use & 1;
      const std::uint32_t full = shared_address(&tail.query_full[slot]);
      barrier_wait(shared_address(&tail.query_empty[slot]), ((query_use >> 1) & 1) ^ 1);
      ++query_use;
      tail.job[slot] = {job, dense, beta};
      if (!valid || dense) {
        barrier_arrive(full);
        break;
      }
      barrier_arrive_expect(full, parts * (Plan::kQueryBytes / kTilesPerBlock));
#pragma unroll
      for (int half = 0; half < kHeadDim / 64; ++half) {
        for (int part = 0; part < parts; ++part) {
          copy_tile(queries + slot * Plan::kQueryBytes + half * kScreenRows * 128 + part * 64 * 128, a.query[view],
                    full, half * 64, s.first_query() + first_row + part * 64, rows.head, s.batch());
        }
      }
      const int key_head = key_head_of_all(a, view, s.batch(), rows.head / a.heads_per_key);
      for (int tile = 0; tile < tiles; ++tile) {
        barrier_wait(shared_address(&tail.key_empty[ring.slot]), ring.phase);
        const std::uint32_t key_full = shared_address(&tail.key_full[ring.slot]);
        barrier_arrive_expect(key_full, Plan::kKeyBytes + static_cast<int>(sizeof(KeyTile)));
        copy_tile(keys + ring.slot * Plan::kKeyBytes, a.key8, key_full, 0, s.first_key() + tile * kScreenKeys, key_head,
                  0);
        copy_bytes(shared_address(&tail.key_tile[ring.slot]),
                   a.key_tile + static_cast<std::int64_t>(key_head) * a.key_tiles + s.first_key_tile() + tile,
                   sizeof(KeyTile), key_full);
        ring.advance();
      }
    }
    if (!valid) return;
  }
}

// Whether a warpgroup that has seen the first 1024 keys of `tiles` key tiles finds its rows dense. `history` holds the
// flags of this lane's warp, `count` its listed keys.
template <bool kListing>
__device__ __forceinline__ bool votes_dense(ScreenTail& tail, int warp, std::uint32_t history, int count, int tiles) {
  const std::uint32_t vote = __reduce_or_sync(0xffffffffu, history) | static_cast<std::uint32_t>(count);
  if ((threadIdx.x & 31) == 0) tail.vote[warp] = vote;
  const int warpgroup = warp >> 2;
  named_barrier_sync(1 + warpgroup, 128);
  const std::uint32_t* votes = &tail.vote[warpgroup * 4];
  const std::uint32_t blocks = (votes[0] | votes[1] | votes[2] | votes[3]) >> 16;
  const int keys =
      static_cast<int>((votes[0] & 0xffffu) + (votes[1] & 0xffffu) + (votes[2] & 0xffffu) + (votes[3] & 0xffffu));
  const bool crowded = !kListing || keys * (tiles / 4) > kStripsPerTile * kStripKeys;  // at this rate
  return crowded && __popc(blocks) >= kDenseBlocks;
}

// Tells the dispatcher what a warp found in the job of this turn.
__device__ __forceinline__ void report(ScreenTail& tail, int turn, int warp, const RowBlockJob& job, int candidates,
                                       int listed) {
  const int place = turn & 3;
  barrier_wait(shared_address(&tail.dispatched[place]), ((turn >> 2) & 1) ^ 1);
  if ((threadIdx.x & 31) != 0) return;
  tail.candidates[place][warp] = candidates;
  tail.listed[place][warp] = listed;
  if (warp == 0) tail.finished_job[place] = job;
  barrier_arrive(shared_address(&tail.finished[place]));
}

template <typename Element, int kHeadDim, bool kPacked, bool kListing>
__device__ __forceinline__ void screen_consumer(const ForwardArguments& a, std::uint32_t queries, std::uint32_t keys,
                                                ScreenTail& tail) {
  using Plan = ScreenPlan<kHeadDim>;
  const int warp = static_cast<int>(threadIdx.x >> 5);
  const int warpgroup = warp >> 2;
  const int lane = static_cast<int>(threadIdx.x & 31);
  const int row_in_warpgroup = (warp & 3) * 16 + (lane >> 2);
  SlotRing<Plan::kKeySlots> ring(0);
  int query_use = 0;
  for (int turn = 0;; ++turn) {
    int candidates = 0;
    int listed = 0;
    RowBlockJob job{};
    int outcome = 0;  // or kDenseVote (of either view), kUnscreened
    for (int view = 0; view < a.views; ++view) {
      const int slot = query_use & 1;
      barrier_wait(shared_address(&tail.query_full[slot]), (query_use >> 1) & 1);
      ++query_use;
      const KnownJob known = tail.job[slot];
      job = known.job;
      if (job.head_of_all < 0) break;
      const RowBlock<kPacked> rows = row_block<kPacked>(a, job.head_of_all, job.slot);
      const Sequence<kPacked>& s = rows.sequence;
      const int first_row = rows.block * kScreenRows + warpgroup * kRowTile;
      const int row = first_row + row_in_warpgroup;

      std::uint32_t q8[kHeadDim / 32][4];
      RowBound bound[2];
      if (!known.unscreened) {
        // A lane's rows are those of three others, too: lane l knows of row l.
        const int first_of_warp = s.offset() + first_row + (warp & 3) * 16;
        const float tau = threshold_at<kHeadDim>(known.beta, first_of_warp + (lane & 15), a.kappa);
        const float tau0 = __shfl_sync(0xffffffffu, tau, lane >> 2);
        const float tau1 = __shfl_sync(0xffffffffu, tau, (lane >> 2) + 8);
        const std::uint32_t query_strip = queries + slot * Plan::kQueryBytes + (warpgroup * 64 + (warp & 3) * 16) * 128;
        quantise_queries<Element, kHeadDim>(a, query_strip, tau0, tau1, row < s.query_length(),
                                            row + 8 < s.query_length(), q8, bound);
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(shared_address(&tail.query_empty[slot]));
      if (known.unscreened) {
        outcome = kUnscreened;
        break;
      }

      const int job_tiles = visible_key_tiles(s, rows.block * kScreenRows + kScreenRows - 1);
      const int tiles = first_row < s.query_length() ? visible_key_tiles(s, first_row + kRowTile - 1) : 0;
      const int strip =
          ((view * a.batch * a.query_heads + job.head_of_all) * a.row_blocks + job.slot) * kStripsPerBlock + warp;
      const auto words = [&] { return a.flags + static_cast<std::int64_t>(strip) * a.flag_words; };
      int count = 0;
      const int limit = s.offset() + row;  // last key that row g sees
      const int first_position = s.offset() + first_row;
      std::uint32_t history = 0;
      std::int32_t scores[64];
      int tile = 0;
      for (; tile < tiles; ++tile) {
        barrier_wait(shared_address(&tail.key_full[ring.slot]), ring.phase);
        const std::uint64_t descriptor = k_major_descriptor<kHeadDim>(keys + ring.slot * Plan::kKeyBytes);
        const float4 current = load_shared_float4(shared_address(&tail.key_tile[ring.slot]));
        const int threshold0 = integer_threshold(bound[0], current);
        const int threshold1 = integer_threshold(bound[1], current);
        const bool diagonal = tile * kScreenKeys + kScreenKeys - 1 > first_position;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          std::uint32_t bit[2] = {0, 0};
          const int first_key = tile * kScreenKeys + half * 128;
          if (half == 0 || first_key <= first_position + kRowTile - 1) {
            hold(scores);
            wgmma_fence();
            const std::uint64_t keys_of_half = descriptor + half * (128 * kHeadDim / 16);
            wgmma_int8<false>(scores, q8[0], keys_of_half);
#pragma unroll
            for (int k = 1; k < kHeadDim / 32; ++k) wgmma_int8<true>(scores, q8[k], keys_of_half + 2 * k);
            wgmma_commit();
            wgmma_wait<0>();
            hold(scores);
            if (!diagonal) {
              bit[0] = reduce_block<false>(scores, 0, threshold0, threshold1, 0);
              bit[1] = reduce_block<false>(scores, 1, threshold0, threshold1, 0);
            } else {
#pragma unroll
              for (int block = 0; block < 2; ++block) {
                if (first_key + block * 64 + 63 <= first_position) {
                  bit[block] = reduce_block<false>(scores, block, threshold0, threshold1, 0);
                } else if (first_key + block * 64 <= first_position + kRowTile - 1) {
                  bit[block] = reduce_block<true>(scores, block, threshold0, threshold1, limit - first_key);
                }
              }
            }
          }
          if (half == 1 && lane == 0) barrier_arrive(shared_address(&tail.key_empty[ring.slot]));
          if (kListing && __any_sync(0xffffffffu, static_cast<std::int32_t>(bit[0] | bit[1]) < 0) &&
              count <= kStripKeys) {
            const CandidateList list(a, strip);
#pragma unroll
            for (int block = 0; block < 2; ++block) {
              if (!__any_sync(0xffffffffu, static_cast<std::int32_t>(bit[block]) < 0)) continue;
              const uint2 found = candidate_keys(scores, block, threshold0, threshold1);
              count = list.append(count, first_key + block * 64, found.x);
              count = list.append(count, first_key + block * 64 + 32, found.y);
            }
          }
          history = (bit[1] & 0x80000000u) | ((bit[0] >> 1) & 0x40000000u) | (history >> 2);
        }
        ring.advance();
        const int phase = tile & 7;
        if (phase == 7 || tile == tiles - 1) {
          const std::uint32_t word = __reduce_or_sync(0xffffffffu, history) >> (28 - 4 * phase);
          if (lane == 0) words()[tile >> 3] = word;
          candidates += __popc(word);
          history = 0;
        } else if (tile == 3 && tiles > 6) {
          if (votes_dense<kListing>(tail, warp, history, count, tiles)) {
            outcome = kDenseVote;  // should the rest of the row block be sparse: all blocks are candidates
            for (int w = lane; w <= (tiles - 1) >> 3; w += 32) words()[w] = 0xffffffffu;
            ++tile;
            break;
          }
        }
      }
      listed = listed < 0 || count > kStripKeys ? kNotListed : listed | count << (16 * view);
      for (; tile < job_tiles; ++tile) {  // tiles of later rows, or of a job found dense
        barrier_wait(shared_address(&tail.key_full[ring.slot]), ring.phase);
        if (lane == 0) barrier_arrive(shared_address(&tail.key_empty[ring.slot]));
        ring.advance();
      }
    }

    report(tail, turn, warp, job, outcome < 0 ? outcome : candidates, listed);
    if (job.head_of_all < 0) return;
  }
}

// kListing: candidate keys are listed, too (ForwardArguments::listing).
template <typename Element, int kHeadDim, bool kPacked, bool kListing>
__global__ void __launch_bounds__(ScreenPlan<kHeadDim>::kThreads, 1)
    screen(const __grid_constant__ ForwardArguments a) {
  using Plan = ScreenPlan<kHeadDim>;
  extern __shared__ std::uint8_t shared[];
  const std::uint32_t queries = aligned_shared_address(shared);
  const std::uint32_t keys = queries + Plan::kQuerySlots * Plan::kQueryBytes;
  std::uint8_t* const behind = shared + (keys - shared_address(shared)) + Plan::kKeySlots * Plan::kKeyBytes;
  auto& tail = *reinterpret_cast<ScreenTail*>(behind);
  auto* const zeros = reinterpret_cast<uint4*>(behind + Plan::kTailBytes);
  if (threadIdx.x == 0) {
    for (int i = 0; i < Plan::kQuerySlots; ++i) {
      barrier_init(shared_address(&tail.query_full[i]), 1);
      barrier_init(shared_address(&tail.query_empty[i]), Plan::kWarpgroups * 4);
    }
    for (int i = 0; i < Plan::kKeySlots; ++i) {
      barrier_init(shared_address(&tail.key_full[i]), 1);
      barrier_init(shared_address(&tail.key_empty[i]), Plan::kWarpgroups * 4);
    }
    for (int i = 0; i < 4; ++i) {
      barrier_init(shared_address(&tail.finished[i]), Plan::kWarpgroups * 4);
      barrier_init(shared_address(&tail.dispatched[i]), kDispatchWarps);
    }
    barrier_init_fence();
  }
  if (threadIdx.x < kZeroBytes / sizeof(uint4)) {
    zeros[threadIdx.x] = make_uint4(0, 0, 0, 0);
    fence_shared_for_copies();
  }
  __syncthreads();
  begin_kernel(KernelOrder::kAfterPrevious);
  if (threadIdx.x >= Plan::kWarpgroups * 128) {
    shrink_registers<32>();
    const int thread = static_cast<int>(threadIdx.x) - Plan::kWarpgroups * 128;
    if (thread == 0) {
      screen_producer<kHeadDim, kPacked>(a, queries, keys, tail);
    } else if (thread >= 32) {
      screen_dispatcher<Element, kHeadDim, kPacked, kListing>(a, tail, shared_address(zeros), thread / 32 - 1);
    }
  } else {
    grow_registers<112>();
    screen_consumer<Element, kHeadDim, kPacked, kListing>(a, queries, keys, tail);
  }
}

}  // namespace tda::cuda::sm90
