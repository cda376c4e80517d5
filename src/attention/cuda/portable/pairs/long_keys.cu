// Keys of listed heads with more than kLongRun pairs, such as one to which every row attends, a block each: dk of all
// views and dv. Their entries are sorted by bitmaps in shared memory, a window of rows at a time, which leaves the
// places of records behind: scores are computed again.
#include "attention/cuda/portable/backward_plan.h"
#include "attention/cuda/portable/pairs/elements.cuh"
#include "attention/cuda/portable/pairs/pairs.h"

namespace tda::cuda::portable {
namespace {

constexpr int kWindowWords = 128;  // of a bitmap
constexpr std::uint32_t kWindowEntries = 32 * kWindowWords;

// Hands the entries of a run that lie in one window, in ascending order and kPairsAtOnce at a time, to
// use(entry, active).
template <class Use>
__device__ __forceinline__ void visit_window(const PairRecord* run, int count, std::uint32_t window,
                                             std::uint32_t* scratch, Use use) {
  const int lane = own_lane();
  __syncwarp();
  for (int w = lane; w < kWindowWords; w += 32) scratch[w] = 0;
  __syncwarp();
#pragma unroll 4
  for (int i = lane; i < count; i += 32) {
    const std::uint32_t entry = run[i].entry & ~kExtremeRow;
    if (entry / kWindowEntries == window) atomicOr(&scratch[entry / 32 % kWindowWords], 1u << entry % 32);
  }
  __syncwarp();
#pragma unroll 1
  for (int w = 0; w < kWindowWords; ++w) {
    for (std::uint32_t bits = scratch[w]; bits != 0;) {
      const std::uint32_t first = window * kWindowEntries + w * 32;
      std::uint32_t own = bits;
#pragma unroll
      for (int n = 0; n < kPairsAtOnce; ++n) {
        if (n < pair_of_lane()) own &= own - 1;
        bits &= bits - 1;
      }
      const bool active = own != 0;
      const unsigned any = __ballot_sync(0xffffffffu, active);
      const std::uint32_t entry = first + static_cast<std::uint32_t>(active ? __ffs(static_cast<int>(own)) - 1 : 0);
      const std::uint32_t some = __shfl_sync(0xffffffffu, entry, __ffs(static_cast<int>(any)) - 1);
      use(active ? entry : some, active);
    }
  }
}

__device__ __forceinline__ std::uint32_t window_count(const Problem& p, const BackwardPlan& plan) {
  const auto places = static_cast<std::uint32_t>(p.views * (p.shape.query_heads / p.shape.key_heads));
  return ((places << plan.pairs.row_bits) + kWindowEntries - 1) / kWindowEntries;
}

// One key and the sums of a warp over pairs of it.
template <class T, int DIM>
struct KeyPairs {
  const Problem& p;
  const BackwardArguments& a;
  const BackwardPlan& plan;
  const Sequence& s;
  int key_head, key;
  int view = 0;
  float factor = 1.f;
  Elements<DIM> unit, value, dk, dv;

