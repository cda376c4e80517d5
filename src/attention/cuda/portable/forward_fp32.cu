// Forward in fp32 arithmetic, any head dimension and data type.
//
// A block of 256 threads owns 128 query rows of one head and COLUMNS value columns (wider values take several blocks,
// each of which scores again). It walks the keys in tiles of 64:
//   1. scores of each view (score_tile, depth in chunks of 32) become weights in registers: 8 x 4 a thread;
//   2. one word of flags tells which of the 2 x 4 slices (64 rows x 16 keys) live; dead ones end here;
//   3. per live group of 16 keys: weights and values go through shared memory into the output sums.
// Shared memory: (128 + 64) x 32 floats for the scores, reused by 16 x (128 + COLUMNS) for the product.
// Where a screen ran first (forward_fp32_screened.cu), only the row blocks that it left are computed here; that kernel
// repeats these sums operation by operation, so both must change together.
// A NaN in v may touch only rows with a weight; zero times NaN would spread it. So when a sum is not finite at the end,
// the block starts over with a product that skips zero weights: ordinary inputs pay one vote.
#include "attention/cuda/portable/device_problem.cuh"
#include "attention/cuda/portable/kernels.h"
#include "attention/cuda/portable/tile_product.cuh"

namespace tda::cuda::portable {
namespace {

constexpr int kRows = kDenseRows, kKeys = 64;
constexpr int kGroups = kKeys / kSliceKeys;
constexpr int kTilesPerWord = kKeysPerWord / kKeys;

// The block's rows, as every step sees them.
struct Rows {
  Sequence sequence;
  int head, key_head;
  int first;   // first query row of the block in the sequence
  int offset;  // absolute position of query row 0
};

// What a block keeps in shared memory besides the tiles.
struct RowState {
  Threshold threshold[kRows];  // unreachable for rows that do not exist
  int survivors[kRows];
  unsigned tile_flags[2];
};

__device__ Rows rows_of_block(const Problem& p, const BlockTask& task, std::int64_t tiles) {
  Rows rows;
  rows.sequence = sequence_at(p, task.sequence);
  rows.head = task.head;
  rows.key_head = static_cast<int>(task.head / (p.shape.query_heads / p.shape.key_heads));
  rows.first = static_cast<int>((tiles - 1 - task.tile) * kRows);
  rows.offset = rows.sequence.key_length - rows.sequence.query_length;
  return rows;
}

__device__ void start_rows(const Problem& p, const Rows& rows, RowState& state) {
  for (int r = static_cast<int>(threadIdx.x); r < kRows; r += kBlockThreads) {
    const int row = rows.first + r;
    state.threshold[r] = row < rows.sequence.query_length
                             ? threshold_at(load_beta(p, rows.head), threshold_scale(p, rows.offset + row))
                             : unreachable_threshold();
  }
}

// Weights of one view for the keys first_key .. + 63, before lambda.
__device__ __forceinline__ void weights_of_view(const Problem& p, const Rows& rows, const Threshold* threshold,
                                                int view, int first_key, float* shared, float (&weights)[8][4]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) weights[i][j] = 0.f;
  }
  const Sequence& s = rows.sequence;
  const int dim = static_cast<int>(p.shape.head_dim);
  const ConstTensor& q = p.inputs.q[view];
  const ConstTensor& k = p.inputs.k[view];
  const std::int64_t q_start = row_offset(q, s.batch, rows.head, s.first_query);
  const std::int64_t k_start = row_offset(k, s.batch, rows.key_head, s.first_key);
  const std::int64_t q_row = rows.head * p.shape.batch * p.shape.query_length + s.flat_query;
  const std::int64_t k_row = rows.key_head * p.shape.batch * p.shape.key_length + s.flat_key;
  const float *q_high = p.query_scale[view] + q_row, *q_low = p.query_scale_low[view] + q_row;
  const float *k_high = p.key_scale[view] + k_row, *k_low = p.key_scale_low[view] + k_row;
  score_tile<kRows, kKeys>(
      weights, dim, shared,
      [&](int row, int d) {
        const int query = rows.first + row;
        if (query >= s.query_length || d >= dim) return make_float4(0.f, 0.f, 0.f, 0.f);
        return scaled(load_four(p.type, q.data, q_start + query * q.row_stride + d, dim - d, p.vector_q[view]),
                      q_high[query], q_low[query]);
      },
      [&](int row, int d) {
        const int key = first_key + row;
        if (key >= s.key_length || d >= dim) return make_float4(0.f, 0.f, 0.f, 0.f);
        return scaled(load_four(p.type, k.data, k_start + key * k.row_stride + d, dim - d, p.vector_k[view]),
                      k_high[key], k_low[key]);
      });
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int row = owned_index(thread_row(), i);
    const Threshold tau = threshold[row];
    const int visible_columns = rows.offset + rows.first + row - first_key - thread_column() * 4;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float r = excess(weights[i][j], tau);
      weights[i][j] = j <= visible_columns && survives(r) ? weight(r, p.power) : 0.f;
    }
  }
}

