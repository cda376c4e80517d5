// Gives every key of a listed head that has pairs a run of records, as long as its number of pairs, and computes its
// factor 1/|k|, which rows and keys both want.
//
// A block takes 256 keys: a prefix sum orders their runs, one atomic addition places them behind those of other blocks.
// Where a run lies is left to chance, and so is the order of its records; keys.cu sorts. Cost: the numbers of all keys,
// and K where a key has pairs.
#include "attention/cuda/portable/backward_plan.h"
#include "attention/cuda/portable/pairs/elements.cuh"
#include "attention/cuda/portable/pairs/pairs.h"

namespace tda::cuda::portable {
namespace {

constexpr int kRunKeys = 256;  // of a block, one a thread
constexpr int kRunWarps = kRunKeys / 32;
constexpr int kFactorPasses = 4;  // of a warp under way at once, four keys each

// The sum of what the threads before this one hold; `total` is that of all.
__device__ std::uint32_t sum_before(std::uint32_t own, std::uint32_t (&scratch)[kRunWarps], std::uint32_t& total) {
  const int lane = own_lane(), warp = static_cast<int>(threadIdx.x) / 32;
  const std::uint32_t sum = sum_up_to(own);
  if (lane == 31) scratch[warp] = sum;
  __syncthreads();
  std::uint32_t before = sum - own;
  total = 0;
#pragma unroll
  for (int w = 0; w < kRunWarps; ++w) {
    if (w == warp) before += total;
    total += scratch[w];
  }
  return before;
}

// Factors of those of the warp's 32 keys that have pairs.
template <class T, int DIM>
__device__ __forceinline__ void write_key_factors(const Problem& p, const Sequence& s, int key_head, int first_key,
                                                  bool has_pairs, std::uint8_t (&order)[32], std::uint32_t* extreme) {
  const int lane = own_lane();
  const unsigned live = __ballot_sync(0xffffffffu, has_pairs);
  const int count = __popc(live);
  if (has_pairs) order[__popc(live & ((1u << lane) - 1u))] = static_cast<std::uint8_t>(lane);
  __syncwarp();
#pragma unroll 1
  for (int view = 0; view < p.views; ++view) {
    const PairRows keys(half_keys(p, s, view, key_head));
    float* const factors = key_factors(p, s, view, key_head) + first_key;
#pragma unroll 1
    for (int first = 0; first < count; first += kFactorPasses * kPairsAtOnce) {
      RawElements<DIM> raw[kFactorPasses];
#pragma unroll
      for (int n = 0; n < kFactorPasses; ++n) {
        const int i = first + n * kPairsAtOnce + pair_of_lane();
        raw[n] = RawElements<DIM>::load(keys, first_key + (i < count ? order[i] : 0), i < count);
      }
#pragma unroll
      for (int n = 0; n < kFactorPasses; ++n) {
        const int i = first + n * kPairsAtOnce + pair_of_lane();
        Elements<DIM> key;
        key.template unpack<T>(raw[n]);
        const float factor = row_factor(key, p.normalize, i < count);
        if (i < count && lane_of_pair() == 0) {
          factors[order[i]] = factor;
          if (is_extreme(factor)) *extreme = 1;
        }
      }
    }
  }
}

template <class T, int DIM>
__global__ void __launch_bounds__(kRunKeys)
    backward_pair_runs_kernel(const __grid_constant__ Problem p, const __grid_constant__ BackwardPlan plan) {
  __shared__ std::uint32_t scratch[kRunWarps], base;
  __shared__ std::uint8_t order[kRunWarps][32];
  const BlockTask task = block_task(blockIdx.x, p.shape.key_heads, p.sequences);
  if (!is_listed(p, plan.pairs, task.head, task.sequence)) return;
  const Sequence s = sequence_at(p, task.sequence);
  const int key = static_cast<int>(task.tile) * kRunKeys + static_cast<int>(threadIdx.x);
  const std::int64_t head_of_all = task.head * p.shape.batch + s.batch;
  const std::int64_t flat_key = head_of_all * p.shape.key_length + key;
  const std::uint32_t own = key < s.key_length ? plan.pairs.key_count[flat_key] : 0u;
  std::uint32_t total;
  const std::uint32_t before = sum_before(own, scratch, total);
  if (total == 0) return;
  if (threadIdx.x == 0) base = atomicAdd(&plan.pairs.used[head_of_all], total);
  __syncthreads();
  if (key < s.key_length) plan.pairs.key_end[flat_key] = base + before;
  if (own > kLongRun) plan.pairs.long_keys[atomicAdd(plan.pairs.long_count, 1u)] = flat_key;
  write_key_factors<T, DIM>(p, s, task.head, key - own_lane(), own != 0, order[threadIdx.x / 32],
                            plan.pairs.extreme + 2 * head_of_all);
}

template <class T, int DIM>
cudaError_t launch_instance(const Problem& p, const BackwardPlan& plan, cudaStream_t stream) {
  const std::int64_t tiles = (p.shape.key_length + kRunKeys - 1) / kRunKeys;
  const auto blocks = static_cast<unsigned>(tiles * p.shape.key_heads * p.sequences);
  backward_pair_runs_kernel<T, DIM><<<blocks, kRunKeys, 0, stream>>>(p, plan);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_backward_pair_runs(const Problem& p, const BackwardPlan& plan, cudaStream_t stream) {
  return launch_pair_instance(p, [&]<class T, int DIM>() { return launch_instance<T, DIM>(p, plan, stream); });
}

}  // namespace tda::cuda::portable
