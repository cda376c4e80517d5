// The key warpgroups of the fused backward kernel (fused.cuh): dk and dv of 64 keys each, the shares of dbeta and
// dlambda of their pairs, and g for the row warpgroup.
#pragma once

#include "attention/cuda/sm90/backward/fused_plan.cuh"
#include "attention/cuda/sm90/backward/key_value.cuh"
#include "attention/cuda/sm90/backward/query.cuh"

namespace tda::cuda::sm90 {

// A key warpgroup.
template <typename Element, bool kSquare>
struct FusedKeyConsumer : StreamConsumer<FusedPlan> {
  static constexpr int kHeadDim = 64;
  static constexpr bool kOverlaps = kSquare;  // key_value.cuh
  static constexpr int kEarly = 2;

  const BackwardArguments& a;
  const FusedMemory& own_memory;
  SlotRing<FusedPlan::kRing> ring{1};
  std::uint32_t key_rows, values;
  int first;                // key of the warpgroup
  float factor[2];          // 1/|k| of rows g and g + 8
  float gradient_scale[2];  // of g without 1/|q|
  float sign, beta;
  int store_offset;  // of a lane's first 16 bytes of g in its tile
  bool second_view, unfit;
  float dbeta[2], dlambda;
  float dk[32], dv[32];
  std::uint32_t operand[4][4];

  __device__ __forceinline__ FusedKeyConsumer(const BackwardArguments& arguments, const FusedMemory& shared)
      : StreamConsumer<FusedPlan>{shared}, a(arguments), own_memory(shared) {
    const int warp = static_cast<int>(threadIdx.x >> 5) & 3;
    store_offset = kept(warpgroup * FusedPlan::kTileBytes + swizzled_offset<128>(warp * 16 + (lane & 15), lane >> 4));
  }

