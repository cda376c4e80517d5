// A row task of the 16-bit backward: dq of 64 query rows of one view and head, and their share of dbeta and dlambda.
//
// Four warps, 16 rows each. Live slices of 16 keys are gathered four at a time from the survivor index; the next
// gathered tile of K and V is copied (cp.async, two buffers) while this one is used:
//   s = q k^T (raw operands, fp32 sums, then the factors 1/|q| 1/|k|); a warp drops slices in which none of its rows
//   survives; dP = dO v^T;  g = w dP a'(s);  dq += (g / |k|) k with g rounded to 16 bits and k raw.
#include "attention/cuda/portable/backward_plan.h"
#include "attention/cuda/portable/half_operands.cuh"
#include "attention/cuda/portable/task_claims.cuh"

namespace tda::cuda::portable {
namespace {

// Shared memory: 48 KiB for DIM 64, 96 KiB for 128.
template <class T, int DIM>
struct RowTaskPlan {
  T q[kHalfTile * DIM], d_output[kHalfTile * DIM];
  T k[2][kHalfTile * DIM], v[2][kHalfTile * DIM];
  float key_factor[2][kHalfTile];
  float query_factor[kHalfTile];
  double scratch[kHalfThreads / 32];
};

// What a lane knows of its rows g and g + 8.
struct LaneRows {
  float tau[2], scale[2], factor[2];  // scale: c_i
  int last_key[2];                    // -1 where the row does not exist
};

struct RowSums {
  float dbeta = 0.f, dlambda = 0.f;
};

// Scores in, excesses s - tau out, 0 where the mask hides a pair; whether any of the warp's rows survives. `masked`
// says that the slice may hold such pairs.
__device__ __forceinline__ bool score_excess(const LaneRows& rows, const float* key_factor, int first_key, bool masked,
                                             float (&scores)[2][4]) {
  const int t = own_lane() % 4;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const float2 factor = *reinterpret_cast<const float2*>(key_factor + 8 * n + 2 * t);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      scores[n][e] = fmaf(scores[n][e] * (e % 2 == 0 ? factor.x : factor.y), rows.factor[e / 2], -rows.tau[e / 2]);
    }
  }
  if (masked) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (first_key + 8 * n + 2 * t + e % 2 > rows.last_key[e / 2]) scores[n][e] = 0.f;
      }
    }
  }
  return __any_sync(0xffffffffu, any_survives(scores[0], scores[1]));
}

// One live slice, at `column` of the gathered tile.
template <class T, int DIM, bool SQUARE>
__device__ __forceinline__ void add_slice(const Problem& p, RowTaskPlan<T, DIM>& shared, int buffer, int column,
                                          int first_key, bool masked, int view, float sign, const LaneRows& rows,
                                          RowSums& sums, float (&dq)[DIM / 8][4]) {
  const int t = own_lane() % 4, warp_row = static_cast<int>(threadIdx.x) / 32 * 16;
  float scores[2][4] = {}, d_weights[2][4] = {};
  multiply_rows<T, DIM>(scores, shared.q, warp_row, shared.k[buffer], column);
  const float* const key_factor = shared.key_factor[buffer] + column;
  if (!score_excess(rows, key_factor, first_key, masked, scores)) return;
  multiply_rows<T, DIM>(d_weights, shared.d_output, warp_row, shared.v[buffer], column);
  float row_g[2] = {};
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const float2 factor = *reinterpret_cast<const float2*>(key_factor + 8 * n + 2 * t);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float r = scores[n][e];
      float g = 0.f;
      if (survives(r)) {
        g = sign * d_weights[n][e] * weight_derivative_of<SQUARE>(r, p.power);
        row_g[e / 2] += g;
        if (view == 1) sums.dlambda = fmaf(weight_of<SQUARE>(r, p.power), d_weights[n][e], sums.dlambda);
      }
      scores[n][e] = g * (e % 2 == 0 ? factor.x : factor.y) * kWeightScale<DIM>;
    }
  }
  sums.dbeta = fmaf(rows.scale[0], row_g[0], fmaf(rows.scale[1], row_g[1], sums.dbeta));
  const std::uint32_t weights[4] = {
      rounded_pair<T>(scores[0][0], scores[0][1]), rounded_pair<T>(scores[0][2], scores[0][3]),
      rounded_pair<T>(scores[1][0], scores[1][1]), rounded_pair<T>(scores[1][2], scores[1][3])};
  multiply_columns<T, DIM>(dq, weights, shared.k[buffer], column);
}

