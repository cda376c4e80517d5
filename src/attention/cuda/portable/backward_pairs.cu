// The backward of listed heads, pair by pair (PairPlan): where a row has a handful of survivors, all that tiles share
// is waste.
//
//   rows      a block a live row tile, eight rows a warp: dq, shares of dbeta and dlambda; counts the pairs of each key
//   entries   a block a key head: ends of the keys' runs by a prefix sum, then every pair into the run of its key
//   keys      a block 64 keys, eight a warp: sorts the entries of a key, so that sums have one order; dk of all views,
//   dv
//
// A warp works on four pairs at once, eight lanes each; a lane holds 8 (D = 64) or 16 (D = 128) elements of a row.
// Scores, dP and sums are fp32 over unit rows in fp32. Cost of a pair in each of the two directions: two rows read from
// the L2 cache and about 25 instructions of a warp.
#include "attention/cuda/portable/backward_plan.h"
#include "attention/cuda/portable/half_operands.cuh"

namespace tda::cuda::portable {
namespace {

constexpr int kPairWarps = 8;
constexpr int kPairThreads = kPairWarps * 32;
constexpr int kRowsPerWarp = kSliceRows / kPairWarps;
constexpr int kLanesPerPair = 8;
constexpr int kPairsAtOnce = 32 / kLanesPerPair;
constexpr int kEntryThreads = 1024;
constexpr int kSortedEntries = 32;  // runs up to here are sorted in registers
constexpr int kWindowWords = 128;   // longer ones by bitmaps of this many words

__device__ __forceinline__ int lane_of_pair() { return own_lane() % kLanesPerPair; }
__device__ __forceinline__ int pair_of_lane() { return own_lane() / kLanesPerPair; }

__device__ __forceinline__ float sum_over_pair(float x) {
#pragma unroll
  for (int step = 1; step < kLanesPerPair; step *= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// A lane's elements of a row.
template <int DIM>
struct Elements {
  static constexpr int kCount = DIM / kLanesPerPair;
  float x[kCount];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = 0.f;
  }
  template <class T>
  __device__ __forceinline__ void load(const HalfRows& rows, int row) {
    const T* const data = static_cast<const T*>(rows.data) + rows.start + row * rows.row_stride;
#pragma unroll
    for (int part = 0; part < kCount / 8; ++part) {
      const uint4 raw = *reinterpret_cast<const uint4*>(data + part * 64 + lane_of_pair() * 8);
      const std::uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = load_pair(reinterpret_cast<const T*>(&words[i]));
        x[8 * part + 2 * i] = pair.x;
        x[8 * part + 2 * i + 1] = pair.y;
      }
    }
  }
  template <class T>
  __device__ __forceinline__ void store(T* row) const {
#pragma unroll
    for (int part = 0; part < kCount / 8; ++part) {
      std::uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i] = rounded_pair<T>(x[8 * part + 2 * i], x[8 * part + 2 * i + 1]);
      *reinterpret_cast<uint4*>(row + part * 64 + lane_of_pair() * 8) =
          make_uint4(words[0], words[1], words[2], words[3]);
    }
  }
  __device__ __forceinline__ void add_scaled(float factor, const Elements& other) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = fmaf(factor, other.x[i], x[i]);
  }
  __device__ __forceinline__ void scale(float factor) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] *= factor;
  }
  // Over the pairs that the warp works on at once, in a fixed order.
  __device__ __forceinline__ void sum_over_pairs() {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      x[i] += __shfl_xor_sync(0xffffffffu, x[i], kLanesPerPair);
      x[i] += __shfl_xor_sync(0xffffffffu, x[i], 2 * kLanesPerPair);
    }
  }
};

template <int DIM>
__device__ __forceinline__ float dot(const Elements<DIM>& a, const Elements<DIM>& b) {
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < Elements<DIM>::kCount; ++i) sum = fmaf(a.x[i], b.x[i], sum);
  return sum_over_pair(sum);
}

// 1 / max(|x|, 1e-12) of the row that the lanes of a pair hold, 1 without normalization, NaN for a row that is not
// finite. In double where the square leaves fp32's comfort.
template <int DIM>
__device__ __forceinline__ float row_factor(const Elements<DIM>& row, bool normalize) {
  const float square = dot(row, row);
  if (__any_sync(0xffffffffu, !(square > 1e-30f && square < 1e30f))) {
    double exact = 0.0;
#pragma unroll
    for (int i = 0; i < Elements<DIM>::kCount; ++i) {
      const auto x = static_cast<double>(row.x[i]);
      exact = fma(x, x, exact);
    }
#pragma unroll
    for (int step = 1; step < kLanesPerPair; step *= 2) exact += __shfl_xor_sync(0xffffffffu, exact, step);
    if (!isfinite(exact)) return CUDART_NAN_F;
    return normalize ? static_cast<float>(1.0 / fmax(sqrt(exact), 1e-12)) : 1.f;
  }
  return normalize ? 1.f / sqrtf(square) : 1.f;
}

