// How the blocks of a backward kernel share the tasks of a list: they stay and claim, heaviest bucket first, so that
// rows, columns and heads of all weights end together.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "attention/cuda/common/kernel_order.cuh"
#include "attention/cuda/portable/backward_plan.h"
#include "attention/cuda/portable/problem.h"

namespace tda::cuda::portable {

// Adds a task of weight `live` > 0, by one thread.
__device__ inline void list_task(const TaskList& list, int live, bool by_warp, const BackwardTask& task) {
  const int bucket = min(kTaskBuckets - 1, 31 - __clz(live));
  BackwardTask* const tasks = list.tasks + bucket * list.capacity;
  if (by_warp) {
    tasks[list.capacity - 1 - atomicAdd(&list.counters->warp_tasks[bucket], 1u)] = task;
  } else {
    tasks[atomicAdd(&list.counters->block_tasks[bucket], 1u)] = task;
  }
}

// The order of claims: buckets from the heaviest down, in each the block tasks, then the warp tasks by fours.
struct ClaimOrder {
  std::uint32_t block_end[kTaskBuckets], warp_end[kTaskBuckets], warp_tasks[kTaskBuckets], claimed;
};

// By one thread; past the L1 cache (common/kernel_order.cuh).
__device__ inline void read_order(TaskCounters& counters, int warps, ClaimOrder& order) {
  std::uint32_t end = 0;
  for (int bucket = kTaskBuckets - 1; bucket >= 0; --bucket) {
    order.block_end[bucket] = end += __ldcg(&counters.block_tasks[bucket]);
    order.warp_tasks[bucket] = __ldcg(&counters.warp_tasks[bucket]);
    order.warp_end[bucket] = end += (order.warp_tasks[bucket] + warps - 1) / warps;
  }
  order.claimed = atomicAdd(&counters.claims, 1u);
}

// Calls run(task, by_block) until the list is empty: with a block task all threads, with warp tasks each warp with its
// own (a warp may have none). A block has WARPS warps.
template <int WARPS, class Run>
__device__ __forceinline__ void claim_tasks(const TaskList& list, Run run) {
  __shared__ ClaimOrder order;
  const bool leads = threadIdx.x == 0;
  if (leads) read_order(*list.counters, WARPS, order);
  __syncthreads();
#pragma unroll 1
  while (order.claimed < order.warp_end[0]) {
    const std::uint32_t claimed = order.claimed;
    int bucket = kTaskBuckets - 1;
    while (claimed >= order.warp_end[bucket]) --bucket;
    const bool by_block = claimed < order.block_end[bucket];
    const std::uint32_t begin = bucket == kTaskBuckets - 1 ? 0u : order.warp_end[bucket + 1];
    const std::uint32_t place =
        by_block ? claimed - begin : (claimed - order.block_end[bucket]) * WARPS + threadIdx.x / 32;
    // The next claim is under way while this task runs.
    const std::uint32_t next = leads ? atomicAdd(&list.counters->claims, 1u) : 0u;
    if (by_block || place < order.warp_tasks[bucket]) {
      run(list.tasks[bucket * list.capacity + (by_block ? place : list.capacity - 1 - place)], by_block);
    }
    __syncthreads();
    if (leads) order.claimed = next;
    __syncthreads();
  }
}

// Launches `kernel` with blocks that stay: `per_processor` on each multiprocessor, no more than there may be tasks.
template <class... Parameters>
cudaError_t launch_staying(void (*kernel)(Parameters...), int threads, int per_processor, int shared_bytes,
                           std::int64_t tasks, cudaStream_t stream, const Parameters&... arguments) {
  int device = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  const std::int64_t staying = std::min<std::int64_t>(tasks, std::int64_t{processors} * per_processor);
  return launch_kernel(kernel, {static_cast<unsigned>(staying), threads, shared_bytes, true}, stream, arguments...);
}

// Calls launch.operator()<T, DIM, SQUARE>() for the instance of a 16-bit backward kernel that fits the problem.
template <class Launch>
cudaError_t launch_fitting_instance(const Problem& p, Launch launch) {
  const auto of_type = [&]<class T>() {
    const bool square = p.power == 2.f;
    if (p.shape.value_dim <= 64) {
      return square ? launch.template operator()<T, 64, true>() : launch.template operator()<T, 64, false>();
    }
    return square ? launch.template operator()<T, 128, true>() : launch.template operator()<T, 128, false>();
  };
  return p.type == DataType::kBFloat16 ? of_type.template operator()<__nv_bfloat16>()
                                       : of_type.template operator()<__half>();
}

}  // namespace tda::cuda::portable
