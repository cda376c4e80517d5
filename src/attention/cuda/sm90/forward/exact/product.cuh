// The sparse product: exact scores, weights and the product with V on the candidate blocks that the screen left.
//
// Plan. Persistent blocks of one consumer warpgroup (64 query rows) and a producer warp, several per multiprocessor
// instead of several warpgroups per block: while one converts scores or waits for memory, others own the tensor cores,
// and no list has to be shared. A job is a row tile; jobs are claimed one by one, heaviest bucket first.
//   shared   2 query slots (views x 64 rows), kSlots slots of 64 keys: K of each view, V, 1/|k| of each view
//   barriers query full/empty, slot full/empty; an empty counts one arrival per consumer warp
//   producer reads the job's flag words, one word a lane, and fetches every candidate block; it runs ahead into the
//   next
//            job as far as slots allow
//   consumer per block: Q K' (D/16 products m64n64k16), one fused multiply-add per score, diagonal mask, a vote of the
//            warpgroup that drops false candidates, weights in the A fragments of the product with V (4 m64nDk16)
// Two views: a view without a candidate in the block is neither fetched nor computed; one product with V for both.
// Registers a thread: output D/2, scores 32 (64 with two views), weights 16, query fragments D/4. Per block of 64 x 64
// at D = 64: 256 cycles of tensor cores, about 600 of latency.
#pragma once

#include "attention/cuda/common/barrier.cuh"
#include "attention/cuda/common/copy_engine.cuh"
#include "attention/cuda/common/kernel_order.cuh"
#include "attention/cuda/sm90/document_tile.cuh"
#include "attention/cuda/sm90/forward/exact/exact_scores.cuh"
#include "attention/cuda/sm90/forward/exact/job_order.cuh"
#include "attention/cuda/sm90/forward/exact/survivor_lists.cuh"