// Bit h * 4 + g of the result: the thread's weights in row half h and its key group g hold a non-zero.
__device__ __forceinline__ unsigned live_bits(const float (&weights)[8][4]) {
  unsigned bits = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (weights[i][j] != 0.f) bits |= 1u << (i / 4 * kGroups);
    }
  }
  return bits << (thread_column() / 4);
}

// Adds the pairs with a weight to the rows' counts. Each thread packs its counts, at most 4 a row, into four bits a
// row.
__device__ __forceinline__ void count_survivors(unsigned packed, int* survivors) {
  unsigned even = packed & 0x0f0f0f0fu, odd = packed >> 4 & 0x0f0f0f0fu;
  for (int step = 8; step > 0; step /= 2) {
    even += __shfl_xor_sync(0xffffffffu, even, step);
    odd += __shfl_xor_sync(0xffffffffu, odd, step);
  }
  if (thread_column() != 0) return;
#pragma unroll
  for (int i = 0; i < 8; ++i) survivors[owned_index(thread_row(), i)] += ((i % 2 ? odd : even) >> (i / 2 * 8)) & 0xffu;
}

// The first view's weights wait in shared memory while the second view is scored; every thread reads its own back.
__device__ __forceinline__ void stash(float* area, const float (&weights)[8][4]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) area[(i * 4 + j) * kBlockThreads + threadIdx.x] = weights[i][j];
  }
}

// Collects the live bits of key tiles into words of the survivor index; one thread of the block keeps it.
struct IndexWriter {
  std::uint32_t* words[2][2] = {};  // [view][row half], null where the half does not exist
  std::uint32_t pending[2][2] = {};

  __device__ IndexWriter(const Problem& p, const Rows& rows, std::uint32_t* index) {
    if (!index) return;
#pragma unroll
    for (int view = 0; view < 2; ++view) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = rows.first + half * kSliceRows;
        if (view >= p.views || row >= rows.sequence.query_length) continue;
        words[view][half] =
            index + p.index.word_offset(view, rows.head, rows.sequence.first_row_tile + row / kSliceRows);
      }
    }
  }

  __device__ void add(int tile, unsigned flags, bool last) {
    const int position = tile % kTilesPerWord;
#pragma unroll
    for (int view = 0; view < 2; ++view) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::uint32_t group_bits = (flags >> (view * 8 + half * kGroups)) & 15u;
        pending[view][half] |= group_bits << (position * kGroups);
        if (position != kTilesPerWord - 1 && !last) continue;
        if (words[view][half]) words[view][half][tile / kTilesPerWord] = pending[view][half];
        pending[view][half] = 0;
      }
    }
  }
};

template <int COLUMNS>
__device__ __forceinline__ void add_values(const Problem& p, const Rows& rows, int first_key, int first_column,
                                           unsigned live_groups, const float (&weights)[8][4], float* shared,
                                           float (&sums)[8][COLUMNS / 16], bool guarded) {
  float* const weight_tile = shared;
  float* const value_tile = shared + kSliceKeys * kRows;
  const Sequence& s = rows.sequence;
  const ConstTensor& v = p.inputs.v;
  const std::int64_t v_start = row_offset(v, s.batch, rows.key_head, s.first_key);
  const int columns = static_cast<int>(p.shape.value_dim);
  for (int group = 0; group < kGroups; ++group) {
    if (!(live_groups >> group & 1u)) continue;
    if (thread_column() / 4 == group) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int k = thread_column() % 4 * 4 + j;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          *reinterpret_cast<float4*>(weight_tile + weight_slot<kRows>(k, 64 * h + thread_row() * 4)) =
              make_float4(weights[4 * h][j], weights[4 * h + 1][j], weights[4 * h + 2][j], weights[4 * h + 3][j]);
        }
      }
    }
    load_tile<COLUMNS>(value_tile, kSliceKeys, [&](int row, int column) {
      const int key = first_key + group * kSliceKeys + row;
      const int from = first_column + column;
      if (key >= s.key_length || from >= columns) return make_float4(0.f, 0.f, 0.f, 0.f);
      return load_four(p.type, v.data, v_start + key * v.row_stride + from, columns - from, p.vector_v);
    });
    __syncthreads();
    accumulate_tile<kRows, COLUMNS>(sums, weight_tile, 0, value_tile, guarded);
    __syncthreads();
  }
}

