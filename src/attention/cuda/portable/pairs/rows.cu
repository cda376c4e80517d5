// Rows of listed heads: dq, and the shares of dbeta and dlambda of a row tile. Counts the pairs of each key on the way.
//
// A block of two warps takes a row tile with survivors, a warp 32 rows of it; eight lists of rows are loaded at once.
#include "attention/cuda/portable/backward_plan.h"
#include "attention/cuda/portable/pairs/elements.cuh"
#include "attention/cuda/portable/pairs/pairs.h"

namespace tda::cuda::portable {
namespace {

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

// Eight rows; lane n holds the number of pairs of row n.
template <class T, int DIM>
__device__ __forceinline__ void add_rows(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan,
                                         const Sequence& s, int view, int head, int key_head, int first_row,
                                         const std::uint32_t* lists, std::uint32_t counts, Shares& shares) {
  const Tensor& dq = a.outputs.dq[view];
  const std::int64_t start = row_offset(dq, s.batch, head, s.first_query);
  if (!__any_sync(0xffffffffu, counts != 0)) {
    write_zeros<T, kRowsAtOnce>(dq, start, first_row, s.query_length, DIM, true);
    return;
  }
#pragma unroll 1
  for (int n = 0; n < min(kRowsAtOnce, s.query_length - first_row); ++n) {
    const int count = static_cast<int>(__shfl_sync(0xffffffffu, counts, n));
    if (count == 0) {
      write_zeros<T, 1>(dq, start, first_row + n, s.query_length, DIM, true);
      continue;
    }
    const std::uint32_t* const list = lists + static_cast<std::int64_t>(first_row + n) * kListWords;
    const bool narrow = has_narrow_lists(p.shape.key_length);
    // Entry i of the list to lane i.
    const std::uint32_t listed = own_lane() <= count ? list_entry(list, own_lane(), narrow) : 0u;
    add_row<T, DIM>(p, a, plan, s, view, head, key_head, first_row + n, count, listed, shares);
  }
}

template <class T, int DIM>
__global__ void __launch_bounds__(kPairThreads, DIM == 64 ? 12 : 8)
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
  const bool narrow = has_narrow_lists(p.shape.key_length);
  const int end = min(first_row + kRowsPerWarp, s.query_length);
  Shares shares;
#pragma unroll 1
  for (int chunk = first_row; chunk < end; chunk += kRowsAtOnce) {
    const bool exists = lane < kRowsAtOnce && chunk + lane < end;
    const std::uint32_t counts =
        exists ? list_entry(lists + static_cast<std::int64_t>(chunk + lane) * kListWords, 0, narrow) : 0u;
    add_rows<T, DIM>(p, a, plan, s, view, head, key_head, chunk, lists, counts, shares);
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

template <class T, int DIM>
cudaError_t launch_instance(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan,
                            cudaStream_t stream) {
  const std::int64_t tiles = (p.shape.query_length + kSliceRows - 1) / kSliceRows;
  const auto blocks = static_cast<unsigned>(tiles * p.shape.query_heads * p.views * p.sequences);
  backward_pair_rows_kernel<T, DIM><<<blocks, kPairThreads, 0, stream>>>(p, a, plan);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_backward_pair_rows(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan,
                                      cudaStream_t stream) {
  return launch_pair_instance(p, [&]<class T, int DIM>() { return launch_instance<T, DIM>(p, a, plan, stream); });
}

}  // namespace tda::cuda::portable