namespace tda::cuda::sm90 {

template <int kHeadDim, int kViews>
struct ProductPlan {
  static constexpr int kBlocksPerProcessor = kViews * kHeadDim == 64 ? 3 : kViews * kHeadDim == 256 ? 1 : 2;
  // Three blocks a multiprocessor have 128 registers for every thread; fewer blocks move the producer's to the
  // consumers.
  static constexpr bool kMovesRegisters = kBlocksPerProcessor != 3;
  static constexpr int kThreads = kMovesRegisters ? 256 : 160;
  static constexpr int kConsumerRegisters = 216;
  static constexpr int kProducerRegisters = 40;
  static constexpr int kSlots = kHeadDim == 128 && kViews == 1 ? 2 : 3;
  static constexpr int kTileBytes = kRowTile * kHeadDim * 2;  // of 64 rows of q, k or v
  static constexpr int kScaleBytes = kBlockKeys * 4;
  static constexpr int kQueryBytes = kViews * kTileBytes;
  static constexpr int kSlotBytes = (kViews + 1) * kTileBytes;
  static constexpr int kSharedBytes = 1024 + 2 * kQueryBytes + kSlots * (kSlotBytes + kViews * kScaleBytes) + 256;
};

struct ProductTail {
  std::uint64_t query_full[2], query_empty[2];
  std::uint64_t full[3], empty[3];
  int job[2];              // row tile job, or -1
  std::uint32_t block[3];  // key block | candidate views << 28 | last of its job << 31
  std::uint32_t slices;    // live slices of the current block, collected over the warps
};

// A job: row tile `tile` of a sequence.
template <bool kPacked>
struct ProductJob {
  Sequence<kPacked> sequence;
  int head, tile;
};

template <bool kPacked>
__device__ __forceinline__ ProductJob<kPacked> product_job(const ForwardArguments& a, int job) {
  const int tiles = a.row_blocks * kTilesPerBlock;  // of a head
  if constexpr (kPacked) {
    const RowBlock<true> rows = row_block<true>(a, job / tiles, job % tiles / kTilesPerBlock);
    return {rows.sequence, rows.head, rows.block * kTilesPerBlock + job % kTilesPerBlock};
  } else {
    const int head_of_all = job / tiles;
    return {Sequence<false>(a, head_of_all / a.query_heads), head_of_all % a.query_heads, job % tiles};
  }
}

template <typename Element, int kHeadDim, int kViews, bool kPacked>
__device__ __forceinline__ void product_producer(const ForwardArguments& a, std::uint32_t queries, std::uint32_t blocks,
                                                 std::uint32_t scales, ProductTail& tail) {
  using Plan = ProductPlan<kHeadDim, kViews>;
  const int lane = static_cast<int>(threadIdx.x & 31);
  const JobOrder order = job_order(a.counters->sparse_jobs);
  const int jobs = number_of_jobs(order);
  const std::int64_t capacity = static_cast<std::int64_t>(a.batch) * a.query_heads * a.row_blocks * kTilesPerBlock;
  int slot = 0;
  std::uint32_t phase = 1;
  for (int use = 0;; ++use) {
    int claimed = 0;
    if (lane == 0) claimed = atomicAdd(&a.counters->product_claims, 1);
    claimed = __shfl_sync(0xffffffffu, claimed, 0);
    const bool valid = claimed < jobs;
    int job = -1;
    bool everything = false;
    if (valid) {
      const JobPlace at = job_place(order, claimed);
      job = a.sparse_list[(kBuckets - 1 - at.bucket) * capacity + at.place];
      everything = at.bucket == 0;
    }
    const ProductJob<kPacked> own = product_job<kPacked>(a, kPacked ? max(job, 0) : job);
    const Sequence<kPacked>& s = own.sequence;
    const int tile = own.tile;
    const int key_head = own.head / a.heads_per_key;
    const int query_slot = use & 1;
    barrier_wait(shared_address(&tail.query_empty[query_slot]), ((use >> 1) & 1) ^ 1);
    if (lane == 0) {
      const std::uint32_t query_full = shared_address(&tail.query_full[query_slot]);
      tail.job[query_slot] = job;
      if (valid) {
        barrier_arrive_expect(query_full, Plan::kQueryBytes);
#pragma unroll
        for (int view = 0; view < kViews; ++view) {
#pragma unroll
          for (int half = 0; half < kHeadDim / 64; ++half) {
            copy_tile(queries + query_slot * Plan::kQueryBytes + view * Plan::kTileBytes + half * 8192, a.query[view],
                      query_full, half * 64, s.first_query() + tile * kRowTile, own.head, s.batch());
          }
        }
      } else {
        barrier_arrive(query_full);
      }
    }
    if (!valid) return;

    auto fetch = [&](std::uint32_t entry) {  // lane 0
      const int first_key = static_cast<int>(entry & 0xfffffffu) * kBlockKeys;
      barrier_wait(shared_address(&tail.empty[slot]), phase);
      const std::uint32_t full = shared_address(&tail.full[slot]);
      const std::uint32_t tiles = blocks + slot * Plan::kSlotBytes;
      tail.block[slot] = entry;
      const int candidates = kViews == 1 ? 1 : __popc(entry >> 28 & 3u);
      barrier_arrive_expect(full, candidates * (Plan::kTileBytes + Plan::kScaleBytes) + Plan::kTileBytes);
#pragma unroll
      for (int view = 0; view < kViews; ++view) {
        if ((entry >> (28 + view) & 1u) == 0) continue;
#pragma unroll
        for (int half = 0; half < kHeadDim / 64; ++half) {
          copy_tile(tiles + view * Plan::kTileBytes + half * 8192, a.key[view], full, half * 64,
                    s.first_key() + first_key, key_head, s.batch());
        }
        copy_bytes(scales + (slot * kViews + view) * Plan::kScaleBytes, key_scales(a, view, s, key_head) + first_key,
                   Plan::kScaleBytes, full);
      }
#pragma unroll
      for (int half = 0; half < kHeadDim / 64; ++half) {
        copy_tile(tiles + kViews * Plan::kTileBytes + half * 8192, a.value, full, half * 64, s.first_key() + first_key,
                  key_head, s.batch());
      }
      if (++slot == Plan::kSlots) {
        slot = 0;
        phase ^= 1;
      }
    };

    const int last_block = (s.offset() + min((tile + 1) * kRowTile, s.query_length()) - 1) / kBlockKeys;
    std::uint32_t pending = 0xffffffffu;  // held back one block, to mark the last
    for (int first_word = 0; first_word * kBlocksPerWord <= last_block; first_word += 32) {
      const int word = first_word + lane;
      std::uint32_t flags[kViews];
#pragma unroll
      for (int view = 0; view < kViews; ++view) {
        flags[view] = 0;
        if (word * kBlocksPerWord <= last_block) {
          // A row tile voted dense has all flags set, those of hidden blocks, too.
          const int left = last_block - word * kBlocksPerWord;
          const std::uint32_t visible = left >= 31 ? 0xffffffffu : (2u << left) - 1u;
          if (everything) {
            flags[view] = visible;
          } else {
            const std::int64_t strip =
                static_cast<std::int64_t>(view) * a.batch * a.query_heads * a.row_blocks * kStripsPerBlock +
                static_cast<std::int64_t>(job) * kStripsPerTile;
#pragma unroll
            for (int s = 0; s < 4; ++s) flags[view] |= a.flags[(strip + s) * a.flag_words + word] & visible;
          }
        }
      }
      for (std::uint32_t busy = __ballot_sync(0xffffffffu, (flags[0] | flags[kViews - 1]) != 0); busy != 0;
           busy &= busy - 1) {
        const int source = __ffs(static_cast<int>(busy)) - 1;
        const std::uint32_t view0 = __shfl_sync(0xffffffffu, flags[0], source);
        const std::uint32_t view1 = kViews == 2 ? __shfl_sync(0xffffffffu, flags[kViews - 1], source) : 0u;
        if (lane == 0) {
          for (std::uint32_t bits = view0 | view1; bits != 0; bits &= bits - 1) {
            const int bit = __ffs(static_cast<int>(bits)) - 1;
            if (pending != 0xffffffffu) fetch(pending);
            pending = static_cast<std::uint32_t>((first_word + source) * kBlocksPerWord + bit) |
                      (view0 >> bit & 1u) << 28 | (view1 >> bit & 1u) << 29;
          }
        }
      }
    }
    if (lane == 0) fetch(pending | 0x80000000u);
    slot = __shfl_sync(0xffffffffu, slot, 0);
    phase = __shfl_sync(0xffffffffu, phase, 0);
  }
}

// Collects the words of the survivor index of one row tile and view, in ascending order of slices.
struct IndexWriter {
  std::uint32_t* words = nullptr;
  std::uint32_t current = 0;
  int position = 0;

