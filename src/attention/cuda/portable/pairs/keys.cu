// Keys of listed heads: dk of all views and dv from the runs of entries.cu.
//
// A block of two warps takes 64 keys, a warp 32 of them. The entries of a key are sorted first, so that sums have one
// order: short runs by ranks in registers, longer ones by bitmaps in shared memory, a window of rows at a time. A key
// with more than kLongRun pairs, such as one to which every row attends, gets a block of its own in a second kernel.
#include "attention/cuda/portable/backward_plan.h"
#include "attention/cuda/portable/pairs/elements.cuh"
#include "attention/cuda/portable/pairs/pairs.h"

namespace tda::cuda::portable {
namespace {

constexpr int kSortedEntries = 32;  // runs up to here are sorted in registers
constexpr int kWindowWords = 128;   // longer ones by bitmaps of this many words
constexpr std::uint32_t kWindowEntries = 32 * kWindowWords;

// Hands the entries of a short run, in ascending order and kPairsAtOnce at a time, to use(entry, active).
template <class Use>
__device__ __forceinline__ void visit_short_run(const std::uint32_t* run, int count, std::uint32_t* scratch, Use use) {
  const int lane = own_lane();
  const std::uint32_t own = lane < count ? run[lane] : 0xffffffffu;
  int rank = 0;
  for (int i = 0; i < count; ++i) rank += __shfl_sync(0xffffffffu, own, i) < own;
  __syncwarp();
  if (lane < count) scratch[rank] = own;
  __syncwarp();
#pragma unroll 1
  for (int first = 0; first < count; first += kPairsAtOnce) {
    const int n = first + pair_of_lane();
    use(scratch[n < count ? n : first], n < count);
  }
}

// The same with those entries of any run that lie in one window.
template <class Use>
__device__ __forceinline__ void visit_window(const std::uint32_t* run, int count, std::uint32_t window,
                                             std::uint32_t* scratch, Use use) {
  const int lane = own_lane();
  __syncwarp();
  for (int w = lane; w < kWindowWords; w += 32) scratch[w] = 0;
  __syncwarp();
#pragma unroll 4
  for (int i = lane; i < count; i += 32) {
    const std::uint32_t entry = run[i];
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

__device__ __forceinline__ std::uint32_t window_count(const Problem& p) {
  const auto entries =
      static_cast<std::uint32_t>(p.views * (p.shape.query_heads / p.shape.key_heads) * p.shape.query_length);
  return (entries + kWindowEntries - 1) / kWindowEntries;
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
    value.template load<T>(half_values(p, s, key_head), key);
    dv.clear();
  }
  __device__ __forceinline__ void begin_view(int next) {
    view = next;
    unit.template load<T>(half_keys(p, s, view, key_head), key);
    factor = row_factor(unit, p.normalize);
    unit.scale(factor);
    dk.clear();
  }
  // Pairs of this view are added, others passed over.
  __device__ __forceinline__ void add(std::uint32_t entry, bool active) {
    const int group = static_cast<int>(p.shape.query_heads / p.shape.key_heads);
    const auto rows = static_cast<std::uint32_t>(p.shape.query_length);
    const int row = static_cast<int>(entry % rows), place = static_cast<int>(entry / rows);
    const bool own = active && place / group == view;
    if (!__any_sync(0xffffffffu, own)) return;
    const int head = key_head * group + place % group;
    Elements<DIM> q, d_output;
    q.template load<T>(half_queries(p, s, view, head), row);
    d_output.template load<T>(half_output_gradients(p, a.d_output, s, head), row);
    q.scale(row_factor(q, p.normalize));
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
    store_row_gradient<T>(p.normalize, unit, factor, dk,
                          static_cast<T*>(target.data) + row_offset(target, s.batch, key_head, s.first_key + key));
  }
  __device__ __forceinline__ void store_dv() {
    const Tensor& target = a.outputs.dv;
    if (!target.data || pair_of_lane() != 0) return;
    dv.store(static_cast<T*>(target.data) + row_offset(target, s.batch, key_head, s.first_key + key));
  }
};

// dk of all views and dv of one key with up to kLongRun pairs, by one warp.
template <class T, int DIM>
__device__ __forceinline__ void add_key(KeyPairs<T, DIM>& sums, const std::uint32_t* run, int count,
                                        std::uint32_t* scratch) {
  const auto use = [&](std::uint32_t entry, bool active) { sums.add(entry, active); };
  sums.begin();
#pragma unroll 1
  for (int view = 0; view < sums.p.views; ++view) {
    sums.begin_view(view);
    if (count <= kSortedEntries) {
      visit_short_run(run, count, scratch, use);
    } else {
      const std::uint32_t windows = window_count(sums.p);
#pragma unroll 1
      for (std::uint32_t window = 0; window < windows; ++window) visit_window(run, count, window, scratch, use);
    }
    sums.dk.sum_over_pairs();
    sums.store_dk();
  }
  sums.dv.sum_over_pairs();
  sums.store_dv();
}

template <class T, int COUNT>
__device__ __forceinline__ void write_key_zeros(const Problem& p, const BackwardArguments& a, const Sequence& s,
                                                int key_head, int first_key) {
  const int dim = static_cast<int>(p.shape.head_dim);
  for (int view = 0; view < p.views; ++view) {
    const Tensor& dk = a.outputs.dk[view];
    write_zeros<T, COUNT>(dk, row_offset(dk, s.batch, key_head, s.first_key), first_key, s.key_length, dim, true);
  }
  const Tensor& dv = a.outputs.dv;
  write_zeros<T, COUNT>(dv, row_offset(dv, s.batch, key_head, s.first_key), first_key, s.key_length, dim, true);
}

template <class T, int DIM>
__global__ void __launch_bounds__(kPairThreads, DIM == 64 ? 10 : 7)
    backward_pair_keys_kernel(const __grid_constant__ Problem p, const __grid_constant__ BackwardArguments a,
                              const __grid_constant__ BackwardPlan plan) {
  __shared__ std::uint32_t scratch_of[kPairWarps][kWindowWords];
  const BlockTask task = block_task(blockIdx.x, p.shape.key_heads, p.sequences);
  const int key_head = task.head;
  if (!is_listed(p, plan.pairs, key_head, task.sequence)) return;
  const Sequence s = sequence_at(p, task.sequence);
  const int lane = own_lane(), warp = static_cast<int>(threadIdx.x) / 32;
  const int first_key = static_cast<int>(task.tile) * kSliceRows + warp * kRowsPerWarp;
  if (first_key >= s.key_length) return;
  const std::int64_t head_of_all = key_head * p.shape.batch + s.batch;
  const std::int64_t first = head_of_all * p.shape.key_length + first_key;
  const bool exists = lane < kRowsPerWarp && first_key + lane < s.key_length;
  const std::uint32_t own_count = exists ? plan.pairs.key_count[first + lane] : 0u;
  const std::uint32_t own_end = exists ? plan.pairs.key_end[first + lane] : 0u;
  const std::uint32_t* const entries = plan.pairs.entries + head_of_all * plan.pairs.entries_per_head;
  const int keys = min(kRowsPerWarp, s.key_length - first_key);
#pragma unroll 1
  for (int chunk = 0; chunk < keys; chunk += kRowsAtOnce) {
    if (!__any_sync(0xffffffffu, lane / kRowsAtOnce == chunk / kRowsAtOnce && own_count != 0)) {
      write_key_zeros<T, kRowsAtOnce>(p, a, s, key_head, first_key + chunk);
      continue;
    }
#pragma unroll 1
    for (int n = chunk; n < min(chunk + kRowsAtOnce, keys); ++n) {
      const std::uint32_t count = __shfl_sync(0xffffffffu, own_count, n), end = __shfl_sync(0xffffffffu, own_end, n);
      if (count == 0) {
        write_key_zeros<T, 1>(p, a, s, key_head, first_key + n);
      } else if (count <= kLongRun) {
        KeyPairs<T, DIM> sums{p, a, plan, s, key_head, first_key + n};
        add_key(sums, entries + (end - count), static_cast<int>(count), scratch_of[warp]);
      }
    }
  }
}

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
  const std::uint32_t keys = *plan.pairs.long_count, windows = window_count(p);
#pragma unroll 1
  for (std::uint32_t i = blockIdx.x; i < keys; i += gridDim.x) {
    const std::int64_t flat_key = plan.pairs.long_keys[i];
    const std::int64_t head_of_all = flat_key / p.shape.key_length;
    const Sequence s = sequence_at(p, head_of_all % p.shape.batch);
    const std::uint32_t count = plan.pairs.key_count[flat_key], end = plan.pairs.key_end[flat_key];
    const std::uint32_t* const run = plan.pairs.entries + head_of_all * plan.pairs.entries_per_head + (end - count);
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

template <class T, int DIM>
cudaError_t launch_instance(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan,
                            cudaStream_t stream) {
  const std::int64_t tiles = (p.shape.key_length + kSliceRows - 1) / kSliceRows;
  const auto blocks = static_cast<unsigned>(tiles * p.shape.key_heads * p.sequences);
  backward_pair_keys_kernel<T, DIM><<<blocks, kPairThreads, 0, stream>>>(p, a, plan);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  constexpr unsigned kLongBlocks = 132;
  backward_pair_long_keys_kernel<T, DIM><<<kLongBlocks, kLongWarps * 32, 0, stream>>>(p, a, plan);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_backward_pair_keys(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan,
                                      cudaStream_t stream) {
  return launch_pair_instance(p, [&]<class T, int DIM>() { return launch_instance<T, DIM>(p, a, plan, stream); });
}

}  // namespace tda::cuda::portable
