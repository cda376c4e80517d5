// Reading the lists of survivors (common/survivor_index.h).
#pragma once

#include "attention/cuda/portable/half_operands.cuh"

namespace tda::cuda::portable {

// The number of keys of a list, from its first word.
__device__ __forceinline__ int listed_keys(std::uint32_t first_word, bool narrow) {
  return static_cast<int>(narrow ? first_word & 0xffffu : first_word);
}

__device__ __forceinline__ const std::uint32_t* lists_of_head(const Problem& p, const PairPlan& pairs, int view,
                                                              std::int64_t head, std::int64_t batch) {
  return pairs.lists + SurvivorLists::head(p.shape, view, head, batch) * p.shape.query_length * kListWords;
}

// Adds the pairs of a row tile to the numbers of its key head's keys, by one warp, a row a lane.
__device__ inline void count_pairs(const std::uint32_t* lists, int first_row, int rows, bool narrow,
                                   std::uint32_t* key_count) {
  constexpr int kPasses = kSliceRows / 32;
  const int row = first_row + own_lane(), in_front = narrow ? 8 : 4;  // entries of sixteen bytes
  const std::uint32_t* const own = lists + static_cast<std::int64_t>(row) * kListWords;
  uint4 front[kPasses];
#pragma unroll
  for (int n = 0; n < kPasses; ++n) {
    front[n] =
        row + 32 * n < rows ? *reinterpret_cast<const uint4*>(own + 32 * n * kListWords) : make_uint4(0, 0, 0, 0);
  }
#pragma unroll
  for (int n = 0; n < kPasses; ++n) {
    const std::uint32_t words[4] = {front[n].x, front[n].y, front[n].z, front[n].w};
    const int count = listed_keys(words[0], narrow);
#pragma unroll
    for (int entry = 1; entry < 8; ++entry) {
      if (!narrow && entry >= 4) break;
      const std::uint32_t key = narrow ? words[entry / 2] >> 16 * (entry % 2) & 0xffffu : words[entry % 4];
      if (entry <= count) atomicAdd(&key_count[key], 1u);
    }
#pragma unroll 1
    for (int entry = in_front; entry <= count; ++entry) {
      atomicAdd(&key_count[list_entry(own + 32 * n * kListWords, entry, narrow)], 1u);
    }
  }
}

}  // namespace tda::cuda::portable