template <int COLUMNS>
__device__ void store_output(const Problem& p, const ForwardOutputs& outputs, const Rows& rows, int first_column,
                             const float (&sums)[8][COLUMNS / 16]) {
  const std::int64_t start =
      row_offset(outputs.output, rows.sequence.batch, rows.head, rows.sequence.first_query + rows.first);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int row = owned_index(thread_row(), i);
    if (rows.first + row >= rows.sequence.query_length) continue;
    const std::int64_t target = start + row * outputs.output.row_stride;
#pragma unroll
    for (int j = 0; j < COLUMNS / 16; ++j) {
      const int column = first_column + owned_index(thread_column(), j);
      if (column < p.shape.value_dim) store_element(p.type, outputs.output.data, target + column, sums[i][j]);
    }
  }
}

__device__ void store_survivors(const Problem& p, const ForwardOutputs& outputs, const Rows& rows,
                                const int* survivors) {
  std::int32_t* const counts = outputs.survivors +
                               (rows.sequence.batch * p.shape.query_heads + rows.head) * p.shape.query_length +
                               rows.sequence.first_query;
  for (int r = static_cast<int>(threadIdx.x); r < kRows; r += kBlockThreads) {
    if (rows.first + r < rows.sequence.query_length) counts[rows.first + r] = survivors[r];
  }
}

// Weights of all views for one key tile, combined, and the live flags: view * 8 + row half * 4 + key group.
template <int VIEWS>
__device__ __forceinline__ unsigned tile_weights(const Problem& p, const Rows& rows, const Threshold* threshold,
                                                 int first_key, float lambda, float* shared, float* stash_area,
                                                 float (&weights)[8][4], unsigned& counts) {
  counts = 0;
  weights_of_view(p, rows, threshold, 0, first_key, shared, weights);
  unsigned bits = live_bits(weights);
  if constexpr (VIEWS == 2) {
    const bool first_lives = bits != 0;
    if (first_lives) stash(stash_area, weights);
    weights_of_view(p, rows, threshold, 1, first_key, shared, weights);
    bits |= live_bits(weights) << 8;
    if (!bits) return 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float first = first_lives ? stash_area[(i * 4 + j) * kBlockThreads + threadIdx.x] : 0.f;
        if (first != 0.f || weights[i][j] != 0.f) counts += 1u << (4 * i);
        weights[i][j] = fmaf(-lambda, weights[i][j], first);
      }
    }
  } else if (bits) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) counts += weights[i][j] != 0.f ? 1u << (4 * i) : 0u;
    }
  }
  return bits;
}

// Floats of shared memory that the two products take turns with; the stash of the first view lies behind.
template <int COLUMNS>
constexpr int kTileFloats = kScoreTileFloats<kRows, kKeys> > kSliceKeys*(kRows + COLUMNS)
                                ? kScoreTileFloats<kRows, kKeys>
                                : kSliceKeys*(kRows + COLUMNS);