  __device__ __forceinline__ void begin() {
    value.template load<T>(PairRows(half_values(p, s, key_head)), key);
    dv.clear();
  }
  __device__ __forceinline__ void begin_view(int next) {
    view = next;
    unit.template load<T>(PairRows(half_keys(p, s, view, key_head)), key);
    factor = row_factor(unit, p.normalize, true);
    unit.scale(factor);
    dk.clear();
  }
  // Pairs of this view are added, others passed over.
  __device__ __forceinline__ void add(std::uint32_t entry, bool active) {
    const int group = static_cast<int>(p.shape.query_heads / p.shape.key_heads);
    const auto row = static_cast<int>(entry & ((1u << plan.pairs.row_bits) - 1u));
    const auto place = static_cast<int>(entry >> plan.pairs.row_bits);
    const bool own = active && place / group == view;
    if (!__any_sync(0xffffffffu, own)) return;
    const int head = key_head * group + place % group;
    Elements<DIM> q, d_output;
    q.template load<T>(PairRows(half_queries(p, s, view, head)), row);
    d_output.template load<T>(PairRows(half_output_gradients(p, a.d_output, s, head)), row);
    q.scale(row_factor(q, p.normalize, true));
    const float tau = load_beta(p, head) * plan.position_scale[s.key_length - s.query_length + row];
    const float r = dot(unit, q) - tau, d_weight = dot(value, d_output), sign = view_weight(p, view, head);
    if (!own || !survives(r)) return;
    dv.add_scaled(sign * weight(r, p.power), d_output);
    dk.add_scaled(sign * d_weight * weight_derivative(r, p.power), q);
  }
  // By one warp, with the sums over all pairs of the view.
  __device__ __forceinline__ void store_dk() {
    const Tensor& target = a.outputs.dk[view];
    if (!target.data) return;
    undo_norm(p.normalize, unit, factor, dk);
    if (pair_of_lane() == 0) {
      dk.template store<T>(PairTargets(target, s.batch, key_head).at(key));
    }
  }
  __device__ __forceinline__ void store_dv() {
    const Tensor& target = a.outputs.dv;
    if (!target.data || pair_of_lane() != 0) return;
    dv.template store<T>(PairTargets(target, s.batch, key_head).at(key));
  }
};

constexpr int kLongWarps = 16;

// The sums of a block's warps, added in the order of the warps; valid in warp 0. `parts`: of DIM floats a warp.
template <int DIM>
__device__ void add_over_warps(Elements<DIM>& sums, float (&parts)[kLongWarps][DIM]) {
  constexpr int kCount = Elements<DIM>::kCount;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  sums.sum_over_pairs();
  __syncthreads();
  if (pair_of_lane() == 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) parts[warp][lane_of_pair() * kCount + i] = sums.x[i];
  }
  __syncthreads();
  if (warp != 0) return;
#pragma unroll 1
  for (int w = 1; w < kLongWarps; ++w) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) sums.x[i] += parts[w][lane_of_pair() * kCount + i];
  }
}

// Keys to which very many rows attend, a block each: every warp takes every sixteenth window.
template <class T, int DIM>
__global__ void __launch_bounds__(kLongWarps * 32)
    backward_pair_long_keys_kernel(const __grid_constant__ Problem p, const __grid_constant__ BackwardArguments a,
                                   const __grid_constant__ BackwardPlan plan) {
  __shared__ std::uint32_t scratch_of[kLongWarps][kWindowWords];
  __shared__ float parts[kLongWarps][DIM];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const std::uint32_t keys = *plan.pairs.long_count, windows = window_count(p, plan);
#pragma unroll 1
  for (std::uint32_t i = blockIdx.x; i < keys; i += gridDim.x) {
    const std::int64_t flat_key = plan.pairs.long_keys[i];
    const std::int64_t head_of_all = flat_key / p.shape.key_length;
    const Sequence s = sequence_at(p, head_of_all % p.shape.batch);
    const std::uint32_t count = plan.pairs.key_count[flat_key], end = plan.pairs.key_end[flat_key];
    const PairRecord* const run = plan.pairs.records + head_of_all * plan.pairs.records_per_head + (end - count);
    KeyPairs<T, DIM> sums{
        p, a, plan, s, static_cast<int>(head_of_all / p.shape.batch), static_cast<int>(flat_key % p.shape.key_length)};
    sums.begin();
#pragma unroll 1
    for (int view = 0; view < p.views; ++view) {
      sums.begin_view(view);
#pragma unroll 1
      for (std::uint32_t window = warp; window < windows; window += kLongWarps) {
        visit_window(run, static_cast<int>(count), window, scratch_of[warp],
                     [&](std::uint32_t entry, bool active) { sums.add(entry, active); });
      }
      add_over_warps<DIM>(sums.dk, parts);
      if (warp == 0) sums.store_dk();
    }
    add_over_warps<DIM>(sums.dv, parts);
    if (warp == 0) sums.store_dv();
  }
}

}  // namespace

cudaError_t launch_backward_pair_long_keys(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan,
                                           cudaStream_t stream) {
  constexpr unsigned kLongBlocks = 132;
  return launch_pair_instance(p, [&]<class T, int DIM>() {
    backward_pair_long_keys_kernel<T, DIM><<<kLongBlocks, kLongWarps * 32, 0, stream>>>(p, a, plan);
    return cudaGetLastError();
  });
}

}  // namespace tda::cuda::portable
