// What the warpgroups of the fused backward kernel (fused.cuh) share: its shared memory, and the end of a head.
#pragma once

#include "attention/cuda/sm90/backward/stream.cuh"
#include "attention/cuda/sm90/backward/tile_gradients.cuh"

namespace tda::cuda::sm90 {

struct FusedPlan : StreamPlan<64> {
  static constexpr int kStages = 4;
  static constexpr int kConsumers = 3;
  static constexpr int kStageConsumers = 2;  // the row warpgroup takes K and what the key warpgroups leave
  static constexpr int kRing = 3;            // tiles of g, 64 rows x 128 keys
  static constexpr int kGradientBytes = 2 * kTileBytes;
  static constexpr int kExtraBytes = kRing * kGradientBytes + 128;  // and their barriers
};

// The shared memory of a block. StreamPart::offset is the head's place in the list of fused heads here: query and key
// positions are the same, so no offset is needed.
struct FusedMemory : StreamMemory<FusedPlan> {
  using StreamMemory<FusedPlan>::StreamMemory;
  // A slot of the ring of g, that of the first key warpgroup before that of the second, and its barriers.
  __device__ __forceinline__ std::uint32_t gradients(int slot) const {
    return stage(FusedPlan::kStages, 0) + slot * FusedPlan::kGradientBytes;
  }
  __device__ __forceinline__ std::uint32_t gradients_full(int slot) const {
    return gradients(FusedPlan::kRing) + slot * 8;
  }
  __device__ __forceinline__ std::uint32_t gradients_empty(int slot) const {
    return gradients(FusedPlan::kRing) + (FusedPlan::kRing + slot) * 8;
  }
};

// A factor as the products take it: a zero vector's products are 0 whatever the factor.
__device__ __forceinline__ float folded_factor(float factor) { return factor >= 1e12f ? 1.0f : factor; }
// What is left of a factor for a gradient whose sum, times kWeightScale, has the folded one already.
struct FoldedScale {
  __device__ __forceinline__ float operator()(float factor) const {
    return (factor >= 1e12f ? factor : 1.0f) * (1.0f / portable::kWeightScale<64>);
  }
};

// Query heads of a key head.
__device__ __forceinline__ int fused_group(const portable::Problem& p) {
  return static_cast<int>(p.shape.query_heads / p.shape.key_heads);
}

// One warpgroup is done with its task. The last of a head hands the head to the portable kernels if any of its values
// was unfit. By one thread of the warpgroup.
__device__ __forceinline__ void finish_fused_task(const BackwardArguments& a, const StreamPart& part, bool spoiled) {
  const portable::Problem& p = a.problem;
  const portable::FusedHeads& fused = a.plan.fused;
  const int group = fused_group(p), tiles = (part.rows + kTileRows - 1) / kTileRows;
  std::uint32_t* const finished = fused.finished + 2 * part.offset;
  if (spoiled) atomicExch(finished + 1, 1u);
  __threadfence();
  const std::uint32_t warpgroups = static_cast<std::uint32_t>(3 * ((tiles + 1) / 2));
  if (atomicAdd(finished, 1u) + 1 != warpgroups) return;
  __threadfence();
  if (atomicAdd(finished + 1, 0u) == 0) return;
  const int key_head = part.head / group;
  for (int n = 0; n < p.views * group; ++n) {
    for (int tile = 0; tile < tiles; ++tile) {
      portable::list_task(
          a.plan.row_tasks, portable::kWarpTaskSlices, false,
          {static_cast<std::uint32_t>(part.sequence), static_cast<std::uint32_t>(key_head * group + n % group),
           static_cast<std::uint32_t>(tile), static_cast<std::uint32_t>(n / group)});
    }
  }
  for (int slice = 0; slice * kSliceKeys < part.rows; ++slice) {
    portable::list_task(a.plan.column_tasks, portable::kWarpTaskSlices, false,
                        {static_cast<std::uint32_t>(part.sequence), static_cast<std::uint32_t>(key_head),
                         static_cast<std::uint32_t>(slice), 0});
  }
}

}  // namespace tda::cuda::sm90