// Begins to fill a tile with the rows of the gathered slices.
template <class T, int DIM>
__device__ __forceinline__ void load_gathered(T* tile, const HalfRows& source, const GatheredKeys& gathered) {
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    load_rows<T, DIM, kSliceKeys, kHalfThreads>(tile + n * kSliceKeys * DIM, source, static_cast<int>(threadIdx.x),
                                                gathered.first[n]);
  }
}

template <class T, int DIM, bool SQUARE>
__device__ __forceinline__ void run_row_task(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan,
                                             const BackwardTask& task, RowTaskPlan<T, DIM>& shared) {
  const int view = static_cast<int>(task.view), head = static_cast<int>(task.head);
  const int key_head = static_cast<int>(head / (p.shape.query_heads / p.shape.key_heads));
  const Sequence s = sequence_at(p, task.sequence);
  const int first_row = static_cast<int>(task.tile) * kHalfTile;
  const int offset = s.key_length - s.query_length;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp_row = static_cast<int>(threadIdx.x) / 32 * 16;
  const HalfRows queries = half_queries(p, s, view, head), keys = half_keys(p, s, view, key_head);
  const HalfRows values = half_values(p, s, key_head), d_output = half_output_gradients(p, a.d_output, s, head);
  const float* const q_factors = query_factors(p, s, view, head);
  const float* const k_factors = key_factors(p, s, view, key_head);
  const int last_key = offset + min(first_row + kHalfTile, s.query_length) - 1;
  SliceWalk walk(a.index + p.index.word_offset(view, head, s.first_row_tile + task.tile), last_key / kKeysPerWord + 1);
  GatheredKeys next(walk);
  bool unfit = false;  // a row that this thread fetched must be mended before products
  const auto fetch = [&](const GatheredKeys& gathered, int buffer) {
    load_gathered<T, DIM>(shared.k[buffer], keys, gathered);
    load_gathered<T, DIM>(shared.v[buffer], values, gathered);
    if (threadIdx.x < kHalfTile) {
      const int key = gathered.key(static_cast<int>(threadIdx.x));
      const float factor = key >= 0 && key < s.key_length ? product_factor(k_factors[key]) : 0.f;
      shared.key_factor[buffer][threadIdx.x] = factor;
      unfit = unfit || factor != factor || !is_regular(p, factor);
    }
  };
  load_half_tile<T, DIM>(shared.q, queries, first_row);
  load_half_tile<T, DIM>(shared.d_output, d_output, first_row);
  if (threadIdx.x < kHalfTile) {
    const int row = first_row + static_cast<int>(threadIdx.x);
    const float factor = row < s.query_length ? product_factor(q_factors[row]) : 0.f;
    shared.query_factor[threadIdx.x] = factor;
    unfit = unfit || factor != factor || !is_regular(p, factor);
  }
  fetch(next, 0);
  commit_copies();
  if (next.count == 0) {  // nothing below would wait for q
    wait_for_copies<0>();
    __syncthreads();
  }

  LaneRows rows;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first_row + warp_row + lane / 4 + 8 * half;
    const bool exists = row < s.query_length;
    rows.scale[half] = exists ? plan.position_scale[offset + row] : 0.f;
    rows.tau[half] = load_beta(p, head) * rows.scale[half];
    rows.last_key[half] = exists ? offset + row : -1;
  }
  // Keys up to here are seen by all 64 rows.
  const int last_unmasked = first_row + kHalfTile <= s.query_length ? offset + first_row : -1;
  const float sign = view_weight(p, view, head);
  float dq[DIM / 8][4] = {};
  RowSums sums;
  for (int buffer = 0; next.count > 0; buffer ^= 1) {
    const GatheredKeys gathered = next;
    next = GatheredKeys(walk);
    if (next.count > 0) fetch(next, buffer ^ 1);
    commit_copies();
    wait_for_copies<1>();
    if (__syncthreads_or(unfit)) {
      mend_rows<T, DIM, false>(p, shared.q, shared.query_factor, 1, kHalfTile);
      mend_rows<T, DIM, false>(p, shared.k[buffer], shared.key_factor[buffer], 1, kHalfTile);
    }
    rows.factor[0] = shared.query_factor[warp_row + lane / 4];
    rows.factor[1] = shared.query_factor[warp_row + lane / 4 + 8];
#pragma unroll 1
    for (int slice = 0; slice < gathered.count; ++slice) {
      const int column = slice * kSliceKeys, first_key = gathered.key(column);
      add_slice<T, DIM, SQUARE>(p, shared, buffer, column, first_key, first_key + kSliceKeys - 1 > last_unmasked, view,
                                sign, rows, sums, dq);
    }
    __syncthreads();
  }

  if (a.outputs.dq[view].data) {
    const Tensor& target = a.outputs.dq[view];
    store_half_gradient<T, DIM>(p.normalize, shared.q, shared.query_factor, q_factors + first_row, queries, first_row,
                                warp_row, 1.f / kWeightScale<DIM>, target,
                                row_offset(target, s.batch, head, s.first_query), a.pairs_dq[view], dq);
  }
  const std::int64_t flat_tile = s.first_row_tile + task.tile;
  const double dbeta = block_sum<kHalfThreads>(static_cast<double>(sums.dbeta), shared.scratch);
  const double dlambda = view == 1 ? block_sum<kHalfThreads>(static_cast<double>(sums.dlambda), shared.scratch) : 0.0;
  if (threadIdx.x != 0) return;
  if (a.dbeta_parts) a.dbeta_parts[(view * p.shape.query_heads + head) * p.index.row_tiles + flat_tile] = -dbeta;
  if (a.dlambda_parts && view == 1) a.dlambda_parts[head * p.index.row_tiles + flat_tile] = -dlambda;
}

