// dk of every view and dv of 16-bit inputs on tensor cores.
//
// A block of four warps owns 64 keys of one key head, one slice of 16 a warp. For each view and query head of the group
// it walks the row tiles that have a survivor among its keys (the survivor index read down a column); the next tile of
// Q and dO is copied while this one is used. A warp whose slice is dead in a row tile rests. For each 32 of the 64
// rows:
//   s^T = k q^T (raw, factors after);  per 16 rows with a survivor: dP^T = v dO^T, dv += (w a)^T dO, dk += (g / |q|)^T
//   q.
// Shared memory: K, V, two buffers of Q and dO: 48 KiB for DIM 64, 96 KiB for 128.
// A NaN in dO may touch only keys that its row weighs: when a sum of dv is not finite at the end, the block starts over
// with a product that skips zero weights. Exits at once when `p.irregular` is set: the fp32 kernels do the work then.
#include "attention/cuda/portable/half_operands.cuh"

namespace tda::cuda::portable {
namespace {

template <class T, int DIM, int VALUE>
struct SharedPlan {
  T k[kHalfTile * DIM], v[kHalfTile * VALUE];
  T q[2][kHalfTile * DIM], d_output[2][kHalfTile * VALUE];
  Threshold threshold[2][kHalfTile];
  float query_factor[2][kHalfTile];
  float key_factor[kHalfTile];
};

template <class T, int DIM, int VALUE>
struct KeyValueSums {
  float dk[DIM / 8][4], dv[VALUE / 8][4];
};

// Scores of 32 rows to excesses s - tau, 0 where the mask or the tile's end hides a pair.
__device__ __forceinline__ void excess_of_rows(const Threshold* threshold, const float* query_factor, int first_row,
                                               int offset, int rows_end, const int (&key)[2], const float (&factor)[2],
                                               float (&scores)[4][4]) {
  const int t = static_cast<int>(threadIdx.x) % 4;
#pragma unroll
  for (int n = 0; n < 4; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int column = 8 * n + 2 * t + e % 2;
      const int row = first_row + column;
      const Threshold tau = threshold[column];
      float r = fmaf(scores[n][e] * factor[e / 2], query_factor[column], -tau.high) - tau.low;
      if (key[e / 2] > offset + row || row >= rows_end) r = 0.f;
      scores[n][e] = r;
    }
  }
}

// One row tile of one query head.
template <class T, int DIM, int VALUE>
__device__ __forceinline__ void add_row_tile(const Problem& p, SharedPlan<T, DIM, VALUE>& shared, int buffer,
                                             int first_row, int offset, int rows_end, const int (&key)[2], float sign,
                                             float value_scale, bool guarded, KeyValueSums<T, DIM, VALUE>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp_key = static_cast<int>(threadIdx.x) / 32 * 16;
  const float factor[2] = {product_factor(shared.key_factor[warp_key + lane / 4]),
                           product_factor(shared.key_factor[warp_key + lane / 4 + 8])};
#pragma unroll 1
  for (int half = 0; half < kHalfTile; half += 32) {
    float scores[4][4] = {};
    multiply_rows<T, DIM>(scores, shared.k, warp_key, shared.q[buffer], half);
    excess_of_rows(shared.threshold[buffer] + half, shared.query_factor[buffer] + half, first_row + half, offset,
                   rows_end, key, factor, scores);
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      float(&low)[4] = scores[2 * part];
      float(&high)[4] = scores[2 * part + 1];
      bool any = false;
#pragma unroll
      for (int e = 0; e < 4; ++e) any = any || survives(low[e]) || survives(high[e]);
      if (!__any_sync(0xffffffffu, any)) continue;
      const int first = half + 16 * part;
      float d_weights[2][4] = {};
      multiply_rows<T, VALUE>(d_weights, shared.v, warp_key, shared.d_output[buffer], first);
      float weights[2][4];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float r = n == 0 ? low[e] : high[e];
          const float row_factor =
              shared.query_factor[buffer][first + 8 * n + 2 * (lane % 4) + e % 2] * kWeightScale<DIM>;
          const bool live = survives(r);
          weights[n][e] = live ? sign * weight(r, p.power) * value_scale : 0.f;
          d_weights[n][e] = live ? sign * d_weights[n][e] * weight_derivative(r, p.power) * row_factor : 0.f;
        }
      }
      const std::uint32_t g[4] = {
          rounded_pair<T>(d_weights[0][0], d_weights[0][1]), rounded_pair<T>(d_weights[0][2], d_weights[0][3]),
          rounded_pair<T>(d_weights[1][0], d_weights[1][1]), rounded_pair<T>(d_weights[1][2], d_weights[1][3])};
      multiply_columns<T, DIM>(sums.dk, g, shared.q[buffer], first);
      const std::uint32_t w[4] = {
          rounded_pair<T>(weights[0][0], weights[0][1]), rounded_pair<T>(weights[0][2], weights[0][3]),
          rounded_pair<T>(weights[1][0], weights[1][1]), rounded_pair<T>(weights[1][2], weights[1][3])};
      multiply_columns<T, VALUE>(sums.dv, w, shared.d_output[buffer], first, guarded);
      if (guarded) add_spoiled_products<T, VALUE>(sums.dv, weights[0], weights[1], shared.d_output[buffer], first);
    }
  }
}