// Stores the gradient of a row from that of its unit vector: dx = (du - u <u, du>) f.
template <class T, int DIM>
__device__ __forceinline__ void store_row_gradient(bool normalize, const Elements<DIM>& unit, float factor,
                                                   Elements<DIM>& gradient, T* target) {
  if (normalize) gradient.add_scaled(-dot(unit, gradient), unit);
  gradient.scale(factor);
  if (pair_of_lane() == 0) gradient.store(target);
}

// What a warp gathers for dbeta and dlambda.
struct Shares {
  double dbeta = 0.0, dlambda = 0.0;
};

// One row with `count` survivors; lane n + 1 holds key n.
template <class T, int DIM>
__device__ __forceinline__ void add_row(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan,
                                        const Sequence& s, int view, int head, int key_head, int row, int count,
                                        std::uint32_t listed, Shares& shares) {
  const HalfRows keys = half_keys(p, s, view, key_head), values = half_values(p, s, key_head);
  Elements<DIM> unit, d_output, sum;
  unit.template load<T>(half_queries(p, s, view, head), row);
  d_output.template load<T>(half_output_gradients(p, a.d_output, s, head), row);
  const float factor = row_factor(unit, p.normalize), sign = view_weight(p, view, head);
  unit.scale(factor);
  sum.clear();
  const float scale = plan.position_scale[s.key_length - s.query_length + row], tau = load_beta(p, head) * scale;
  std::uint32_t* const key_count = plan.pairs.key_count + (key_head * p.shape.batch + s.batch) * p.shape.key_length;
  float row_g = 0.f, row_dlambda = 0.f;
#pragma unroll 1
  for (int first = 0; first < count; first += kPairsAtOnce) {
    const int n = first + pair_of_lane();
    const bool active = n < count;
    const int key = static_cast<int>(__shfl_sync(0xffffffffu, listed, 1 + (active ? n : first)));
    Elements<DIM> k, v;
    k.template load<T>(keys, key);
    v.template load<T>(values, key);
    const float key_factor = row_factor(k, p.normalize);
    k.scale(key_factor);
    const float r = dot(unit, k) - tau, d_weight = dot(d_output, v);
    const bool live = active && survives(r);
    const float g = live ? sign * d_weight * weight_derivative(r, p.power) : 0.f;
    row_g += g;
    if (view == 1 && live) row_dlambda = fmaf(weight(r, p.power), d_weight, row_dlambda);
    if (live) sum.add_scaled(g, k);
    if (active && lane_of_pair() == 0) atomicAdd(&key_count[key], 1u);
  }
  sum.sum_over_pairs();
#pragma unroll
  for (int step = kLanesPerPair; step < 32; step *= 2) {
    row_g += __shfl_xor_sync(0xffffffffu, row_g, step);
    row_dlambda += __shfl_xor_sync(0xffffffffu, row_dlambda, step);
  }
  shares.dbeta += static_cast<double>(scale) * static_cast<double>(row_g);
  shares.dlambda += static_cast<double>(row_dlambda);
  const Tensor& dq = a.outputs.dq[view];
  if (!dq.data) return;
  store_row_gradient<T>(p.normalize, unit, factor, sum,
                        static_cast<T*>(dq.data) + row_offset(dq, s.batch, head, s.first_query + row));
}