  // Four slices of one key block. Blocks come in ascending order; skipped words are zero.
  __device__ __forceinline__ void add(int block, std::uint32_t slices) {
    finish(block / 8);
    current |= slices << (4 * (block & 7));
  }
  __device__ __forceinline__ void finish(int end) {
    for (; position < end; ++position) {
      words[position] = current;
      current = 0;
    }
  }
};

__device__ __forceinline__ bool any_live(const float (&t)[32]) {
  int maximum[4] = {-1, -1, -1, -1};
#pragma unroll
  for (int i = 0; i < 32; i += 2) {
    int& part = maximum[i / 2 % 4];
    part = __vimax3_s32(part, __float_as_int(t[i]), __float_as_int(t[i + 1]));
  }
  return max(__vimax3_s32(maximum[0], maximum[1], maximum[2]), maximum[3]) > 0;
}

template <typename Element, int kHeadDim, int kViews, bool kSquare, bool kPacked>
__device__ __forceinline__ void product_consumer(const ForwardArguments& a, std::uint32_t queries, std::uint32_t blocks,
                                                 std::uint32_t scales, ProductTail& tail) {
  using Plan = ProductPlan<kHeadDim, kViews>;
  constexpr int kSteps = kHeadDim / 16;
  const int warp = static_cast<int>(threadIdx.x >> 5);
  const int lane = static_cast<int>(threadIdx.x & 31);
  const int row_in_tile = warp * 16 + (lane >> 2);
  int slot = 0;
  std::uint32_t phase = 0;
  for (int use = 0;; ++use) {
    const int query_slot = use & 1;
    barrier_wait(shared_address(&tail.query_full[query_slot]), (use >> 1) & 1);
    const int job = tail.job[query_slot];
    if (job < 0) return;
    const ProductJob<kPacked> own = product_job<kPacked>(a, job);
    const Sequence<kPacked>& s = own.sequence;
    const int head = own.head;
    const int first_row = own.tile * kRowTile;
    const int position = s.offset() + first_row + row_in_tile;
    const std::uint32_t query_tiles = queries + query_slot * Plan::kQueryBytes;

    // Scaled queries go back to shared memory and are read again for each block: that costs little, keeps registers
    // free, and keeps away from ptxas 13.0, which gives fragments that live around the loop the registers of the
    // weights.
    QueryRows rows[kViews];
    std::uint32_t query_address[kSteps];
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      query_address[k] =
          query_tiles + (k / 4) * 8192 + swizzled_offset<128>(warp * 16 + (lane & 15), (k % 4) * 2 + (lane >> 4));
    }
#pragma unroll
    for (int view = 0; view < kViews; ++view) {
      std::uint32_t q[kSteps][4];
#pragma unroll
      for (int k = 0; k < kSteps; ++k) load_matrices(query_address[k] + view * Plan::kTileBytes, q[k]);
      rows[view] = prepare_queries<Element, kHeadDim, kPacked>(a, s, view, head, first_row + row_in_tile, q);
#pragma unroll
      for (int k = 0; k < kSteps; ++k) store_matrices(query_address[k] + view * Plan::kTileBytes, q[k]);
    }
    __syncwarp();
    float ratio[2] = {0.0f, 0.0f};
    if constexpr (kViews == 2) view_ratio(a, head, rows, ratio);

    IndexWriter writer[kViews];
    if (a.index != nullptr) {
#pragma unroll
      for (int view = 0; view < kViews; ++view) {
        writer[view].words = a.index + a.index_layout.word_offset(view, head, s.first_row_tile() + own.tile);
      }
    }
    ListWriter lists[kViews];
#pragma unroll
    for (int view = 0; view < kViews && !kPacked; ++view) lists[view].begin(a);
    int survivors[2] = {0, 0};
    float output[kHeadDim / 2];
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) output[i] = 0.0f;

