// dq of 16-bit inputs on tensor cores, and each row tile's share of dbeta and dlambda.
//
// A block of four warps owns 64 query rows of one view and head, 16 a warp. Live slices of 16 keys are gathered four at
// a time from the survivor index; the next gathered tile of K and V is copied (cp.async, two buffers) while this one is
// used:
//   s = q k^T (raw operands, fp32 sums, then the factors 1/|q| 1/|k|); a warp drops slices in which none of its rows
//   survives; dP = dO v^T;  g = w dP a'(s);  dq += (g / |k|) k with g rounded to 16 bits and k raw.
// Shared memory: Q and dO (64 x DIM each), two buffers of K and V: 48 KiB for DIM 64, 96 KiB for 128.
// Exits at once when `p.irregular` is set: backward_query_fp32 does the work then.
#include "attention/cuda/portable/half_operands.cuh"

namespace tda::cuda::portable {
namespace {

template <class T, int DIM, int VALUE>
struct SharedPlan {
  T q[kHalfTile * DIM], d_output[kHalfTile * VALUE];
  T k[2][kHalfTile * DIM], v[2][kHalfTile * VALUE];
  float key_factor[2][kHalfTile];
  float query_factor[kHalfTile];
  double scratch[kHalfThreads / 32];
};

// What a lane knows of its rows g and g + 8.
struct LaneRow {
  Threshold tau;
  float factor;
  double scale;  // c_i
  int last_key;  // -1 where the row does not exist
};

struct RowSums {
  double dbeta = 0.0, dlambda = 0.0;
};

// Scores in, weights (g / |k|) out; whether any of the warp's rows survives in the slice.
__device__ __forceinline__ bool score_excess(const LaneRow (&rows)[2], const float* key_factor, int first_column,
                                             int first_key, float (&scores)[2][4]) {
  const int t = static_cast<int>(threadIdx.x) % 4;
  bool any = false;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const LaneRow& row = rows[e / 2];
      const int column = 8 * n + 2 * t + e % 2;
      float r = fmaf(scores[n][e] * key_factor[first_column + column], row.factor, -row.tau.high) - row.tau.low;
      if (first_key + column > row.last_key) r = 0.f;
      scores[n][e] = r;
      any = any || survives(r);
    }
  }
  return __any_sync(0xffffffffu, any);
}

