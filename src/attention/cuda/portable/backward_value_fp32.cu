// dv in fp32 arithmetic.
//
// A block of 256 threads owns 64 keys of one key head and COLUMNS value columns (wider values take several blocks). For
// each view and query head of the group it walks the row tiles that have a survivor among its keys and for each tile of
// 64 queries: s = k q^T  ->  w a(s) in registers  ->  dv += w a dO through shared memory.
// A NaN in dO may touch only keys that its row weighs, so a sum that is not finite makes the block start over with a
// product that skips zero weights, as in the forward.
#include "attention/cuda/portable/backward_tile.cuh"

namespace tda::cuda::portable {
namespace {

// The task `block` of the kernel.
template <int COLUMNS>
__device__ __forceinline__ void run_task(const Problem& p, const BackwardArguments& a, std::int64_t block) {
  __shared__ __align__(16) float shared[kScoreTileFloats<kTile, kTile>];
  __shared__ __align__(16) float weight_tile[kTile * kTile];
  __shared__ Threshold threshold[kTile];

  const BlockTask task = block_task(block, p.shape.key_heads, p.sequences);
  const int key_head = task.head;
  const int group = static_cast<int>(p.shape.query_heads / p.shape.key_heads);
  const Sequence s = sequence_at(p, task.sequence);
  const int first_key = static_cast<int>(task.tile) * kTile;
  if (first_key >= s.key_length) return;
  const int first_column = static_cast<int>(blockIdx.y) * COLUMNS;
  const int offset = s.key_length - s.query_length;
  const int row_tiles = (s.query_length + kTile - 1) / kTile;

  float dv[4][COLUMNS / 16];
  for (int guarded = 0; guarded < 2; ++guarded) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < COLUMNS / 16; ++j) dv[i][j] = 0.f;
    }
    for (int pass = 0; pass < group * p.views; ++pass) {
      const int view = pass / group, head = key_head * group + pass % group;
      const RowSource keys = unit_keys(p, s, view, key_head), queries = unit_queries(p, s, view, head);
      const RowSource d_output = output_gradients(p, a.d_output, s, head);
      const float sign = view_weight(p, view, head);
      RowTileWalk walk(a.index + p.index.word_offset(view, head, s.first_row_tile), p.index.words_per_tile,
                       first_row_tile_of_key(s, first_key), row_tiles, first_key);
      for (int row_tile = walk.next(); row_tile >= 0; row_tile = walk.next()) {
        const int first_row = row_tile * kTile;
        load_thresholds(p, s, head, first_row, threshold);
        TileSums weights;
        clear(weights);
        score_tile<kTile, kTile>(
            weights, keys.dim, shared, [&](int row, int d) { return keys.load(first_key + row, d); },
            [&](int column, int d) { return queries.load(first_row + column, d); });
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int key = first_key + thread_row() * 4 + i;
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int column = thread_column() * 4 + j;
            const float r = excess(weights[i][j], threshold[column]);
            const bool live = key <= offset + first_row + column && survives(r);
            weights[i][j] = live ? sign * weight(r, p.power) : 0.f;
          }
        }
        store_weights(weight_tile, weights);
        accumulate_rows<COLUMNS>(dv, weight_tile, shared, guarded != 0, [&](int inner, int column) {
          return d_output.load(first_row + inner, first_column + column);
        });
      }
    }
    bool finite = true;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < COLUMNS / 16; ++j) finite = finite && isfinite(dv[i][j]);
    }
    if (!__syncthreads_or(!finite)) break;
  }
  const std::int64_t start = row_offset(a.outputs.dv, s.batch, key_head, s.first_key);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int key = first_key + thread_row() * 4 + i;
    if (key >= s.key_length) continue;
#pragma unroll
    for (int j = 0; j < COLUMNS / 16; ++j) {
      const int column = first_column + owned_index(thread_column(), j);
      if (column >= p.shape.value_dim) continue;
      store_element(p.type, a.outputs.dv.data, start + key * a.outputs.dv.row_stride + column, dv[i][j]);
    }
  }
}

template <int COLUMNS>
__global__ void __launch_bounds__(kBlockThreads, COLUMNS == 256 ? 1 : 2)
    backward_value_fp32_kernel(const __grid_constant__ Problem p, const __grid_constant__ BackwardArguments a,
                               const __grid_constant__ DenseTasks dense, std::int64_t tasks) {
  run_dense_tasks(dense, tasks, [&](std::int64_t task) { run_task<COLUMNS>(p, a, task); });
}

template <int COLUMNS>
cudaError_t launch(const Problem& p, const BackwardArguments& a, const DenseTasks& dense, cudaStream_t stream) {
  const std::int64_t tiles = (p.longest_key + kTile - 1) / kTile;
  const std::int64_t tasks = tiles * p.shape.key_heads * p.sequences;
  const dim3 grid(blocks_for(p, dense, tasks), static_cast<unsigned>((p.shape.value_dim + COLUMNS - 1) / COLUMNS));
  backward_value_fp32_kernel<COLUMNS><<<grid, kBlockThreads, 0, stream>>>(p, a, dense, tasks);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_backward_value_fp32(const Problem& p, const BackwardArguments& a, const DenseTasks& dense,
                                       cudaStream_t stream) {
  if (p.shape.value_dim <= 64) return launch<64>(p, a, dense, stream);
  return launch<128>(p, a, dense, stream);
}

}  // namespace tda::cuda::portable