    bool last = false;
    while (!last) {
      barrier_wait(shared_address(&tail.full[slot]), phase);
      const std::uint32_t entry = tail.block[slot];
      last = (entry >> 31) != 0;
      const int block = static_cast<int>(entry & 0xfffffffu);
      const std::uint32_t tiles = blocks + slot * Plan::kSlotBytes;
      const bool diagonal = block * kBlockKeys + kBlockKeys - 1 > s.offset() + first_row;

      float t[kViews][32];
#pragma unroll
      for (int view = 0; view < kViews; ++view) {
        if (kViews == 1 || (entry >> (28 + view) & 1u) != 0) {
          std::uint32_t q[kSteps][4];
#pragma unroll
          for (int k = 0; k < kSteps; ++k) load_matrices(query_address[k] + view * Plan::kTileBytes, q[k]);
          hold(t[view]);
          wgmma_fence();
#pragma unroll
          for (int k = 0; k < kSteps; ++k) {
            const std::uint64_t key =
                k_major_descriptor<128>(tiles + view * Plan::kTileBytes + (k / 4) * 8192) + 2 * (k % 4);
            if (k == 0) {
              wgmma<Element, false, false>(t[view], q[k], key);
            } else {
              wgmma<Element, true, false>(t[view], q[k], key);
            }
          }
          wgmma_commit();
          wgmma_wait<0>();
          hold(t[view]);
          subtract_threshold(t[view], scales + (slot * kViews + view) * Plan::kScaleBytes, rows[view]);
          if (diagonal) hide_future(s, t[view], position, block * kBlockKeys);
        } else {
#pragma unroll
          for (int i = 0; i < 32; ++i) t[view][i] = -1.0f;
        }
      }

      if (kPacked && (block + 1) * kBlockKeys > s.key_length()) {
        clear_last_rows<kHeadDim>(tiles + kViews * Plan::kTileBytes, s.key_length() - block * kBlockKeys);
      }
      bool live = any_live(t[0]);
      if constexpr (kViews == 2) live = live || any_live(t[1]);
      live = warpgroup_any(1, live);
      if (live) {
        if (a.index != nullptr) {
#pragma unroll
          for (int view = 0; view < kViews; ++view) {
            if (threadIdx.x == 0) tail.slices = 0;
            named_barrier_sync(1, 128);
            const std::uint32_t slices = __reduce_or_sync(0xffffffffu, live_slices(t[view]));
            if (lane == 0 && slices != 0) atomicOr(&tail.slices, slices);
            named_barrier_sync(1, 128);
            if (threadIdx.x == 0) writer[view].add(block, tail.slices);
            lists[view].add(a, list_place(a, view, s.batch(), head, first_row + row_in_tile), t[view], slices,
                            block * kBlockKeys);
          }
        }
        if (a.survivors != nullptr) {
#pragma unroll
          for (int i = 0; i < 32; ++i)
            survivors[(i >> 1) & 1] += t[0][i] > 0.0f || (kViews == 2 && t[kViews - 1][i] > 0.0f);
        }
        std::uint32_t weights[4][4];
        if constexpr (kViews == 1) {
          weigh<Element, kSquare>(t[0], a.power, weights);
        } else {
          weigh_difference<Element, kSquare>(t[0], t[1], a.power, ratio, weights);
        }
        hold(output);
#pragma unroll
        for (int k = 0; k < 4; ++k) hold(weights[k]);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          wgmma<Element, true, true>(output, weights[k],
                                     mn_major_descriptor(tiles + kViews * Plan::kTileBytes, 8192) + 128 * k);
        }
        wgmma_commit();
        wgmma_wait<0>();
        hold(output);
      }
      if (lane == 0) barrier_arrive(shared_address(&tail.empty[slot]));
      if (++slot == Plan::kSlots) {
        slot = 0;
        phase ^= 1;
      }
    }

    // The copy engine writes this slot next: order this warp's stores to it before that.
    fence_shared_for_copies();
    __syncwarp();
    if (lane == 0) barrier_arrive(shared_address(&tail.query_empty[query_slot]));
    store_output<Element, kHeadDim>(a, s, head, first_row + warp * 16, output, rows[0]);
    if (a.survivors != nullptr) store_survivors(a, s, head, first_row + row_in_tile, survivors);