// The task `block` of the kernel.
template <int VIEWS, int COLUMNS>
__device__ __forceinline__ void run_task(const Problem& p, const ForwardOutputs& outputs, std::int64_t tiles,
                                         std::int64_t block) {
  extern __shared__ __align__(16) float shared[];
  float* const stash_area = shared + kTileFloats<COLUMNS>;
  __shared__ RowState state;

  const Rows rows = rows_of_block(p, block_task(block, p.shape.query_heads, p.sequences), tiles);
  if (rows.first >= rows.sequence.query_length) return;
  start_rows(p, rows, state);
  const int first_column = static_cast<int>(blockIdx.y) * COLUMNS;
  const float lambda = VIEWS == 2 ? clamped_lambda(p, rows.head) : 0.f;
  const int rows_end = min(rows.first + kRows, rows.sequence.query_length);
  const int key_tiles = (rows.offset + rows_end + kKeys - 1) / kKeys;

  float sums[8][COLUMNS / 16];
  for (int guarded = 0; guarded < 2; ++guarded) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int j = 0; j < COLUMNS / 16; ++j) sums[i][j] = 0.f;
    }
    for (int r = static_cast<int>(threadIdx.x); r < kRows; r += kBlockThreads) state.survivors[r] = 0;
    if (threadIdx.x < 2) state.tile_flags[threadIdx.x] = 0;
    __syncthreads();
    IndexWriter writer(p, rows, blockIdx.y == 0 ? static_cast<std::uint32_t*>(outputs.survivor_index) : nullptr);
    for (int tile = 0; tile < key_tiles; ++tile) {
      float weights[8][4];
      unsigned counts;
      unsigned bits =
          tile_weights<VIEWS>(p, rows, state.threshold, tile * kKeys, lambda, shared, stash_area, weights, counts);
      bits = __reduce_or_sync(0xffffffffu, bits);
      if (bits) count_survivors(counts, state.survivors);
      if (threadIdx.x % 32 == 0 && bits) atomicOr(&state.tile_flags[tile % 2], bits);
      __syncthreads();
      const unsigned flags = state.tile_flags[tile % 2];
      if (threadIdx.x == 0) {
        state.tile_flags[(tile + 1) % 2] = 0;
        writer.add(tile, flags, tile + 1 == key_tiles);
      }
      const unsigned live_groups = (flags | flags >> 4 | flags >> 8 | flags >> 12) & 15u;
      add_values<COLUMNS>(p, rows, tile * kKeys, first_column, live_groups, weights, shared, sums, guarded != 0);
    }
    bool finite = true;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
#pragma unroll
      for (int j = 0; j < COLUMNS / 16; ++j) finite = finite && isfinite(sums[i][j]);
    }
    if (!__syncthreads_or(!finite)) break;
  }
  store_output<COLUMNS>(p, outputs, rows, first_column, sums);
  if (outputs.survivors && blockIdx.y == 0) store_survivors(p, outputs, rows, state.survivors);
}

template <int VIEWS, int COLUMNS>
__global__ void __launch_bounds__(kBlockThreads, COLUMNS == 64 ? 2 : 1)
    forward_fp32_kernel(const __grid_constant__ Problem p, const __grid_constant__ ForwardOutputs outputs,
                        const __grid_constant__ DenseTasks dense, std::int64_t tiles, std::int64_t tasks) {
  if (p.irregular && !*p.irregular) return;
  run_dense_tasks(dense, tasks, [&](std::int64_t task) { run_task<VIEWS, COLUMNS>(p, outputs, tiles, task); });
}

template <int VIEWS, int COLUMNS>
cudaError_t launch(const Problem& p, const ForwardOutputs& outputs, const DenseTasks& dense, cudaStream_t stream) {
  const std::int64_t tiles = (p.longest_query + kRows - 1) / kRows;
  const std::int64_t tasks = tiles * p.shape.query_heads * p.sequences;
  const dim3 grid(blocks_for(p, dense, tasks), static_cast<unsigned>((p.shape.value_dim + COLUMNS - 1) / COLUMNS));
  constexpr int kSharedBytes =
      (kTileFloats<COLUMNS> + (VIEWS == 2 ? kRows * kKeys : 0)) * static_cast<int>(sizeof(float));
  const auto kernel = forward_fp32_kernel<VIEWS, COLUMNS>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  kernel<<<grid, kBlockThreads, kSharedBytes, stream>>>(p, outputs, dense, tiles, tasks);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_forward_fp32(const Problem& p, const ForwardOutputs& outputs, const DenseTasks& dense,
                                cudaStream_t stream) {
  const bool narrow = p.shape.value_dim <= 64;
  if (p.views == 2) {
    return narrow ? launch<2, 64>(p, outputs, dense, stream) : launch<2, 128>(p, outputs, dense, stream);
  }
  return narrow ? launch<1, 64>(p, outputs, dense, stream) : launch<1, 128>(p, outputs, dense, stream);
}

}  // namespace tda::cuda::portable
