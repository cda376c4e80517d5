// Backward of dense heads in one kernel with five products: dk of every view and dv of 128 keys, and their share of dq.
//
// Plan. Persistent, one block per multiprocessor: two key warpgroups (200 registers), each with 64 keys, a row
// warpgroup (88) and four producer warps (24). Resident: K, V; streamed: tiles of 64 rows, Q and dO with c_i and
// 1/|q|. For each tile a key warpgroup does what key_value.cuh describes, and leaves g (64 keys x 64 rows, 16 bits) in
// a ring of shared memory; the row warpgroup takes the g of both,
//   share = g' K               over 128 keys
// and adds it to fp32 sums in global memory, few enough to stay in the L2 cache.
//
// Order. Sums of a row are added in the order of falling key blocks, whoever computes them: a counter for every 128
// rows says whose turn it is, so the bits are the same every time. Tasks are claimed with key blocks falling: block b
// begins at its diagonal and reaches rows 128 r after r - b turns, when block b + 1, which was claimed before, has long
// been there. A turn is only waited for from tasks that were claimed before, so there is always one that goes on. Heads
// take turns in claims (FusedHeads::interleaved): the blocks of one head then begin far enough from each other to hide
// how long the news of a turn takes. Block 0 comes last: it finds the sums of all others, undoes the L2 norm and stores
// dq. Sums of few heads exist at a time (FusedHeads::slots): those of a finished head are used again.
//
// g carries both 1/|q| and 1/|k|, so that one rounding serves both products; what is too much is undone in fp32.
// A head in which a value is not finite, or a norm beyond 16-bit products, is handed to the portable kernels.
// Cycles of a key warpgroup and tile: 4.5 products of 128 on the tensor cores, about 500 instructions a warp; what
// bounds it is the time from product to product (docs/experiments/2026-11-22-backward-on-hopper.md).
#pragma once

#include "attention/cuda/sm90/backward/fused_keys.cuh"
#include "attention/cuda/sm90/backward/fused_rows.cuh"

namespace tda::cuda::sm90 {

// By all producer warps: tiles of all rows from the diagonal on, whether they hold a survivor or not.
template <typename Element>
__device__ __forceinline__ void produce_fused(const BackwardArguments& a, const FusedMemory& memory,
                                              std::uint32_t listed) {
  const portable::Problem& p = a.problem;
  const portable::FusedHeads& fused = a.plan.fused;
  const int lane = static_cast<int>(threadIdx.x & 31), group = fused_group(p);
  const int length = static_cast<int>(p.shape.query_length), tiles = (length + kTileRows - 1) / kTileRows;
  const std::uint32_t blocks = static_cast<std::uint32_t>((tiles + 1) / 2);
  using Producer = StreamProducer<FusedPlan, false>;
  Producer producer(memory);
  for (int claim_slot = 0;; claim_slot ^= 1) {
    auto& claim = memory.tail.claim[claim_slot];
    if (Producer::warp() == 0 && Producer::leads()) {
      const std::uint32_t claimed = atomicAdd(&fused.counters->claims, 1u);
      claim.valid = claimed / blocks < listed;
      if (claim.valid) {  // heads take turns, fused.interleaved of them
        const auto interleaved = static_cast<std::uint32_t>(fused.interleaved);
        const std::uint32_t round = claimed / (interleaved * blocks), in_round = claimed % (interleaved * blocks);
        const std::uint32_t heads = min(interleaved, listed - round * interleaved);
        const std::uint32_t position = round * interleaved + in_round % heads;
        const std::uint32_t head = fused.heads[position];
        // A task covers all views; in the place of one it tells the head's place in the list.
        claim.task = {static_cast<std::uint32_t>(head / p.shape.key_heads),
                      static_cast<std::uint32_t>(head % p.shape.key_heads), blocks - 1 - in_round / heads, position};
      }
    }
    named_barrier_sync(3, 32 * kProducerWarps);
    if (!claim.valid) break;
    const portable::BackwardTask task = claim.task;
    const int batch = static_cast<int>(task.sequence), key_head = static_cast<int>(task.head);
    const int block = static_cast<int>(task.tile);
    const portable::Sequence s = portable::sequence_of<false>(p, batch);
#pragma unroll 1
    for (int n = 0; n < p.views * group; ++n) {
      const int view = n / group, head = key_head * group + n % group;
      const StreamPart part{
          batch, head, block, view, length, static_cast<int>(task.view), portable::load_beta(p, head)};
      const float* const key_factors = portable::key_factors(p, s, view, key_head);
      const float* const query_factors = portable::query_factors(p, s, view, head);
      producer.begin_part(part, {a.key[view], p.inputs.k[view], batch, key_head},
                          {a.value, p.inputs.v, batch, key_head}, 0, [&](int key) {
                            return ResidentRow{key < length ? key_factors[key] : 0.0f, 0.0f};
                          });
#pragma unroll 1
      for (int tile_of_head = 2 * block; tile_of_head < tiles; ++tile_of_head) {
        if (producer.passes_over()) continue;
        StreamTile tile{};
        tile.first = tile_of_head * kTileRows;
        float2 row[2];
        bool unfit = false;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int r = tile.first + lane + 32 * i;
          const bool exists = r < length;
          row[i].x = exists ? a.plan.position_scale[r] : 0.0f;
          row[i].y = exists ? folded_factor(query_factors[r]) : 0.0f;
          unfit = unfit || row[i].y != row[i].y || !portable::is_regular(p, row[i].y);
        }
        tile.unfit = __any_sync(0xffffffffu, unfit);
        const int stage = producer.free_stage();
#pragma unroll
        for (int i = 0; i < 2; ++i) memory.tail.query[stage][lane + 32 * i] = row[i];
        producer.stream(tile, {a.query[view], p.inputs.q[view], batch, head},
                        {a.d_output, a.call.d_output, batch, head}, tile.first, length - tile.first);
      }
      producer.end_part();
    }
  }
  producer.end_parts();
}