#pragma unroll
    for (int view = 0; view < kViews; ++view)
      lists[view].finish(a, list_place(a, view, s.batch(), head, first_row + row_in_tile));
    if (a.index != nullptr && threadIdx.x == 0) {
      const int last_key = s.offset() + min(first_row + kRowTile, s.query_length()) - 1;
#pragma unroll
      for (int view = 0; view < kViews; ++view) writer[view].finish(last_key / kKeysPerWord + 1);
    }
  }
}

template <typename Element, int kHeadDim, int kViews, bool kSquare, bool kPacked>
__global__ void __launch_bounds__(ProductPlan<kHeadDim, kViews>::kThreads,
                                  ProductPlan<kHeadDim, kViews>::kBlocksPerProcessor)
    product(const __grid_constant__ ForwardArguments a) {
  using Plan = ProductPlan<kHeadDim, kViews>;
  extern __shared__ std::uint8_t shared[];
  const std::uint32_t queries = aligned_shared_address(shared);
  const std::uint32_t blocks = queries + 2 * Plan::kQueryBytes;
  const std::uint32_t scales = blocks + Plan::kSlots * Plan::kSlotBytes;
  auto& tail = *reinterpret_cast<ProductTail*>(shared + (scales - shared_address(shared)) +
                                               Plan::kSlots * kViews * Plan::kScaleBytes);
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      barrier_init(shared_address(&tail.query_full[i]), 1);
      barrier_init(shared_address(&tail.query_empty[i]), 4);
    }
    for (int i = 0; i < Plan::kSlots; ++i) {
      barrier_init(shared_address(&tail.full[i]), 1);
      barrier_init(shared_address(&tail.empty[i]), 4);
    }
    barrier_init_fence();
  }
  __syncthreads();
  const KernelOrder order = a.dense_kernel ? KernelOrder::kBesidePrevious : KernelOrder::kAfterPrevious;
  begin_kernel(order);
  if (threadIdx.x >= 128) {
    if constexpr (Plan::kMovesRegisters) shrink_registers<Plan::kProducerRegisters>();
    if (threadIdx.x < 160) product_producer<Element, kHeadDim, kViews, kPacked>(a, queries, blocks, scales, tail);
  } else {
    if constexpr (Plan::kMovesRegisters) grow_registers<Plan::kConsumerRegisters>();
    product_consumer<Element, kHeadDim, kViews, kSquare, kPacked>(a, queries, blocks, scales, tail);
  }
  end_kernel(order);
}

}  // namespace tda::cuda::sm90
