// The row warpgroup of the fused backward kernel (fused.cuh): dq of 128 keys, added to that of the others in a fixed
// order.
#pragma once

#include "attention/cuda/sm90/backward/fused_plan.cuh"

namespace tda::cuda::sm90 {

// Turns of a warp's 16 rows, by the whole warp; one lane looks at the counters.
__device__ __forceinline__ std::uint32_t load_turn(const std::uint32_t* counter) {
  std::uint32_t now;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
  return now;
}
__device__ __forceinline__ void store_turn(std::uint32_t* counter, std::uint32_t turn) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(counter), "r"(turn) : "memory");
}
// Ends a turn, unless `ended` is null, and waits for another on `counter`: one fence, beside which the first look is
// under way, serves both.
__device__ __forceinline__ void exchange_turns(bool leads, std::uint32_t* ended, std::uint32_t next_turn,
                                               const std::uint32_t* counter, std::uint32_t turn) {
  __syncwarp();
  if (leads) {
    std::uint32_t now = load_turn(counter);
    __threadfence();
    if (ended != nullptr) store_turn(ended, next_turn);
    if (now != turn) {
      do now = load_turn(counter);
      while (now != turn);
      __threadfence();
    }
  }
  __syncwarp();
}
__device__ __forceinline__ void end_turn(std::uint32_t* counter, std::uint32_t next_turn) {
  __syncwarp();
  if ((threadIdx.x & 31) == 0) {
    __threadfence();
    store_turn(counter, next_turn);
  }
}
__device__ __forceinline__ void add_four(float* sum, float x, float y, float z, float w) {
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(sum), "f"(x), "f"(y), "f"(z), "f"(w)
               : "memory");
}

// The row warpgroup.
template <typename Element>
struct FusedRowConsumer {
  const BackwardArguments& a;
  const FusedMemory& memory;
  SlotRing<FusedPlan::kRing> ring{0};
  const bool leads_warp = kept(static_cast<int>(threadIdx.x & 31)) == 0;
  bool spoiled = false;

  __device__ __forceinline__ FusedRowConsumer(const BackwardArguments& arguments, const FusedMemory& shared)
      : a(arguments), memory(shared) {}

