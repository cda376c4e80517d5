// The main kernel of the 16-bit backward on tensor cores: works off the tasks of the plan (backward_plan.h).
//
// Blocks of four warps stay and claim tasks, heaviest bucket first, so that rows, columns and heads of all weights end
// together. Row tasks give dq and the shares of dbeta and dlambda (backward_query_half.cuh), column tasks dk and dv
// (backward_key_value_half.cuh). Every task has one owner and a fixed order of sums: no float atomics, repeatable to
// the bit whatever the order of claims.
#include <algorithm>

#include "attention/cuda/portable/backward_key_value_half.cuh"
#include "attention/cuda/portable/backward_query_half.cuh"

namespace tda::cuda::portable {
namespace {

template <class T, int DIM>
union TaskPlans {
  RowTaskPlan<T, DIM> row;
  ColumnTaskPlan<T, DIM> column;
};

template <int DIM>
constexpr int kBlocksPerProcessor = DIM == 64 ? 3 : 2;

// The order of claims: buckets from the heaviest down, in each the block tasks, then the warp tasks by fours.
struct ClaimOrder {
  std::uint32_t block_end[kTaskBuckets], warp_end[kTaskBuckets], warp_tasks[kTaskBuckets];
};

// By one thread.
__device__ void read_order(const BackwardCounters& counters, ClaimOrder& order) {
  std::uint32_t end = 0;
  for (int bucket = kTaskBuckets - 1; bucket >= 0; --bucket) {
    order.block_end[bucket] = end += counters.block_tasks[bucket];
    order.warp_tasks[bucket] = counters.warp_tasks[bucket];
    order.warp_end[bucket] = end += (order.warp_tasks[bucket] + kWarps - 1) / kWarps;
  }
}

template <class T, int DIM, bool SQUARE>
__global__ void __launch_bounds__(kHalfThreads, kBlocksPerProcessor<DIM>)
    backward_half_kernel(const __grid_constant__ Problem p, const __grid_constant__ BackwardArguments a,
                         const __grid_constant__ BackwardPlan plan) {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<TaskPlans<T, DIM>*>(shared_bytes);
  __shared__ ClaimOrder order;
  __shared__ std::uint32_t claimed_by_block;
  const bool leads = threadIdx.x == 0;
  if (leads) {
    read_order(*plan.counters, order);
    claimed_by_block = atomicAdd(&plan.counters->claims, 1u);
  }
  __syncthreads();
#pragma unroll 1
  while (claimed_by_block < order.warp_end[0]) {
    const std::uint32_t claimed = claimed_by_block;
    int bucket = kTaskBuckets - 1;
    while (claimed >= order.warp_end[bucket]) --bucket;
    const bool by_block = claimed < order.block_end[bucket];
    const std::uint32_t begin = bucket == kTaskBuckets - 1 ? 0u : order.warp_end[bucket + 1];
    const std::uint32_t place = by_block ? claimed - begin
                                         : (claimed - order.block_end[bucket]) * kWarps + threadIdx.x / 32;
    const bool exists = by_block || place < order.warp_tasks[bucket];
    const BackwardTask task =
        exists ? plan.tasks[bucket * plan.capacity + (by_block ? place : plan.capacity - 1 - place)] : BackwardTask{};
    // The next claim is under way while this task runs.
    const std::uint32_t next = leads ? atomicAdd(&plan.counters->claims, 1u) : 0u;
    if (by_block && task.view != kColumnTask) {
      run_row_task<T, DIM, SQUARE>(p, a, plan, task, shared.row);
    } else if (exists) {
      run_column_task<T, DIM, SQUARE>(p, a, plan, task, by_block, shared.column);
    }
    __syncthreads();
    if (leads) claimed_by_block = next;
    __syncthreads();
  }
}

template <class T, int DIM, bool SQUARE>
cudaError_t launch_instance(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan, cudaStream_t stream) {
  constexpr int kSharedBytes = static_cast<int>(sizeof(TaskPlans<T, DIM>));
  const auto kernel = backward_half_kernel<T, DIM, SQUARE>;
  int device = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  }
  if (error != cudaSuccess) return error;
  const auto blocks = std::min<std::int64_t>(plan.capacity, std::int64_t{processors} * kBlocksPerProcessor<DIM>);
  kernel<<<static_cast<unsigned>(blocks), kHalfThreads, kSharedBytes, stream>>>(p, a, plan);
  return cudaGetLastError();
}

template <class T>
cudaError_t launch(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan, cudaStream_t stream) {
  const bool square = p.power == 2.f;
  if (p.shape.value_dim <= 64) {
    return square ? launch_instance<T, 64, true>(p, a, plan, stream) : launch_instance<T, 64, false>(p, a, plan, stream);
  }
  return square ? launch_instance<T, 128, true>(p, a, plan, stream)
                : launch_instance<T, 128, false>(p, a, plan, stream);
}

}  // namespace

cudaError_t launch_backward_half(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan,
                                 cudaStream_t stream) {
  return p.type == DataType::kBFloat16 ? launch<__nv_bfloat16>(p, a, plan, stream) : launch<__half>(p, a, plan, stream);
}

}  // namespace tda::cuda::portable