  __device__ __forceinline__ void begin(const StreamPart& part, int slot) {
    const portable::Problem& p = a.problem;
    const ResidentRow* const residents = memory.tail.resident[slot] + warpgroup * kTileRows;
    const int row = (static_cast<int>(threadIdx.x >> 5) & 3) * 16 + (static_cast<int>(threadIdx.x & 31) >> 2);
    const int head_of_group = part.head % fused_group(p);
    first = (2 * part.block + warpgroup) * kTileRows;
    second_view = part.view == 1;
    sign = portable::view_weight(p, part.view, part.head);
    beta = part.constant;
    if (part.view == 0 && head_of_group == 0) unfit = false;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      factor[h] = folded_factor(residents[row + 8 * h].factor);
      unfit = unfit || factor[h] != factor[h] || !portable::is_regular(p, factor[h]);
      gradient_scale[h] = factor[h] * sign * kDerivativeFactor<kSquare> * portable::kWeightScale<kHeadDim>;
    }
    key_rows = memory.resident(slot, 0, warpgroup);
    values = memory.resident(slot, 1, warpgroup);
    dbeta[0] = dbeta[1] = dlambda = 0.0f;
    // By selection: behind a branch ptxas would not let products overlap.
    const bool keeps_dk = head_of_group != 0, keeps_dv = keeps_dk || part.view != 0;
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      dk[i] = keeps_dk ? dk[i] : 0.0f;
      dv[i] = keeps_dv ? dv[i] : 0.0f;
    }
  }

  // What is known of the first columns, fetched before a product is waited for and not used before it is there.
  __device__ __forceinline__ static void load_early(const float2* rows, float4 (&early)[kEarly]) {
#pragma unroll
    for (int n = 0; n < kEarly; ++n) early[n] = *reinterpret_cast<const float4*>(rows + 8 * n);
  }
  __device__ __forceinline__ static void hold_early(float4 (&early)[kEarly]) {
#pragma unroll
    for (int n = 0; n < kEarly; ++n) {
      asm volatile("" : "+f"(early[n].x), "+f"(early[n].y), "+f"(early[n].z), "+f"(early[n].w));
    }
  }

  // Raw products -> u = max(s - tau, 0), 0 where the mask hides a pair. `rows`: of the lane's first two columns;
  // `early`: of the first columns, fetched beside the product.
  __device__ __forceinline__ void rectify(const StreamTile& tile, const float2* rows, const float4 (&early)[kEarly],
                                          float (&t)[32]) const {
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float4 row = n < kEarly ? early[n % kEarly] : *reinterpret_cast<const float4*>(rows + 8 * n);
      const float tau[2] = {beta * row.x, beta * row.z};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        t[4 * n + e] = positive_part(fmaf(t[4 * n + e] * factor[e / 2], e % 2 == 0 ? row.y : row.w, -tau[e % 2]));
      }
    }
    if (first + kTileRows - 1 > tile.first) {
      const int c = lane & 3, key = first + (static_cast<int>(threadIdx.x >> 5) & 3) * 16 + (lane >> 2);
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        if (key + ((i >> 1) & 1) * 8 > tile.first + (i >> 2) * 8 + 2 * c + (i & 1)) t[i] = 0.0f;
      }
    }
  }

  // u -> weights, and their product with dO.
  __device__ __forceinline__ void add_to_dv(int stage, const float (&u)[32]) {
    weigh_columns<Element, kSquare>(u, a.problem.power, sign, operand);
    hold(dv);
    wgmma_fence();
    accumulate<Element>(dv, operand, memory.stage(stage, 1));
    wgmma_commit();
  }

  // u -> g in place, with dP' in d.
  __device__ __forceinline__ void weigh(const float2* rows, const float4 (&early)[kEarly], float (&u)[32],
                                        const float (&d)[32]) {
    if (second_view) {
#pragma unroll
      for (int i = 0; i < 32; ++i) dlambda = fmaf(rectified_weight<kSquare>(u[i], a.problem.power), d[i], dlambda);
    }
#pragma unroll
    for (int n = 0; n < 8; ++n) {
      const float4 row = n < kEarly ? early[n % kEarly] : *reinterpret_cast<const float4*>(rows + 8 * n);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float x = d[4 * n + e] * derivative<kSquare>(u[4 * n + e], a.problem.power);
        dbeta[e / 2] = fmaf(x, e % 2 == 0 ? row.x : row.z, dbeta[e / 2]);
        u[4 * n + e] = x * (e % 2 == 0 ? row.y : row.w) * gradient_scale[e / 2];
      }
    }
  }

  // Leaves g for the row warpgroup, which hears of it by publish().
  __device__ __forceinline__ void store_gradients() {
    const std::uint32_t tile = own_memory.gradients(ring.slot);
    barrier_wait(own_memory.gradients_empty(ring.slot), ring.phase);
#pragma unroll
    for (int k = 0; k < 4; ++k) store_matrices(tile + (store_offset ^ (32 * k)), operand[k]);
  }
  // Later than the stores, for which the fence waits.
  __device__ __forceinline__ void publish() {
    fence_shared_for_copies();
    __syncwarp();
    if (lane == 0) barrier_arrive(own_memory.gradients_full(ring.slot));
    ring.advance();
  }

  __device__ __forceinline__ void run() {
    float t[32], d[32];
#pragma unroll 1
    for (;;) {
      const int stage = stages.slot;
      barrier_wait(shared_address(&memory.tail.full[stage]), stages.phase);
      stages.advance();
      const StreamTile tile = memory.tail.tile[stage];
      if (tile.first < 0) {
        wgmma_wait<0>();
        hold(dk);
        hold(dv);
        release_pending();
        __syncwarp();
        release(stage);
        break;
      }
      unfit |= tile.unfit;
      const float2* const rows = memory.tail.query[stage] + 2 * (lane & 3);
      float4 early[kEarly];
      load_early(rows, early);
      hold(dk);
      hold(dv);
      wgmma_fence();
      multiply<Element, kHeadDim>(t, key_rows, memory.stage(stage, 0));
      wgmma_commit();
      multiply<Element, kHeadDim>(d, values, memory.stage(stage, 1));
      wgmma_commit();
      wgmma_wait<kOverlaps ? 1 : 0>();
      hold(t);
      hold_early(early);
      release_pending();
      rectify(tile, rows, early, t);
      add_to_dv(stage, t);
      load_early(rows, early);
      wgmma_wait<kOverlaps ? 1 : 0>();
      hold(d);
      hold_early(early);
      weigh(rows, early, t, d);
      hold(t);
      wgmma_wait<0>();
#pragma unroll
      for (int i = 0; i < 16; ++i) operand[i / 4][i % 4] = pack<Element>(t[2 * i], t[2 * i + 1]);
      store_gradients();
      hold(dk);
      wgmma_fence();
      accumulate<Element>(dk, operand, memory.stage(stage, 0));
      wgmma_commit();
      pending = stage;
      publish();
    }
  }

  __device__ __forceinline__ void finish(const StreamPart& part, int slot) {
    const portable::Problem& p = a.problem;
    const int group = fused_group(p), key_head = part.head / group;
    const portable::Sequence s = portable::sequence_of<false>(p, part.sequence);
    const bool leads = (threadIdx.x & 127) == 0;
    const double scale = -static_cast<double>(sign) * kDerivativeFactor<kSquare>;
    const double dbeta_sum = warpgroup_sum(scale * (static_cast<double>(dbeta[0]) + static_cast<double>(dbeta[1])),
                                           memory.tail.sums[warpgroup], warpgroup);
    const double dlambda_sum = warpgroup_sum(-static_cast<double>(dlambda), memory.tail.sums[warpgroup], warpgroup);
    // A tile of keys takes the place of the tile of rows with the same number.
    const std::int64_t place = s.first_row_tile + first / kTileRows;
    if (leads && first < part.rows) {
      if (a.call.dbeta_parts) {
        a.call.dbeta_parts[(part.view * p.shape.query_heads + part.head) * p.index.row_tiles + place] = dbeta_sum;
      }
      if (a.call.dlambda_parts && part.view == 1) {
        a.call.dlambda_parts[part.head * p.index.row_tiles + place] = dlambda_sum;
      }
    }
    if (part.head % group != group - 1) return;
    unfit = unfit || any_spoiled(dk);
    const int rows = part.rows - first;
    const auto first_row = [&](const Tensor& target) {
      return static_cast<Element*>(target.data) + portable::row_offset(target, s.batch, key_head, s.first_key + first);
    };
    const Tensor& dk_target = a.call.outputs.dk[part.view];
    if (rows > 0) {
      const ResidentRow* const residents = memory.tail.resident[slot] + warpgroup * kTileRows;
      store_scaled_gradient<Element, 64>(
          p.normalize, SharedRows{key_rows}, [&](int row) { return residents[row].factor; }, FoldedScale{}, rows,
          first_row(dk_target), dk_target.row_stride, dk);
    }
    if (part.view != p.views - 1) return;
    unfit = unfit || any_spoiled(dv);
    const Tensor& dv_target = a.call.outputs.dv;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = (static_cast<int>(threadIdx.x >> 5) & 3) * 16 + (static_cast<int>(threadIdx.x & 31) >> 2) + 8 * h;
      store_row<Element>(first_row(dv_target) + row * dv_target.row_stride, dv, h, 1.0f,
                         static_cast<int>(threadIdx.x & 3), row < rows);
    }
    const bool spoiled = warpgroup_any(1 + warpgroup, rows > 0 && unfit);
    if (leads) finish_fused_task(a, part, spoiled);
  }
};

}  // namespace tda::cuda::sm90