template <class T, int DIM>
__global__ void __launch_bounds__(kPairThreads, DIM == 64 ? 3 : 2)
    backward_pair_rows_kernel(const __grid_constant__ Problem p, const __grid_constant__ BackwardArguments a,
                              const __grid_constant__ BackwardPlan plan) {
  __shared__ Shares shares_of[kPairWarps];
  const BlockTask task = block_task(blockIdx.x, p.shape.query_heads * p.views, p.sequences);
  const int view = task.head % p.views, head = task.head / p.views;
  const int key_head = static_cast<int>(head / (p.shape.query_heads / p.shape.key_heads));
  if (!is_listed(p, plan.pairs, key_head, task.sequence)) return;
  const Sequence s = sequence_at(p, task.sequence);
  const std::int64_t flat_tile = s.first_row_tile + task.tile;
  if (plan.pairs.live[(view * p.shape.query_heads + head) * p.index.row_tiles + flat_tile] == 0) return;
  const int lane = own_lane(), warp = static_cast<int>(threadIdx.x) / 32;
  const int first_row = static_cast<int>(task.tile) * kSliceRows + warp * kRowsPerWarp;
  const std::uint32_t* const lists =
      plan.pairs.lists + SurvivorLists::head(p.shape, view, head, s.batch) * p.shape.query_length * kListWords;
  // Four lanes hold the list of a row, each four words of it.
  const int list_row = first_row + lane / 4;
  uint4 words = make_uint4(0, 0, 0, 0);
  if (list_row < s.query_length) {
    words = *reinterpret_cast<const uint4*>(lists + static_cast<std::int64_t>(list_row) * kListWords + lane % 4 * 4);
  }
  Shares shares;
#pragma unroll 1
  for (int n = 0; n < min(kRowsPerWarp, s.query_length - first_row); ++n) {
    const int count = static_cast<int>(__shfl_sync(0xffffffffu, words.x, 4 * n));
    if (count > 0) {
      // Word i of the list to lane i.
      const int holder = 4 * n + lane % kListWords / 4;
      const std::uint32_t x = __shfl_sync(0xffffffffu, words.x, holder), y = __shfl_sync(0xffffffffu, words.y, holder);
      const std::uint32_t z = __shfl_sync(0xffffffffu, words.z, holder), w = __shfl_sync(0xffffffffu, words.w, holder);
      const std::uint32_t listed = lane % 4 == 0 ? x : lane % 4 == 1 ? y : lane % 4 == 2 ? z : w;
      add_row<T, DIM>(p, a, plan, s, view, head, key_head, first_row + n, count, listed, shares);
    } else {
      const Tensor& dq = a.outputs.dq[view];
      write_zeros<T, 1>(dq, row_offset(dq, s.batch, head, s.first_query), first_row + n, s.query_length, DIM, true);
    }
  }
  if (lane == 0) shares_of[warp] = shares;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kPairWarps; ++w) {
    shares.dbeta += shares_of[w].dbeta;
    shares.dlambda += shares_of[w].dlambda;
  }
  if (a.dbeta_parts) {
    a.dbeta_parts[(view * p.shape.query_heads + head) * p.index.row_tiles + flat_tile] = -shares.dbeta;
  }
  if (a.dlambda_parts && view == 1) a.dlambda_parts[head * p.index.row_tiles + flat_tile] = -shares.dlambda;
}

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
    const std::uint32_t before = sum_before(key < keys ? count[key] : 0u, scratch, total);
    if (key < keys) end[key] = base + before;
    base += total;
  }
  __syncthreads();
  if (base == 0) return;
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
      for (int row = static_cast<int>(threadIdx.x); row < rows; row += kEntryThreads) {
        if (live[row / kSliceRows] == 0) continue;
        const std::uint32_t* const list = lists + static_cast<std::int64_t>(row) * kListWords;
        const int own = static_cast<int>(list[0]);
        for (int i = 1; i <= own; ++i)
          entries[atomicAdd(&end[list[i]], 1u)] = first_entry + static_cast<std::uint32_t>(row);
      }
    }
  }
}

