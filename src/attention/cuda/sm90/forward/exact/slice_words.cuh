// Collects the words of the survivor index (common/survivor_index.h) where a warpgroup visits all key blocks of its row
// tiles in ascending order, as the dense kernel does.
//
// Each thread collects the slices in which it holds a survivor itself, for 512 keys; then the four warps of the
// warpgroup exchange their words through shared memory. The exchange area alternates, so that one barrier is enough: a
// warp writes a half again only behind the barrier of the other half, or of begin(), which the reader passes after its
// reads.
#pragma once

#include "attention/cuda/common/barrier.cuh"
#include "attention/cuda/sm90/forward/arguments.h"

namespace tda::cuda::sm90 {

// kRuns: row tiles of the warpgroup, times views.
template <int kRuns>
class SliceWords {
 public:
  using Exchange = std::uint32_t[2][kRuns][4];  // in shared memory, one for each warpgroup

  // Begins at block 0, called by the whole warpgroup.
  __device__ __forceinline__ void begin(int barrier) {
    named_barrier_sync(barrier, 128);
#pragma unroll
    for (int run = 0; run < kRuns; ++run) collected_[run] = 0;
  }

  // live_slices of this thread for key block `block` of 64 keys.
  __device__ __forceinline__ void add(int run, std::uint32_t slices, int block) {
    collected_[run] |= slices << (4 * (block & 7));
  }

  // Called by the whole warpgroup after all runs of `block`. words(run) is where the run's words go, or a null pointer.
  template <typename Words>
  __device__ __forceinline__ void finish_block(int block, bool last, Exchange& exchange, int barrier, Words&& words) {
    if ((block & 7) != 7 && !last) return;
    const int thread = static_cast<int>(threadIdx.x & 127);
    auto& half = exchange[block >> 3 & 1];
#pragma unroll
    for (int run = 0; run < kRuns; ++run) {
      const std::uint32_t word = __reduce_or_sync(0xffffffffu, collected_[run]);
      if ((thread & 31) == 0) half[run][thread >> 5] = word;
      collected_[run] = 0;
    }
    named_barrier_sync(barrier, 128);
    if (thread < kRuns) {
      const std::uint32_t* const parts = half[thread];
      std::uint32_t* const run_words = words(thread);
      if (run_words != nullptr) run_words[block >> 3] = parts[0] | parts[1] | parts[2] | parts[3];
    }
  }

 private:
  std::uint32_t collected_[kRuns];
};

}  // namespace tda::cuda::sm90
