// dq in fp32 arithmetic, and each row tile's share of dbeta and dlambda.
//
// A block of 256 threads owns 64 query rows of one view and head. It reads the row tile's run of the survivor index,
// gathers live slices of 16 keys four at a time into a tile of 64 keys that need not be neighbours, and for each tile:
//   s = q k^T and dP = dO v^T (score_tile)  ->  g = w dP a'(s) in registers  ->  dq += g k through shared memory.
// At the end the L2 norm is undone. Row sums go through fixed trees, so repeated runs agree bit for bit.
// COLUMNS is the head dimension rounded up to 64, 128 or 256.
#include "attention/cuda/portable/backward_tile.cuh"

namespace tda::cuda::portable {
namespace {

struct ParameterSums {
  double dbeta = 0.0;    // sum of c_i g_ij
  double dlambda = 0.0;  // sum of a2_ij dP_ij
};

// Turns scores and dP into g = dL/ds, and adds to the sums of the parameters' gradients.
__device__ __forceinline__ void score_gradients(const Problem& p, int first_position, const Threshold* threshold,
                                                const double* scale, float sign, const GatheredKeys& keys,
                                                TileSums& scores, const TileSums& d_weights, ParameterSums& sums) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = thread_row() * 4 + i;
    const Threshold tau = threshold[row];
    float row_sum = 0.f, weighted_sum = 0.f;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int key = keys.key(thread_column() * 4 + j);
      const float r = excess(scores[i][j], tau);
      float g = 0.f;
      if (key >= 0 && key <= first_position + row && survives(r)) {
        g = sign * d_weights[i][j] * weight_derivative(r, p.power);
        weighted_sum = fmaf(weight(r, p.power), d_weights[i][j], weighted_sum);
        row_sum += g;
      }
      scores[i][j] = g;
    }
    if (row_sum != 0.f) sums.dbeta = fma(scale[row], static_cast<double>(row_sum), sums.dbeta);
    if (weighted_sum != 0.f) sums.dlambda += static_cast<double>(weighted_sum);
  }
}

// The task `block` of the kernel.
template <int COLUMNS>
__device__ __forceinline__ void run_task(const Problem& p, const BackwardArguments& a, std::int64_t tiles,
                                         std::int64_t block) {
  __shared__ __align__(16) float shared[kScoreTileFloats<kTile, kTile>];
  static_assert(kSliceKeys * COLUMNS <= kScoreTileFloats<kTile, kTile>);
  __shared__ __align__(16) float weight_tile[kTile * kTile];
  __shared__ Threshold threshold[kTile];
  __shared__ double scale[kTile], scratch[kBlockThreads / 32];

  const BlockTask task = block_task(block, p.shape.query_heads * p.views, p.sequences);
  const int view = task.head % p.views, head = task.head / p.views;
  const int key_head = static_cast<int>(head / (p.shape.query_heads / p.shape.key_heads));
  const Sequence s = sequence_at(p, task.sequence);
  const int row_tile = static_cast<int>(tiles - 1 - task.tile);
  const int first_row = row_tile * kTile;
  if (first_row >= s.query_length) return;
  const int first_position = s.key_length - s.query_length + first_row;
  load_thresholds(p, s, head, first_row, threshold);
  if (threadIdx.x < kTile) scale[threadIdx.x] = threshold_scale(p, first_position + static_cast<int>(threadIdx.x));
  __syncthreads();

  const RowSource queries = unit_queries(p, s, view, head), keys = unit_keys(p, s, view, key_head);
  const RowSource v = values(p, s, key_head), d_output = output_gradients(p, a.d_output, s, head);
  const float sign = view_weight(p, view, head);
  float dq[4][COLUMNS / 16] = {};
  ParameterSums parameters;
  const int last_key = first_position + min(kTile, s.query_length - first_row) - 1;
  SliceWalk walk(a.index + p.index.word_offset(view, head, s.first_row_tile + row_tile), last_key / kKeysPerWord + 1);
  while (true) {
    const GatheredKeys gathered(walk);
    if (gathered.count == 0) break;
    TileSums scores, d_weights;
    clear(scores);
    clear(d_weights);
    score_tile<kTile, kTile>(
        scores, queries.dim, shared, [&](int row, int d) { return queries.load(first_row + row, d); },
        [&](int column, int d) { return keys.load(gathered.key(column), d); });
    score_tile<kTile, kTile>(
        d_weights, v.dim, shared, [&](int row, int d) { return d_output.load(first_row + row, d); },
        [&](int column, int d) { return v.load(gathered.key(column), d); });
    score_gradients(p, first_position, threshold, scale, sign, gathered, scores, d_weights, parameters);
    store_weights(weight_tile, scores);
    accumulate_rows<COLUMNS>(dq, weight_tile, shared, false, [&](int inner, int column) {
      return keys.load<Broken::kZero>(gathered.key(inner), column);
    });
  }

  if (a.outputs.dq[view].data) {
    const Tensor& target = a.outputs.dq[view];
    const std::int64_t start = row_offset(target, s.batch, head, s.first_query);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      store_norm_backward<COLUMNS>(p, queries, target, start, first_row + thread_row() * 4 + i, dq[i]);
    }
  }
  const std::int64_t flat_tile = s.first_row_tile + row_tile;
  const double dbeta = block_sum<kBlockThreads>(parameters.dbeta, scratch),
               dlambda = block_sum<kBlockThreads>(parameters.dlambda, scratch);
  if (threadIdx.x != 0) return;
  if (a.dbeta_parts)
    a.dbeta_parts[((view * p.shape.query_heads + head) * p.index.row_tiles + flat_tile) * a.shares_per_tile] = -dbeta;
  if (a.dlambda_parts && view == 1)
    a.dlambda_parts[(head * p.index.row_tiles + flat_tile) * a.shares_per_tile] = -dlambda;
}

template <int COLUMNS>
__global__ void __launch_bounds__(kBlockThreads, COLUMNS == 256 ? 1 : 2)
    backward_query_fp32_kernel(const __grid_constant__ Problem p, const __grid_constant__ BackwardArguments a,
                               const __grid_constant__ DenseTasks dense, std::int64_t tiles, std::int64_t tasks) {
  run_dense_tasks(dense, tasks, [&](std::int64_t task) { run_task<COLUMNS>(p, a, tiles, task); });
}

template <int COLUMNS>
cudaError_t launch(const Problem& p, const BackwardArguments& a, const DenseTasks& dense, cudaStream_t stream) {
  const std::int64_t tiles = (p.longest_query + kTile - 1) / kTile;
  const std::int64_t tasks = tiles * p.shape.query_heads * p.views * p.sequences;
  backward_query_fp32_kernel<COLUMNS>
      <<<blocks_for(p, dense, tasks), kBlockThreads, 0, stream>>>(p, a, dense, tiles, tasks);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_backward_query_fp32(const Problem& p, const BackwardArguments& a, const DenseTasks& dense,
                                       cudaStream_t stream) {
  if (p.shape.head_dim <= 64) return launch<64>(p, a, dense, stream);
  if (p.shape.head_dim <= 128) return launch<128>(p, a, dense, stream);
  return launch<256>(p, a, dense, stream);
}

}  // namespace tda::cuda::portable