// Hands the entries of a run, in ascending order and kPairsAtOnce at a time, to use(entry, active).
template <class Use>
__device__ __forceinline__ void visit_sorted(const std::uint32_t* run, int count, std::uint32_t last_entry,
                                             std::uint32_t* scratch, Use use) {
  const int lane = own_lane();
  if (count <= kSortedEntries) {
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
    return;
  }
#pragma unroll 1
  for (std::uint32_t window = 0; window <= last_entry / (32 * kWindowWords); ++window) {
    __syncwarp();
    for (int w = lane; w < kWindowWords; w += 32) scratch[w] = 0;
    __syncwarp();
    for (int i = lane; i < count; i += 32) {
      const std::uint32_t entry = run[i];
      if (entry / (32 * kWindowWords) == window) atomicOr(&scratch[entry / 32 % kWindowWords], 1u << entry % 32);
    }
    __syncwarp();
#pragma unroll 1
    for (int w = 0; w < kWindowWords; ++w) {
      for (std::uint32_t bits = scratch[w]; bits != 0;) {
        const std::uint32_t first = (window * kWindowWords + w) * 32;
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
}

// dk of all views and dv of one key with pairs.
template <class T, int DIM>
__device__ __forceinline__ void add_key(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan,
                                        const Sequence& s, int key_head, int key, const std::uint32_t* run, int count,
                                        std::uint32_t* scratch) {
  const int group = static_cast<int>(p.shape.query_heads / p.shape.key_heads);
  const auto rows = static_cast<std::uint32_t>(p.shape.query_length);
  const int offset = s.key_length - s.query_length;
  Elements<DIM> value, dv;
  value.template load<T>(half_values(p, s, key_head), key);
  dv.clear();
#pragma unroll 1
  for (int view = 0; view < p.views; ++view) {
    Elements<DIM> unit, dk;
    unit.template load<T>(half_keys(p, s, view, key_head), key);
    const float factor = row_factor(unit, p.normalize);
    unit.scale(factor);
    dk.clear();
    visit_sorted(run, count, static_cast<std::uint32_t>(p.views) * group * rows - 1, scratch,
                 [&](std::uint32_t entry, bool active) {
                   const int row = static_cast<int>(entry % rows), place = static_cast<int>(entry / rows);
                   const bool own = active && place / group == view;
                   if (!__any_sync(0xffffffffu, own)) return;
                   const int head = key_head * group + place % group;
                   Elements<DIM> q, d_output;
                   q.template load<T>(half_queries(p, s, view, head), row);
                   d_output.template load<T>(half_output_gradients(p, a.d_output, s, head), row);
                   q.scale(row_factor(q, p.normalize));
                   const float r = dot(unit, q) - load_beta(p, head) * plan.position_scale[offset + row];
                   const float d_weight = dot(value, d_output), sign = view_weight(p, view, head);
                   if (!own || !survives(r)) return;
                   dv.add_scaled(sign * weight(r, p.power), d_output);
                   dk.add_scaled(sign * d_weight * weight_derivative(r, p.power), q);
                 });
    const Tensor& target = a.outputs.dk[view];
    if (!target.data) continue;
    dk.sum_over_pairs();
    store_row_gradient<T>(p.normalize, unit, factor, dk,
                          static_cast<T*>(target.data) + row_offset(target, s.batch, key_head, s.first_key + key));
  }
  const Tensor& target = a.outputs.dv;
  if (!target.data) return;
  dv.sum_over_pairs();
  if (pair_of_lane() == 0) {
    dv.store(static_cast<T*>(target.data) + row_offset(target, s.batch, key_head, s.first_key + key));
  }
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
__global__ void __launch_bounds__(kPairThreads, 2)
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
  if (__any_sync(0xffffffffu, own_count != 0) == 0) {
    write_key_zeros<T, kRowsPerWarp>(p, a, s, key_head, first_key);
    return;
  }
  const std::uint32_t* const entries = plan.pairs.entries + head_of_all * plan.pairs.entries_per_head;
#pragma unroll 1
  for (int n = 0; n < min(kRowsPerWarp, s.key_length - first_key); ++n) {
    const std::uint32_t count = __shfl_sync(0xffffffffu, own_count, n), end = __shfl_sync(0xffffffffu, own_end, n);
    if (count == 0) {
      write_key_zeros<T, 1>(p, a, s, key_head, first_key + n);
      continue;
    }
    add_key<T, DIM>(p, a, plan, s, key_head, first_key + n, entries + (end - count), static_cast<int>(count),
                    scratch_of[warp]);
  }
}

template <class T, int DIM>
cudaError_t launch_instance(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan,
                            cudaStream_t stream) {
  const std::int64_t row_tiles = (p.shape.query_length + kSliceRows - 1) / kSliceRows;
  const std::int64_t key_tiles = (p.shape.key_length + kSliceRows - 1) / kSliceRows;
  const auto row_blocks = static_cast<unsigned>(row_tiles * p.shape.query_heads * p.views * p.sequences);
  backward_pair_rows_kernel<T, DIM><<<row_blocks, kPairThreads, 0, stream>>>(p, a, plan);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  if (!a.outputs.dk[0].data && !a.outputs.dk[1].data && !a.outputs.dv.data) return cudaSuccess;
  backward_pair_entries_kernel<<<static_cast<unsigned>(p.shape.key_heads * p.shape.batch), kEntryThreads, 0, stream>>>(
      p, plan);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  const auto key_blocks = static_cast<unsigned>(key_tiles * p.shape.key_heads * p.sequences);
  backward_pair_keys_kernel<T, DIM><<<key_blocks, kPairThreads, 0, stream>>>(p, a, plan);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_backward_pairs(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan,
                                  cudaStream_t stream) {
  const bool bf16 = p.type == DataType::kBFloat16;
  if (p.shape.head_dim == 64) {
    return bf16 ? launch_instance<__nv_bfloat16, 64>(p, a, plan, stream)
                : launch_instance<__half, 64>(p, a, plan, stream);
  }
  return bf16 ? launch_instance<__nv_bfloat16, 128>(p, a, plan, stream)
              : launch_instance<__half, 128>(p, a, plan, stream);
}

}  // namespace tda::cuda::portable