// All row tiles of one query head in one view.
template <class T, int DIM, int VALUE>
__device__ __forceinline__ void add_head(const Problem& p, const BackwardArguments& a, const Sequence& s, int view,
                                         int head, int first_key, SharedPlan<T, DIM, VALUE>& shared, bool guarded,
                                         float value_scale, KeyValueSums<T, DIM, VALUE>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int offset = s.key_length - s.query_length;
  const int row_tiles = (s.query_length + kHalfTile - 1) / kHalfTile;
  const HalfRows queries = half_queries(p, s, view, head);
  const HalfRows d_output = half_output_gradients(p, a.d_output, s, head);
  const float* const q_factors = query_factors(p, s, view, head);
  const float beta = load_beta(p, head), sign = view_weight(p, view, head);
  const int key[2] = {first_key + warp * 16 + lane / 4, first_key + warp * 16 + lane / 4 + 8};
  RowTileWalk walk(a.index + p.index.word_offset(view, head, s.first_row_tile), p.index.words_per_tile,
                   first_row_tile_of_key(s, first_key), row_tiles, first_key);
  // A row that this thread fetched has no finite norm; keys are looked at once a view.
  bool broken = threadIdx.x < kHalfTile && isnan(shared.key_factor[threadIdx.x]);
  const auto fetch = [&](int row_tile, int buffer) {
    const auto row_of = [&](int r) { return row_tile * kHalfTile + r; };
    load_half_tile<T, DIM>(shared.q[buffer], queries, row_of);
    load_half_tile<T, VALUE>(shared.d_output[buffer], d_output, row_of);
    if (threadIdx.x < kHalfTile) {
      const int row = row_tile * kHalfTile + static_cast<int>(threadIdx.x);
      const bool exists = row < s.query_length;
      const float factor = exists ? product_factor(q_factors[row]) : 0.f;
      shared.query_factor[buffer][threadIdx.x] = factor;
      broken = broken || factor != factor;
      shared.threshold[buffer][threadIdx.x] = threshold_at(beta, exists ? threshold_scale(p, offset + row) : 0.0);
    }
  };
  int next = walk.next();
  unsigned next_slices = walk.slices();
  if (next >= 0) fetch(next, 0);
  commit_copies();
  for (int buffer = 0; next >= 0; buffer ^= 1) {
    const int row_tile = next;
    const unsigned slices = next_slices;
    next = walk.next();
    next_slices = walk.slices();
    if (next >= 0) fetch(next, buffer ^ 1);
    commit_copies();
    wait_for_copies<1>();
    if (__syncthreads_or(broken)) {
      drop_broken_rows<T, DIM>(shared.k, shared.key_factor);
      drop_broken_rows<T, DIM>(shared.q[buffer], shared.query_factor[buffer]);
      __syncthreads();
    }
    if (slices >> warp & 1u) {
      add_row_tile<T, DIM, VALUE>(p, shared, buffer, row_tile * kHalfTile, offset, s.query_length, key, sign,
                                  value_scale, guarded, sums);
    }
    __syncthreads();
  }
}

template <int COUNT>
__device__ __forceinline__ void clear_sums(float (&sums)[COUNT][4]) {
#pragma unroll
  for (int n = 0; n < COUNT; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) sums[n][e] = 0.f;
  }
}

template <class T, int VALUE>
__device__ __forceinline__ void store_dv(const Problem& p, const BackwardArguments& a, const Sequence& s, int key_head,
                                         int first_key, float unscale, const float (&dv)[VALUE / 8][4]) {
  if (!a.outputs.dv.data) return;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp_key = static_cast<int>(threadIdx.x) / 32 * 16;
  const std::int64_t start = row_offset(a.outputs.dv, s.batch, key_head, s.first_key);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int key = first_key + warp_key + lane / 4 + 8 * half;
    if (key >= s.key_length) continue;
    T* const row = static_cast<T*>(a.outputs.dv.data) + start + key * a.outputs.dv.row_stride;
#pragma unroll
    for (int n = 0; n < VALUE / 8; ++n) {
      store_pair(row, 8 * n + 2 * (lane % 4), static_cast<int>(p.shape.value_dim), a.pairs_dv,
                 dv[n][2 * half] * unscale, dv[n][2 * half + 1] * unscale);
    }
  }
}

