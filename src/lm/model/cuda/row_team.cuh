// The threads that share a row of scores: one warp, or all eight warps of a block. Key j belongs to one thread in every
// pass, so that what a pass writes the next may read without a barrier; sums are made in one order for both sizes
// (row_arithmetic.h), so that a row has the same bits in a short block and in a long one.
//
// With eight warps a sum crosses shared memory: every thread puts down its part, and behind one barrier each warp adds
// up the parts of all. Two buffers take turns, so that no second barrier is needed: who writes a buffer again has
// passed the barrier of the other one, which all reach only after they have read the first. Every thread comes to the
// same bits, so loops that end on a sum end together.
#pragma once

#include <cuda_runtime.h>

#include "lm/model/cuda/row_arithmetic.h"

namespace tda::cuda {

template <int kWarps>
class Team {
  static_assert(kWarps == 1 || kWarps == kSumParts);
  static constexpr int kOwn = kSumParts / kWarps;  // the parts that a thread keeps

 public:
  static constexpr int kThreads = kWarps * kLanes;
  static constexpr int kExchange = kWarps == 1 ? 1 : 2 * kSumParts * kLanes;

  // `exchange`: kExchange values in shared memory; without use for one warp.
  __device__ Team(int count, Pair* exchange)
      : count_(count), thread_(static_cast<int>(threadIdx.x) % kThreads), exchange_(exchange) {}

  // The keys that the row sees.
  __device__ int count() const { return count_; }
  // One thread of the team.
  __device__ bool leads() const { return thread_ == 0; }
  __device__ int thread() const { return thread_; }

  template <typename F>
  __device__ void for_each(F&& f) const {
    for_own_keys([&](int, int j) { f(j); });
  }

  // Sum of f(j), a float or a Pair.
  template <typename F>
  __device__ auto sum(F&& f) {
    using Value = decltype(f(0));
    return reduced(Value{}, f, [](Value a, Value b) { return a + b; });
  }

  // The greatest f(j); NaN if one is.
  template <typename F>
  __device__ float greatest(F&& f) {
    return reduced(-INFINITY, f, [](float a, float b) { return greater(a, b); });
  }

 private:
  template <typename F>
  __device__ void for_own_keys(F&& f) const {
    const int warp = thread_ / kLanes, lane = thread_ % kLanes;
    for (int start = warp * kOwn * kLanes + lane; start < count_; start += kSumParts * kLanes) {
#pragma unroll
      for (int part = 0; part < kOwn; ++part) {
        const int j = start + part * kLanes;
        if (j < count_) f(part, j);
      }
    }
  }

  template <typename Value, typename F, typename Combine>
  __device__ Value reduced(Value neutral, F& f, Combine combine) {
    Value parts[kOwn];
#pragma unroll
    for (Value& part : parts) part = neutral;
    for_own_keys([&](int part, int j) { parts[part] = combine(parts[part], f(j)); });
    Value total = sum_of_parts(parts, combine);
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) total = combine(total, of_other_lane(total, step));
    return total;
  }

  template <typename Value, typename Combine>
  __device__ Value sum_of_parts(const Value (&parts)[kOwn], Combine combine) {
    if constexpr (kWarps == 1) {
      return tree_of_parts(parts, combine);
    } else {
      Pair* const buffer = exchange_ + turn_ * kSumParts * kLanes;
      turn_ ^= 1;
      put(buffer[thread_], parts[0]);
      __syncthreads();
      Value all[kSumParts];
#pragma unroll
      for (int part = 0; part < kSumParts; ++part) take(buffer[part * kLanes + thread_ % kLanes], all[part]);
      return tree_of_parts(all, combine);
    }
  }

  __device__ static void put(Pair& slot, float x) { slot.first = x; }
  __device__ static void put(Pair& slot, Pair x) { slot = x; }
  __device__ static void take(const Pair& slot, float& x) { x = slot.first; }
  __device__ static void take(const Pair& slot, Pair& x) { x = slot; }

  __device__ static float of_other_lane(float x, int step) { return __shfl_xor_sync(0xffffffffu, x, step); }
  __device__ static Pair of_other_lane(Pair x, int step) {
    return {of_other_lane(x.first, step), of_other_lane(x.second, step)};
  }

  int count_, thread_, turn_ = 0;
  Pair* exchange_;
};

}  // namespace tda::cuda
