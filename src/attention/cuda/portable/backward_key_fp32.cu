// dk in fp32 arithmetic.
//
// A block of 256 threads owns 64 keys of one view and key head. For each query head of the group it walks the row tiles
// that have a survivor among its keys (the survivor index read down a column) and for each tile of 64 queries:
//   s = k q^T and dP = v dO^T (score_tile)  ->  g = w dP a'(s) in registers  ->  dk += g q through shared memory.
// At the end the L2 norm is undone. The order of the sums is fixed, so repeated runs agree bit for bit.
// COLUMNS is the head dimension rounded up to 64, 128 or 256.
#include "attention/cuda/portable/backward_tile.cuh"

namespace tda::cuda::portable {
namespace {

// The task `block` of the kernel.
template <int COLUMNS>
__device__ __forceinline__ void run_task(const Problem& p, const BackwardArguments& a, std::int64_t block) {
  __shared__ __align__(16) float shared[kScoreTileFloats<kTile, kTile>];
  __shared__ __align__(16) float weight_tile[kTile * kTile];
  __shared__ Threshold threshold[kTile];

  const BlockTask task = block_task(block, p.shape.key_heads * p.views, p.sequences);
  const int view = task.head % p.views, key_head = task.head / p.views;
  const int group = static_cast<int>(p.shape.query_heads / p.shape.key_heads);
  const Sequence s = sequence_at(p, task.sequence);
  const int first_key = static_cast<int>(task.tile) * kTile;
  if (first_key >= s.key_length || !a.outputs.dk[view].data) return;
  const int offset = s.key_length - s.query_length;
  const int row_tiles = (s.query_length + kTile - 1) / kTile;
  const RowSource keys = unit_keys(p, s, view, key_head), v = values(p, s, key_head);

  float dk[4][COLUMNS / 16] = {};
  for (int head = key_head * group; head < (key_head + 1) * group; ++head) {
    const RowSource queries = unit_queries(p, s, view, head), d_output = output_gradients(p, a.d_output, s, head);
    const float sign = view_weight(p, view, head);
    RowTileWalk walk(a.index + p.index.word_offset(view, head, s.first_row_tile), p.index.words_per_tile,
                     first_row_tile_of_key(s, first_key), row_tiles, first_key);
    for (int row_tile = walk.next(); row_tile >= 0; row_tile = walk.next()) {
      const int first_row = row_tile * kTile;
      load_thresholds(p, s, head, first_row, threshold);
      TileSums scores, d_weights;
      clear(scores);
      clear(d_weights);
      score_tile<kTile, kTile>(
          scores, keys.dim, shared, [&](int row, int d) { return keys.load(first_key + row, d); },
          [&](int column, int d) { return queries.load(first_row + column, d); });
      score_tile<kTile, kTile>(
          d_weights, v.dim, shared, [&](int row, int d) { return v.load(first_key + row, d); },
          [&](int column, int d) { return d_output.load(first_row + column, d); });
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = first_key + thread_row() * 4 + i;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int column = thread_column() * 4 + j;
          const float r = excess(scores[i][j], threshold[column]);
          const bool live = key <= offset + first_row + column && survives(r);
          scores[i][j] = live ? sign * d_weights[i][j] * weight_derivative(r, p.power) : 0.f;
        }
      }
      store_weights(weight_tile, scores);
      accumulate_rows<COLUMNS>(dk, weight_tile, shared, false, [&](int inner, int column) {
        return queries.load<Broken::kZero>(first_row + inner, column);
      });
    }
  }
  const Tensor& target = a.outputs.dk[view];
  const std::int64_t start = row_offset(target, s.batch, key_head, s.first_key);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    store_norm_backward<COLUMNS>(p, keys, target, start, first_key + thread_row() * 4 + i, dk[i]);
  }
}

template <int COLUMNS>
__global__ void __launch_bounds__(kBlockThreads, COLUMNS == 256 ? 1 : 2)
    backward_key_fp32_kernel(const __grid_constant__ Problem p, const __grid_constant__ BackwardArguments a,
                             const __grid_constant__ DenseTasks dense, std::int64_t tasks) {
  run_dense_tasks(dense, tasks, [&](std::int64_t task) { run_task<COLUMNS>(p, a, task); });
}

template <int COLUMNS>
cudaError_t launch(const Problem& p, const BackwardArguments& a, const DenseTasks& dense, cudaStream_t stream) {
  const std::int64_t tiles = (p.longest_key + kTile - 1) / kTile;
  const std::int64_t tasks = tiles * p.shape.key_heads * p.views * p.sequences;
  backward_key_fp32_kernel<COLUMNS><<<blocks_for(p, dense, tasks), kBlockThreads, 0, stream>>>(p, a, dense, tasks);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_backward_key_fp32(const Problem& p, const BackwardArguments& a, const DenseTasks& dense,
                                     cudaStream_t stream) {
  if (p.shape.head_dim <= 64) return launch<64>(p, a, dense, stream);
  if (p.shape.head_dim <= 128) return launch<128>(p, a, dense, stream);
  return launch<256>(p, a, dense, stream);
}

}  // namespace tda::cuda::portable