template <class T, int DIM, int VALUE>
__global__ void __launch_bounds__(kHalfThreads, DIM == 64 ? 3 : 2)
    backward_query_half_kernel(const __grid_constant__ Problem p, const __grid_constant__ BackwardArguments a,
                               std::int64_t tiles) {
  if (*p.irregular) return;
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<SharedPlan<T, DIM, VALUE>*>(shared_bytes);

  const BlockTask task = block_task(blockIdx.x, p.shape.query_heads * p.views, p.sequences);
  const int view = task.head % p.views, head = task.head / p.views;
  const int key_head = static_cast<int>(head / (p.shape.query_heads / p.shape.key_heads));
  const Sequence s = sequence_at(p, task.sequence);
  const int row_tile = static_cast<int>(tiles - 1 - task.tile);
  const int first_row = row_tile * kHalfTile;
  if (first_row >= s.query_length) return;
  const int offset = s.key_length - s.query_length;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp_row = static_cast<int>(threadIdx.x) / 32 * 16;
  const HalfRows queries = half_queries(p, s, view, head), keys = half_keys(p, s, view, key_head);
  const HalfRows values = half_values(p, s, key_head), d_output = half_output_gradients(p, a.d_output, s, head);
  const float* const q_factors = query_factors(p, s, view, head);
  const float* const k_factors = key_factors(p, s, view, key_head);

  const int last_key = offset + min(first_row + kHalfTile, s.query_length) - 1;
  SliceWalk walk(a.index + p.index.word_offset(view, head, s.first_row_tile + row_tile), last_key / kKeysPerWord + 1);
  GatheredKeys next(walk);
  bool broken = false;  // a row that this thread fetched has no finite norm
  const auto fetch = [&](const GatheredKeys& gathered, int buffer) {
    const auto key_of = [&](int r) { return gathered.key(r); };
    load_half_tile<T, DIM>(shared.k[buffer], keys, key_of);
    load_half_tile<T, VALUE>(shared.v[buffer], values, key_of);
    if (threadIdx.x < kHalfTile) {
      const int key = gathered.key(static_cast<int>(threadIdx.x));
      const float factor = key >= 0 && key < s.key_length ? product_factor(k_factors[key]) : 0.f;
      shared.key_factor[buffer][threadIdx.x] = factor;
      broken = broken || factor != factor;
    }
  };
  if (next.count > 0 || a.outputs.dq[view].data) {
    const auto row_of = [&](int r) { return first_row + r; };
    load_half_tile<T, DIM>(shared.q, queries, row_of);
    load_half_tile<T, VALUE>(shared.d_output, d_output, row_of);
    if (threadIdx.x < kHalfTile) {
      const int row = first_row + static_cast<int>(threadIdx.x);
      const float factor = row < s.query_length ? q_factors[row] : 0.f;
      shared.query_factor[threadIdx.x] = factor;
      broken = broken || factor != factor;
    }
  }
  if (next.count > 0) fetch(next, 0);
  commit_copies();

  LaneRow rows[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first_row + warp_row + lane / 4 + 8 * half;
    const bool exists = row < s.query_length;
    rows[half].scale = exists ? threshold_scale(p, offset + row) : 0.0;
    rows[half].tau = threshold_at(load_beta(p, head), rows[half].scale);
    rows[half].factor = exists ? product_factor(q_factors[row]) : 0.f;
    rows[half].last_key = exists ? offset + row : -1;
  }
  const float sign = view_weight(p, view, head);
  float dq[DIM / 8][4] = {};
  RowSums sums;
  for (int buffer = 0; next.count > 0; buffer ^= 1) {
    const GatheredKeys gathered = next;
    next = GatheredKeys(walk);
    if (next.count > 0) fetch(next, buffer ^ 1);
    commit_copies();
    wait_for_copies<1>();
    if (__syncthreads_or(broken)) {
      drop_broken_rows<T, DIM>(shared.q, shared.query_factor);
      drop_broken_rows<T, DIM>(shared.k[buffer], shared.key_factor[buffer]);
      __syncthreads();
    }
#pragma unroll 1
    for (int slice = 0; slice < gathered.count; ++slice) {
      const int column = slice * kSliceKeys;
      float scores[2][4] = {}, d_weights[2][4] = {};
      multiply_rows<T, DIM>(scores, shared.q, warp_row, shared.k[buffer], column);
      if (!score_excess(rows, shared.key_factor[buffer], column, gathered.key(column), scores)) continue;
      multiply_rows<T, VALUE>(d_weights, shared.d_output, warp_row, shared.v[buffer], column);
      float row_g[2] = {}, row_lambda[2] = {};
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float r = scores[n][e];
          float g = 0.f;
          if (survives(r)) {
            g = sign * d_weights[n][e] * weight_derivative(r, p.power);
            row_g[e / 2] += g;
            if (view == 1) row_lambda[e / 2] = fmaf(weight(r, p.power), d_weights[n][e], row_lambda[e / 2]);
          }
          const float factor = shared.key_factor[buffer][column + 8 * n + 2 * (lane % 4) + e % 2];
          scores[n][e] = g * factor * kWeightScale<DIM>;
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        sums.dbeta = fma(rows[half].scale, static_cast<double>(row_g[half]), sums.dbeta);
        sums.dlambda += static_cast<double>(row_lambda[half]);
      }
      const std::uint32_t weights[4] = {
          rounded_pair<T>(scores[0][0], scores[0][1]), rounded_pair<T>(scores[0][2], scores[0][3]),
          rounded_pair<T>(scores[1][0], scores[1][1]), rounded_pair<T>(scores[1][2], scores[1][3])};
      multiply_columns<T, DIM>(dq, weights, shared.k[buffer], column);
    }
    __syncthreads();
  }

  wait_for_copies<0>();
  __syncthreads();
  if (a.outputs.dq[view].data) {
    const Tensor& target = a.outputs.dq[view];
    store_half_gradient<T, DIM>(p.normalize, shared.q, shared.query_factor, queries, first_row, 1.f / kWeightScale<DIM>,
                                target, row_offset(target, s.batch, head, s.first_query), a.pairs_dq[view], dq);
  }
  const std::int64_t flat_tile = s.first_row_tile + row_tile;
  const double dbeta = block_sum<kHalfThreads>(sums.dbeta, shared.scratch);
  const double dlambda = block_sum<kHalfThreads>(sums.dlambda, shared.scratch);
  if (threadIdx.x != 0) return;
  if (a.dbeta_parts) a.dbeta_parts[(view * p.shape.query_heads + head) * p.index.row_tiles + flat_tile] = -dbeta;
  if (a.dlambda_parts && view == 1) a.dlambda_parts[head * p.index.row_tiles + flat_tile] = -dlambda;
}

template <class T, int DIM, int VALUE>
cudaError_t launch(const Problem& p, const BackwardArguments& a, cudaStream_t stream) {
  const std::int64_t tiles = (p.longest_query + kHalfTile - 1) / kHalfTile;
  const auto blocks = static_cast<unsigned>(tiles * p.shape.query_heads * p.views * p.sequences);
  constexpr int kSharedBytes = static_cast<int>(sizeof(SharedPlan<T, DIM, VALUE>));
  const auto kernel = backward_query_half_kernel<T, DIM, VALUE>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  kernel<<<blocks, kHalfThreads, kSharedBytes, stream>>>(p, a, tiles);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_backward_query_half(const Problem& p, const BackwardArguments& a, cudaStream_t stream) {
  const bool narrow = p.shape.value_dim <= 64;
  if (p.type == DataType::kBFloat16) {
    return narrow ? launch<__nv_bfloat16, 64, 64>(p, a, stream) : launch<__nv_bfloat16, 128, 128>(p, a, stream);
  }
  return narrow ? launch<__half, 64, 64>(p, a, stream) : launch<__half, 128, 128>(p, a, stream);
}

}  // namespace tda::cuda::portable
