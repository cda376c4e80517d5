// Turns the lists of a listed key head by key: ends of the keys' runs by a prefix sum over their numbers of pairs, then
// every pair into the run of its key. Which place inside a run is left to chance; keys.cu sorts.
//
// One block of 1,024 threads a key head and batch element. Cost: the numbers of all keys and the lists of all live rows
// are read once.
#include "attention/cuda/portable/backward_plan.h"
#include "attention/cuda/portable/half_operands.cuh"
#include "attention/cuda/portable/pairs/pairs.h"

namespace tda::cuda::portable {
namespace {

constexpr int kEntryThreads = 1024;
constexpr int kEntryRows = 4;  // of a thread at once

// The sum of what the threads before this one hold; `total` is that of all.
__device__ std::uint32_t sum_before(std::uint32_t own, std::uint32_t (&scratch)[kEntryThreads / 32],
                                    std::uint32_t& total) {
  const int lane = own_lane(), warp = static_cast<int>(threadIdx.x) / 32;
  std::uint32_t sum = own;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const std::uint32_t before = __shfl_up_sync(0xffffffffu, sum, step);
    if (lane >= step) sum += before;
  }
  if (lane == 31) scratch[warp] = sum;
  __syncthreads();
  std::uint32_t warps = scratch[lane];
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const std::uint32_t before = __shfl_up_sync(0xffffffffu, warps, step);
    if (lane >= step) warps += before;
  }
  total = __shfl_sync(0xffffffffu, warps, 31);
  const std::uint32_t before_warp = __shfl_sync(0xffffffffu, warps, warp == 0 ? 0 : warp - 1);
  __syncthreads();
  return sum - own + (warp == 0 ? 0u : before_warp);
}

__global__ void __launch_bounds__(kEntryThreads)
    backward_pair_entries_kernel(const __grid_constant__ Problem p, const __grid_constant__ BackwardPlan plan) {
  __shared__ std::uint32_t scratch[kEntryThreads / 32];
  const std::int64_t key_head = blockIdx.x / p.shape.batch, batch = blockIdx.x % p.shape.batch;
  if (!is_listed(p, plan.pairs, key_head, batch)) return;
  const std::int64_t head_of_all = key_head * p.shape.batch + batch;
  const std::uint32_t* const count = plan.pairs.key_count + head_of_all * p.shape.key_length;
  std::uint32_t* const end = plan.pairs.key_end + head_of_all * p.shape.key_length;
  std::uint32_t* const entries = plan.pairs.entries + head_of_all * plan.pairs.entries_per_head;
  const int keys = static_cast<int>(p.shape.key_length), rows = static_cast<int>(p.shape.query_length);
  std::uint32_t base = 0;
#pragma unroll 1
  for (int first = 0; first < keys; first += kEntryThreads) {
    const int key = first + static_cast<int>(threadIdx.x);
    std::uint32_t total;
    const std::uint32_t own = key < keys ? count[key] : 0u;
    const std::uint32_t before = sum_before(own, scratch, total);
    if (key < keys) end[key] = base + before;
    if (own > kLongRun) {
      plan.pairs.long_keys[atomicAdd(plan.pairs.long_count, 1u)] = head_of_all * p.shape.key_length + key;
    }
    base += total;
  }
  __syncthreads();
  if (base == 0) return;
  const bool narrow = has_narrow_lists(p.shape.key_length);
  const int group = static_cast<int>(p.shape.query_heads / p.shape.key_heads);
  const std::int64_t tiles = (p.shape.query_length + kSliceRows - 1) / kSliceRows;
#pragma unroll 1
  for (int view = 0; view < p.views; ++view) {
#pragma unroll 1
    for (int n = 0; n < group; ++n) {
      const std::int64_t head = key_head * group + n;
      const std::uint8_t* const live =
          plan.pairs.live + (view * p.shape.query_heads + head) * p.index.row_tiles + batch * tiles;
      const std::uint32_t* const lists =
          plan.pairs.lists + SurvivorLists::head(p.shape, view, head, batch) * p.shape.query_length * kListWords;
      const std::uint32_t first_entry = static_cast<std::uint32_t>((view * group + n) * p.shape.query_length);
#pragma unroll 1
      for (int first = static_cast<int>(threadIdx.x); first < rows; first += kEntryRows * kEntryThreads) {
        std::uint32_t own[kEntryRows];  // all under way at once
#pragma unroll
        for (int i = 0; i < kEntryRows; ++i) {
          const int row = first + i * kEntryThreads;
          own[i] = row < rows && live[row / kSliceRows] != 0
                       ? list_entry(lists + static_cast<std::int64_t>(row) * kListWords, 0, narrow)
                       : 0u;
        }
#pragma unroll 1
        for (int i = 0; i < kEntryRows; ++i) {
          const int row = first + i * kEntryThreads;
          const std::uint32_t* const list = lists + static_cast<std::int64_t>(row) * kListWords;
          const int listed = static_cast<int>(i == 0 ? own[0] : i == 1 ? own[1] : i == 2 ? own[2] : own[3]);
          for (int place = 1; place <= listed; ++place) {
            entries[atomicAdd(&end[list_entry(list, place, narrow)], 1u)] =
                first_entry + static_cast<std::uint32_t>(row);
          }
        }
      }
    }
  }
}

}  // namespace

cudaError_t launch_backward_pair_entries(const Problem& p, const BackwardPlan& plan, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(p.shape.key_heads * p.shape.batch);
  backward_pair_entries_kernel<<<blocks, kEntryThreads, 0, stream>>>(p, plan);
  return cudaGetLastError();
}

}  // namespace tda::cuda::portable