template <class T, int DIM, int VALUE>
__global__ void __launch_bounds__(kHalfThreads, DIM == 64 ? 3 : 2)
    backward_key_value_half_kernel(const __grid_constant__ Problem p, const __grid_constant__ BackwardArguments a) {
  if (*p.irregular) return;
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<SharedPlan<T, DIM, VALUE>*>(shared_bytes);

  const BlockTask task = block_task(blockIdx.x, p.shape.key_heads, p.sequences);
  const int key_head = task.head;
  const int group = static_cast<int>(p.shape.query_heads / p.shape.key_heads);
  const Sequence s = sequence_at(p, task.sequence);
  const int first_key = static_cast<int>(task.tile) * kHalfTile;
  if (first_key >= s.key_length) return;
  const auto key_of = [&](int r) { return first_key + r; };
  // The smallest of the group's scales, so that one serves all heads that add to the same dv.
  float value_scale = weight_scale<T>(p, key_head * group, s.key_length);
  for (int n = 1; n < group; ++n) {
    value_scale = fminf(value_scale, weight_scale<T>(p, key_head * group + n, s.key_length));
  }

  KeyValueSums<T, DIM, VALUE> sums;
  load_half_tile<T, VALUE>(shared.v, half_values(p, s, key_head), key_of);
  for (int guarded = 0; guarded < 2; ++guarded) {
    clear_sums(sums.dv);
    for (int view = 0; view < p.views; ++view) {
      const HalfRows keys = half_keys(p, s, view, key_head);
      const float* const k_factors = key_factors(p, s, view, key_head);
      load_half_tile<T, DIM>(shared.k, keys, key_of);
      if (threadIdx.x < kHalfTile) {
        const int key = first_key + static_cast<int>(threadIdx.x);
        shared.key_factor[threadIdx.x] = key < s.key_length ? k_factors[key] : 0.f;
      }
      clear_sums(sums.dk);
      for (int n = 0; n < group; ++n) {
        add_head<T, DIM, VALUE>(p, a, s, view, key_head * group + n, first_key, shared, guarded != 0, value_scale,
                                sums);
      }
      wait_for_copies<0>();
      __syncthreads();
      const Tensor& target = a.outputs.dk[view];
      if (target.data && guarded == 0) {
        store_half_gradient<T, DIM>(p.normalize, shared.k, shared.key_factor, keys, first_key, 1.f / kWeightScale<DIM>,
                                    target, row_offset(target, s.batch, key_head, s.first_key), a.pairs_dk[view],
                                    sums.dk);
      }
      __syncthreads();
    }
    bool finite = true;
#pragma unroll
    for (int n = 0; n < VALUE / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) finite = finite && isfinite(sums.dv[n][e]);
    }
    if (!__syncthreads_or(!finite)) break;
  }
  store_dv<T, VALUE>(p, a, s, key_head, first_key, 1.f / value_scale, sums.dv);
}

template <class T, int DIM, int VALUE>
cudaError_t launch(const Problem& p, const BackwardArguments& a, cudaStream_t stream) {
  const std::int64_t tiles = (p.longest_key + kHalfTile - 1) / kHalfTile;
  const auto blocks = static_cast<unsigned>(tiles * p.shape.key_heads * p.sequences);
  constexpr int kSharedBytes = static_cast<int>(sizeof(SharedPlan<T, DIM, VALUE>));
  const auto kernel = backward_key_value_half_kernel<T, DIM, VALUE>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  kernel<<<blocks, kHalfThreads, kSharedBytes, stream>>>(p, a);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_backward_key_value_half(const Problem& p, const BackwardArguments& a, cudaStream_t stream) {
  const bool narrow = p.shape.value_dim <= 64;
  if (p.type == DataType::kBFloat16) {
    return narrow ? launch<__nv_bfloat16, 64, 64>(p, a, stream) : launch<__nv_bfloat16, 128, 128>(p, a, stream);
  }
  return narrow ? launch<__half, 64, 64>(p, a, stream) : launch<__half, 128, 128>(p, a, stream);
}

}  // namespace tda::cuda::portable