  // dq (+)= g' K of 128 keys: begins.
  __device__ __forceinline__ void issue(std::uint32_t keys, bool accumulates, float (&dq)[32]) {
    const std::uint32_t gradients = memory.gradients(ring.slot);
    barrier_wait(memory.gradients_full(ring.slot), ring.phase);
    hold(dq);
    wgmma_fence();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::uint64_t g = mn_major_descriptor(gradients + half * FusedPlan::kTileBytes, kTileColumnBytes);
      const std::uint64_t k = mn_major_descriptor(keys + half * FusedPlan::kTileBytes, kTileColumnBytes);
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        wgmma_transposed<Element>(dq, g + 128 * n, k + 128 * n, accumulates || half + n > 0);
      }
    }
    wgmma_commit();
  }
  __device__ __forceinline__ void finish_product(float (&dq)[32]) {
    wgmma_wait<0>();
    hold(dq);
    __syncwarp();
    if (leads_warp) barrier_arrive(memory.gradients_empty(ring.slot));
    ring.advance();
  }

  __device__ __forceinline__ void run(const StreamPart& part, int slot) {
    const portable::Problem& p = a.problem;
    const portable::FusedHeads& fused = a.plan.fused;
    const int lane_of_group = static_cast<int>(threadIdx.x & 127), group = fused_group(p);
    const int tiles = (part.rows + kTileRows - 1) / kTileRows;
    const auto slots = static_cast<std::uint32_t>(fused.slots), position = static_cast<std::uint32_t>(part.offset);
    const std::int64_t first_pair =
        static_cast<std::int64_t>((position % slots * p.views + part.view) * group + part.head % group) *
            ((tiles + 1) / 2) +
        part.block;
    std::uint32_t* const counters = fused.turns + first_pair * 4 + lane_of_group / 32;
    float* const sums = fused.sums + first_pair * (2 * kTileRows * 64) + lane_of_group * 4;
    const std::uint32_t keys = memory.resident(slot, 0, 0);
    if (part.block == 0) {
      finish_rows(part, keys, position / slots, tiles, counters, sums);
    } else {
      add_rows(keys, part.block, position / slots, tiles - 2 * part.block, counters, sums);
    }
    if (part.view != p.views - 1 || part.head % group != group - 1) return;
    const bool any = warpgroup_any(4, spoiled);
    if (lane_of_group == 0) finish_fused_task(a, part, any);
    spoiled = false;
  }

  // All tiles of a block that is not the last to add. A turn is that of 128 rows, two tiles. `generation`: heads that
  // had the sums before; each left behind a turn a block, of which there are as many as turns up to the own.
  __device__ __forceinline__ void add_rows(std::uint32_t keys, int block, std::uint32_t generation, int tiles,
                                           std::uint32_t* counter, float* sums) {
    std::uint32_t turn = generation * (block + 1);
    float dq[32];
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
      issue(keys, false, dq);
      if (tile % 2 == 0) exchange_turns(leads_warp, tile > 0 ? counter - 4 : nullptr, turn - generation, counter, turn);
      finish_product(dq);
      if (tile > 1) {
#pragma unroll
        for (int i = 0; i < 8; ++i) add_four(sums + i * 512, dq[4 * i], dq[4 * i + 1], dq[4 * i + 2], dq[4 * i + 3]);
      } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          __stcg(reinterpret_cast<float4*>(sums + i * 512),
                 make_float4(dq[4 * i], dq[4 * i + 1], dq[4 * i + 2], dq[4 * i + 3]));
        }
      }
      sums += kTileRows * 64;
      if (tile % 2 == 0) continue;
      counter += 4;
      turn += generation + 1;
    }
    tiles % 2 == 0 ? end_turn(counter - 4, turn - generation) : end_turn(counter, turn + 1);
  }

  // All tiles of block 0.
  __device__ __forceinline__ void finish_rows(const StreamPart& part, std::uint32_t keys, std::uint32_t generation,
                                              int tiles, std::uint32_t* counter, const float* sums) {
    std::uint32_t turn = generation;
    float dq[32];
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
      if (tile % 2 == 0) exchange_turns(leads_warp, tile > 0 ? counter - 4 : nullptr, turn - generation, counter, turn);
      if (tile > 1) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          const float4 sum = __ldcg(reinterpret_cast<const float4*>(sums + i * 512));
          dq[4 * i] = sum.x;
          dq[4 * i + 1] = sum.y;
          dq[4 * i + 2] = sum.z;
          dq[4 * i + 3] = sum.w;
        }
      }
      issue(keys, tile > 1, dq);
      finish_product(dq);
      store(part, tile * kTileRows, dq);
      sums += kTileRows * 64;
      if (tile % 2 == 0) continue;
      counter += 4;
      turn += generation + 1;
    }
    tiles % 2 == 0 ? end_turn(counter - 4, turn - generation) : end_turn(counter, turn + 1);
  }

  __device__ __forceinline__ void store(const StreamPart& part, int first_row, float (&dq)[32]) {
    const portable::Problem& p = a.problem;
    const portable::Sequence s = portable::sequence_of<false>(p, part.sequence);
    const float* const factors = portable::query_factors(p, s, part.view, part.head) + first_row;
    const int rows = part.rows - first_row;
    spoiled = spoiled || any_spoiled(dq);
    const auto start = [&](const auto& tensor) {
      return portable::row_offset(tensor, s.batch, part.head, s.first_query + first_row);
    };
    const ConstTensor& q = p.inputs.q[part.view];
    const Tensor& target = a.call.outputs.dq[part.view];
    const Element* const raw = static_cast<const Element*>(q.data) + start(q);
    store_scaled_gradient<Element, 64>(
        p.normalize,
        [&](int k, std::uint32_t(&x)[4]) {
          const int lane = static_cast<int>(threadIdx.x & 31), warp = static_cast<int>(threadIdx.x >> 5) & 3;
#pragma unroll
          for (int r = 0; r < 4; ++r) {
            const int row = warp * 16 + (lane >> 2) + 8 * (r % 2), column = 16 * k + 8 * (r / 2) + 2 * (lane & 3);
            x[r] = row < rows ? *reinterpret_cast<const std::uint32_t*>(raw + row * q.row_stride + column) : 0u;
          }
        },
        [&](int row) { return row < rows ? factors[row] : 0.0f; }, FoldedScale{}, rows,
        static_cast<Element*>(target.data) + start(target), target.row_stride, dq);
  }
};

}  // namespace tda::cuda::sm90