template <int DIM>
constexpr int kBlocksPerProcessor = DIM == 64 ? 4 : 2;

template <class T, int DIM, bool SQUARE>
__global__ void __launch_bounds__(kHalfThreads, kBlocksPerProcessor<DIM>)
    backward_query_half_kernel(const __grid_constant__ Problem p, const __grid_constant__ BackwardArguments a,
                               const __grid_constant__ BackwardPlan plan) {
  begin_kernel(KernelOrder::kAfterPrevious);
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<RowTaskPlan<T, DIM>*>(shared_bytes);
  claim_tasks<kHalfThreads / 32>(plan.row_tasks, [&](const BackwardTask& task, bool /*by_block*/) {
    run_row_task<T, DIM, SQUARE>(p, a, plan, task, shared);
  });
}

template <class T, int DIM, bool SQUARE>
cudaError_t launch_instance(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan,
                            cudaStream_t stream) {
  return launch_staying(backward_query_half_kernel<T, DIM, SQUARE>, kHalfThreads,
                        plan.dense ? 1 : kBlocksPerProcessor<DIM>, static_cast<int>(sizeof(RowTaskPlan<T, DIM>)),
                        plan.row_tasks.capacity, stream, p, a, plan);
}

}  // namespace

cudaError_t launch_backward_query_half(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan,
                                       cudaStream_t stream) {
  return launch_fitting_instance(
      p, [&]<class T, int DIM, bool SQUARE>() { return launch_instance<T, DIM, SQUARE>(p, a, plan, stream); });
}

}  // namespace tda::cuda::portable
