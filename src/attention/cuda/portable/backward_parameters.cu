// dbeta and dlambda: one block a query head adds the shares of its row tiles in a fixed order, in double.
#include "attention/cuda/common/kernel_order.cuh"
#include "attention/cuda/portable/device_problem.cuh"
#include "attention/cuda/portable/kernels.h"

namespace tda::cuda::portable {
namespace {

constexpr int kThreads = 128;

// The sum of parts[0 .. count) over the block; valid in thread 0.
__device__ double sum_parts(const double* parts, std::int64_t count, double* scratch) {
  double sum = 0.0;
  for (std::int64_t i = threadIdx.x; i < count; i += kThreads) sum += parts[i];
  scratch[threadIdx.x] = sum;
  __syncthreads();
  for (int step = kThreads / 2; step > 0; step /= 2) {
    if (static_cast<int>(threadIdx.x) < step) scratch[threadIdx.x] += scratch[threadIdx.x + step];
    __syncthreads();
  }
  const double total = scratch[0];
  __syncthreads();
  return total;
}

__global__ void __launch_bounds__(kThreads)
    backward_parameters_kernel(const __grid_constant__ Problem p, const __grid_constant__ BackwardArguments a) {
  begin_kernel(KernelOrder::kAfterPrevious);
  __shared__ double scratch[kThreads];
  const std::int64_t head = blockIdx.x, shares = p.index.row_tiles * a.shares_per_tile;
  if (a.dbeta_parts) {
    double sum = 0.0;
    for (int view = 0; view < p.views; ++view) {
      sum += sum_parts(a.dbeta_parts + (view * p.shape.query_heads + head) * shares, shares, scratch);
    }
    if (threadIdx.x == 0) static_cast<float*>(a.outputs.dbeta)[head] = static_cast<float>(sum);
  }
  if (a.dlambda_parts) {
    const double sum = sum_parts(a.dlambda_parts + head * shares, shares, scratch);
    const float lambda = static_cast<const float*>(p.inputs.lambda)[head];
    const bool inside = lambda >= 0.f && lambda <= 1.f;
    if (threadIdx.x == 0) static_cast<float*>(a.outputs.dlambda)[head] = inside ? static_cast<float>(sum) : 0.f;
  }
}

}  // namespace

cudaError_t launch_backward_parameters(const Problem& p, const BackwardArguments& a, cudaStream_t stream) {
  const Launch launch{.blocks = static_cast<unsigned>(p.shape.query_heads), .threads = kThreads, .overlaps = true};
  return launch_kernel(backward_parameters_kernel, launch, stream, p, a);
}

}  // namespace tda::cuda::portable
