// Which heads a call screens, chosen on the device from the counters of the last call, and the counting for the next.
//
// prepare_keys reads the last counters and leaves zeros and the choice (unscreened_calls); the screen, which waits for
// it, reads the choice and adds up the rest. So the counters are complete when the screen is. Where everything goes to
// the dense kernel no screen runs, and prepare_keys writes all of them. Beside it runs nothing but plan_documents (with
// packed documents, until its begin_kernel() returns), which does not know them.
#pragma once

#include "attention/cuda/sm90/forward/arguments.h"
#include "attention/cuda/sm90/forward/screen/rule.h"

namespace tda::cuda::sm90 {

// By one block of prepare_keys. Where the screen does not run it counts for it.
__device__ __forceinline__ void choose_screened_heads(const ForwardArguments& a, int thread, int threads) {
  if (a.screening_counters == nullptr) return;
  for (int head = thread; head < a.query_heads; head += threads) {
    ScreeningCounters& counters = a.screening_counters[head];
    const int unscreened_calls = a.choose_heads ? next_unscreened_calls(counters, a.mean_keys) : 0;
    counters = {};
    counters.unscreened_calls = unscreened_calls;
    if (a.all_dense) counters.row_tiles = counters.dense = a.batch * a.row_tiles;
  }
}

__device__ __forceinline__ bool is_screened_head(const ForwardArguments& a, int head) {
  // Past the L1 cache, as prepare_keys and the screen overlap (kernel_order.cuh).
  return a.screening && (a.screening_counters == nullptr || __ldcg(&a.screening_counters[head].unscreened_calls) == 0);
}

// Counts the row tiles of the lanes for which one exists, all of one head, as they are handed out. `last_key` is the
// last one that its rows see, `candidates` the number of candidate strips, or less than 0: all. Called by whole warps.
__device__ __forceinline__ void count_row_tile(const ForwardArguments& a, int head, int last_key, bool exists,
                                               bool dense, int candidates, bool screened) {
  if (a.screening_counters == nullptr) return;
  const bool crowded = candidates < 0 || is_crowded(candidates, last_key, a.views);
  const auto count = [&](std::int32_t& counter, bool counts) {
    const int tiles = __popc(__ballot_sync(0xffffffffu, exists && counts));
    if (tiles != 0 && (threadIdx.x & 31) == 0) atomicAdd(&counter, tiles);
  };
  ScreeningCounters& counters = a.screening_counters[head];
  count(counters.row_tiles, true);
  count(counters.empty, candidates == 0);
  count(counters.sparse, candidates != 0 && !dense);
  count(counters.dense, dense);
  count(counters.screened, screened);
  count(counters.crowded, screened && crowded);
}

}  // namespace tda::cuda::sm90