template <class Consumer>
__device__ __forceinline__ void consume_parts(const FusedMemory& memory, Consumer work) {
  SlotRing<FusedPlan::kResidents> residents(0);
#pragma unroll 1
  for (;; residents.advance()) {
    barrier_wait(shared_address(&memory.tail.resident_full[residents.slot]), residents.phase);
    const StreamPart part = memory.tail.part[residents.slot];
    if (part.block < 0) return;
    work(part, residents.slot);
    __syncwarp();
    if ((threadIdx.x & 31) == 0) barrier_arrive(shared_address(&memory.tail.resident_empty[residents.slot]));
  }
}

template <typename Element, bool kSquare>
__global__ void __launch_bounds__(kStreamThreads<FusedPlan>, 1)
    backward_fused(const __grid_constant__ BackwardArguments a) {
  begin_kernel(KernelOrder::kAfterPrevious);
  const std::uint32_t listed = __ldcg(&a.plan.fused.counters->listed);
  if (listed == 0) return;
  extern __shared__ unsigned char shared[];
  const FusedMemory memory(shared);
  if (threadIdx.x == 0) {
    memory.prepare_barriers();
    for (int i = 0; i < FusedPlan::kRing; ++i) {
      barrier_init(memory.gradients_full(i), 8);
      barrier_init(memory.gradients_empty(i), 4);
    }
    barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x >= 384) {
    shrink_registers<24>();
    produce_fused<Element>(a, memory, listed);
  } else if (threadIdx.x >= 256) {
    shrink_registers<88>();
    FusedRowConsumer<Element> consumer(a, memory);
    consume_parts(memory, [&](const StreamPart& part, int slot) { consumer.run(part, slot); });
  } else {
    grow_registers<200>();
    FusedKeyConsumer<Element, kSquare> consumer(a, memory);
    consume_parts(memory, [&](const StreamPart& part, int slot) {
      consumer.begin(part, slot);
      consumer.run();
      consumer.finish(memory.tail.part[slot], slot);
    });
  }
}

}  // namespace tda::cuda::sm90
