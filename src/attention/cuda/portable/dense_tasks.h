// The tasks that a screened fp32 kernel hands to those behind it: many of their pairs survive.
//
// Which tasks these are follows from the inputs alone; the order in which they are listed and claimed does not matter,
// because each has its own outputs.
#pragma once

#include <cstdint>

namespace tda::cuda::portable {

struct DenseTasks {
  std::uint32_t* tasks = nullptr;    // null: nothing was screened, the dense kernel runs every task
  std::uint32_t* listed = nullptr;   // how many; 0 before the screened kernel
  std::uint32_t* claimed = nullptr;  // of the kernel that works the list off; 0 before it
  int parts = 1;                     // a listed task t is that kernel's tasks parts * t .. + parts - 1
};

// The lists of an fp32 backward. Of values and keys it is the same one, claimed twice.
struct ScreenedTasks {
  DenseTasks rows, keys, values;  // for the dense kernels
  // For a block a strip: one kernel, which claims from both lists by the counter of the columns.
  DenseTasks divided_rows, divided_columns;
};

#if defined(__CUDACC__)
// By one thread of a screened kernel.
__device__ inline void list_dense_task(const DenseTasks& list, std::int64_t task) {
  list.tasks[atomicAdd(list.listed, 1u)] = static_cast<std::uint32_t>(task);
}

// Calls run(task) for every task of 0 .. tasks - 1 that belongs to this block: a share of all, or claimed ones of the
// list. All threads of the block call it and agree.
template <class Run>
__device__ __forceinline__ void run_dense_tasks(const DenseTasks& list, std::int64_t tasks, Run run) {
  __shared__ std::uint32_t claimed;
  std::int64_t task = blockIdx.x;
  while (true) {
    if (list.tasks) {
      if (threadIdx.x == 0) claimed = atomicAdd(list.claimed, 1u);
      __syncthreads();
      const std::uint32_t own = claimed, parts = static_cast<std::uint32_t>(list.parts);
      task =
          own / parts < *list.listed ? static_cast<std::int64_t>(list.tasks[own / parts]) * parts + own % parts : tasks;
    }
    if (task >= tasks) return;
    run(task);
    __syncthreads();
    if (!list.tasks) task += gridDim.x;
  }
}

// Calls run(place) for the places 0 .. count - 1 of lists that belong to this block: the one of its own number, then
// claimed ones, where a claim is under way while a place runs. All threads of the block call it and agree.
template <class Run>
__device__ __forceinline__ void run_listed_places(std::uint32_t* claims, std::uint32_t count, Run run) {
  __shared__ std::uint32_t claimed;
  std::uint32_t place = blockIdx.x;
#pragma unroll 1
  while (place < count) {
    const std::uint32_t next = threadIdx.x == 0 ? atomicAdd(claims, 1u) : 0u;
    run(place);
    __syncthreads();
    if (threadIdx.x == 0) claimed = gridDim.x + next;
    __syncthreads();
    place = claimed;
  }
}

__device__ inline std::uint32_t listed_places(const DenseTasks& list) {
  return *list.listed * static_cast<std::uint32_t>(list.parts);
}
__device__ inline std::int64_t listed_task(const DenseTasks& list, std::uint32_t place) {
  const auto parts = static_cast<std::uint32_t>(list.parts);
  return static_cast<std::int64_t>(list.tasks[place / parts]) * parts + place % parts;
}
#endif

}  // namespace tda::cuda::portable
