// Forward of 16-bit inputs on tensor cores.
//
// A block of four warps owns 64 query rows of one head, 16 a warp, and walks the keys in tiles of 64; the next tile of
// K is copied (cp.async, two buffers) while this one is scored:
//   s = q k^T of each view (raw operands, fp32 sums, then the factors 1/|q| 1/|k|) becomes weights in registers; one
//   word of flags tells which slices of 16 keys live; V is copied for tiles with a live slice only; each warp
//   multiplies the slices in which its own rows have a weight, rounded to 16 bits.
// Shared memory for DIM 64: Q 8, K 16 (each a view), V 8 KiB. Exits at once when `p.irregular` is set: forward_fp32
// does the work then. A NaN in v may touch only rows with a weight on it: when a sum is not finite at the end, the
// block starts over with a product that skips zero weights.
#include "attention/cuda/portable/half_operands.cuh"

namespace tda::cuda::portable {
namespace {

constexpr int kSlices = kHalfTile / kSliceKeys;
constexpr int kTilesPerWord = kKeysPerWord / kHalfTile;

template <class T, int VIEWS, int DIM, int VALUE>
struct SharedPlan {
  T q[VIEWS][kHalfTile * DIM];
  T k[2][VIEWS][kHalfTile * DIM];
  T v[kHalfTile * VALUE];
  float key_factor[2][VIEWS][kHalfTile];
  Threshold threshold[kHalfTile];  // unreachable for rows that do not exist
  float query_factor[VIEWS][kHalfTile];
  int survivors[kHalfTile];
  unsigned tile_flags[2];
};

using Scores = float[kHalfTile / 8][4];

// The block's rows.
struct Block {
  Sequence sequence;
  int head, key_head, first_row, offset, key_tiles;
};

// Weights of one view for 16 rows and the 64 keys of a tile, before lambda; bit n of the result: slice n has one.
template <class T, int DIM>
__device__ __forceinline__ unsigned weights_of_tile(const Problem& p, const Block& block, int first_key, const T* q,
                                                    const T* k, const float* query_factor, const float* key_factor,
                                                    const Threshold* threshold, Scores& weights) {
  const int lane = static_cast<int>(threadIdx.x) % 32, t = lane % 4;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16;
#pragma unroll
  for (int n = 0; n < kHalfTile / 8; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) weights[n][e] = 0.f;
  }
  multiply_rows<T, DIM>(weights, q, warp_row, k, 0);
  // Excesses s - tau in place; hidden pairs, which only tiles on the diagonal have, count as dead.
  const bool diagonal = first_key + kHalfTile - 1 > block.offset + block.first_row;
  unsigned bits = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = warp_row + lane / 4 + 8 * half;
    const Threshold tau = threshold[row];
    const float factor = query_factor[row];
    const int visible = block.offset + block.first_row + row - first_key;  // last visible column
#pragma unroll
    for (int n = 0; n < kHalfTile / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = 8 * n + 2 * t + e;
        float& r = weights[n][2 * half + e];
        r = fmaf(r * key_factor[column], factor, -tau.high) - tau.low;
        if (diagonal && column > visible) r = 0.f;
        if (survives(r)) bits |= 1u << (n / 2);
      }
    }
  }
  bits = __reduce_or_sync(0xffffffffu, bits);
#pragma unroll
  for (int n = 0; n < kHalfTile / 8; ++n) {
    if (!(bits >> (n / 2) & 1u)) {
#pragma unroll
      for (int e = 0; e < 4; ++e) weights[n][e] = 0.f;
      continue;
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) weights[n][e] = survives(weights[n][e]) ? weight(weights[n][e], p.power) : 0.f;
  }
  return bits;
}

// Adds the number of non-zero pairs to the rows' counts. Packed: the lane's counts for row g (low half) and g + 8
// (high).
__device__ __forceinline__ void count_survivors(unsigned packed, int* survivors) {
  packed += __shfl_xor_sync(0xffffffffu, packed, 1);
  packed += __shfl_xor_sync(0xffffffffu, packed, 2);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (lane % 4 != 0) return;
  const int row = static_cast<int>(threadIdx.x) / 32 * 16 + lane / 4;
  survivors[row] += static_cast<int>(packed & 0xffffu);
  survivors[row + 8] += static_cast<int>(packed >> 16);
}

__device__ __forceinline__ unsigned pair_count(int e) { return e < 2 ? 1u : 1u << 16; }

// All views of one tile: the combined weights, and the live slices, view * 4 + slice.
template <class T, int VIEWS, int DIM, int VALUE>
__device__ __forceinline__ unsigned combined_weights(const Problem& p, const Block& block, int tile, int buffer,
                                                     float lambda, SharedPlan<T, VIEWS, DIM, VALUE>& shared,
                                                     Scores& weights, unsigned& counts) {
  const int first_key = tile * kHalfTile;
  counts = 0;
  unsigned bits = weights_of_tile<T, DIM>(p, block, first_key, shared.q[0], shared.k[buffer][0], shared.query_factor[0],
                                          shared.key_factor[buffer][0], shared.threshold, weights);
  if constexpr (VIEWS == 2) {
    Scores second;
    bits |= weights_of_tile<T, DIM>(p, block, first_key, shared.q[1], shared.k[buffer][1], shared.query_factor[1],
                                    shared.key_factor[buffer][1], shared.threshold, second)
            << kSlices;
    if (bits == 0) return 0;
#pragma unroll
    for (int n = 0; n < kHalfTile / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (weights[n][e] != 0.f || second[n][e] != 0.f) counts += pair_count(e);
        weights[n][e] -= lambda * second[n][e];
      }
    }
  } else if (bits != 0) {
#pragma unroll
    for (int n = 0; n < kHalfTile / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) counts += weights[n][e] != 0.f ? pair_count(e) : 0u;
    }
  }
  return bits;
}

// The products of the live slices. Guarded, elements of the values that are not finite meet only weights that are not
// 0.
template <class T, int VALUE>
__device__ __forceinline__ void add_values(const T* values, unsigned slices, float scale, bool guarded,
                                           const Scores& weights, float (&sums)[VALUE / 8][4]) {
#pragma unroll
  for (int slice = 0; slice < kSlices; ++slice) {
    if (!(slices >> slice & 1u)) continue;
    const float(&low)[4] = weights[2 * slice];
    const float(&high)[4] = weights[2 * slice + 1];
    const std::uint32_t w[4] = {
        rounded_pair<T>(low[0] * scale, low[1] * scale), rounded_pair<T>(low[2] * scale, low[3] * scale),
        rounded_pair<T>(high[0] * scale, high[1] * scale), rounded_pair<T>(high[2] * scale, high[3] * scale)};
    if (guarded) {
      multiply_columns<T, VALUE, true>(sums, w, values, slice * kSliceKeys);
    } else {
      multiply_columns<T, VALUE>(sums, w, values, slice * kSliceKeys);
    }
    if (guarded) add_spoiled_products<T, VALUE>(sums, low, high, values, slice * kSliceKeys);
  }
}

// Writes the words of the survivor index; one thread of the block keeps it.
struct IndexWriter {
  std::uint32_t* words[2] = {};
  std::uint32_t pending[2] = {};

  __device__ void add(int tile, unsigned flags, bool last) {
    const int position = tile % kTilesPerWord;
#pragma unroll
    for (int view = 0; view < 2; ++view) {
      pending[view] |= (flags >> (view * kSlices) & 15u) << (position * kSlices);
      if (position != kTilesPerWord - 1 && !last) continue;
      if (words[view]) words[view][tile / kTilesPerWord] = pending[view];
      pending[view] = 0;
    }
  }
};

// Begins to copy a tile of keys. A key that is not finite has a NaN for its factor, so its scores are NaN.
template <class T, int VIEWS, int DIM, int VALUE>
__device__ __forceinline__ void fetch_keys(const Problem& p, const Block& block, int tile, int buffer,
                                           SharedPlan<T, VIEWS, DIM, VALUE>& shared) {
  const int first_key = tile * kHalfTile;
#pragma unroll
  for (int view = 0; view < VIEWS; ++view) {
    load_half_tile<T, DIM>(shared.k[buffer][view], half_keys(p, block.sequence, view, block.key_head), first_key);
    if (threadIdx.x < kHalfTile) {
      const int key = first_key + static_cast<int>(threadIdx.x);
      const float* const factors = key_factors(p, block.sequence, view, block.key_head);
      shared.key_factor[buffer][view][threadIdx.x] =
          key < block.sequence.key_length ? product_factor(factors[key]) : 0.f;
    }
  }
}

template <class T, int VIEWS, int DIM, int VALUE>
__device__ void start_rows(const Problem& p, const Block& block, SharedPlan<T, VIEWS, DIM, VALUE>& shared) {
  const Sequence& s = block.sequence;
  const int row = block.first_row + static_cast<int>(threadIdx.x);
  const bool owns = threadIdx.x < kHalfTile, exists = row < s.query_length;
#pragma unroll
  for (int view = 0; view < VIEWS; ++view) {
    load_half_tile<T, DIM>(shared.q[view], half_queries(p, s, view, block.head), block.first_row);
    if (owns) {
      shared.query_factor[view][threadIdx.x] =
          exists ? product_factor(query_factors(p, s, view, block.head)[row]) : 0.f;
    }
  }
  if (!owns) return;
  shared.threshold[threadIdx.x] =
      exists ? threshold_at(load_beta(p, block.head), threshold_scale(p, block.offset + row)) : unreachable_threshold();
}

template <class T, int VIEWS, int VALUE>
__device__ __forceinline__ void store_output(const Problem& p, const ForwardOutputs& outputs, const Block& block,
                                             bool pairs, float unscale, float (&sums)[VALUE / 8][4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp_row = static_cast<int>(threadIdx.x) / 32 * 16;
  const std::int64_t start = row_offset(outputs.output, block.sequence.batch, block.head, block.sequence.first_query);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = block.first_row + warp_row + lane / 4 + 8 * half;
    if (row >= block.sequence.query_length) continue;
    T* const target = static_cast<T*>(outputs.output.data) + start + row * outputs.output.row_stride;
#pragma unroll
    for (int n = 0; n < VALUE / 8; ++n) {
      sums[n][2 * half] *= unscale;
      sums[n][2 * half + 1] *= unscale;
    }
    store_sums<T, VALUE>(target, sums, half, static_cast<int>(p.shape.value_dim), pairs);
  }
}

// Blocks a multiprocessor should hold: what the shared memory allows and the registers can serve.
template <int VIEWS, int DIM>
constexpr int kBlocksWanted = DIM > 64     ? 2
                              : VIEWS == 2 ? 3
                                           : 4;

template <class T, int VIEWS, int DIM, int VALUE>
__global__ void __launch_bounds__(kHalfThreads, kBlocksWanted<VIEWS, DIM>)
    forward_half_kernel(const __grid_constant__ Problem p, const __grid_constant__ ForwardOutputs outputs,
                        std::int64_t tiles, bool pairs) {
  if (*p.irregular) return;
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<SharedPlan<T, VIEWS, DIM, VALUE>*>(shared_bytes);

  const BlockTask task = block_task(blockIdx.x, p.shape.query_heads, p.sequences);
  Block block;
  block.sequence = sequence_at(p, task.sequence);
  block.head = task.head;
  block.key_head = static_cast<int>(task.head / (p.shape.query_heads / p.shape.key_heads));
  const int row_tile = static_cast<int>(tiles - 1 - task.tile);
  block.first_row = row_tile * kHalfTile;
  const Sequence& s = block.sequence;
  if (block.first_row >= s.query_length) return;
  block.offset = s.key_length - s.query_length;
  const int rows_end = min(block.first_row + kHalfTile, s.query_length);
  block.key_tiles = (block.offset + rows_end + kHalfTile - 1) / kHalfTile;
  const float lambda = VIEWS == 2 ? clamped_lambda(p, block.head) : 0.f;
  const float scale = weight_scale<T>(p, block.head, s.key_length);
  start_rows(p, block, shared);

  float sums[VALUE / 8][4];
  for (int guarded = 0; guarded < 2; ++guarded) {
#pragma unroll
    for (int n = 0; n < VALUE / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[n][e] = 0.f;
    }
    if (threadIdx.x < kHalfTile) shared.survivors[threadIdx.x] = 0;
    if (threadIdx.x < 2) shared.tile_flags[threadIdx.x] = 0;
    IndexWriter writer;
    if (outputs.survivor_index) {
#pragma unroll
      for (int view = 0; view < VIEWS; ++view) {
        writer.words[view] = static_cast<std::uint32_t*>(outputs.survivor_index) +
                             p.index.word_offset(view, block.head, s.first_row_tile + row_tile);
      }
    }
    fetch_keys(p, block, 0, 0, shared);
    commit_copies();
    for (int tile = 0; tile < block.key_tiles; ++tile) {
      const int buffer = tile % 2;
      wait_for_copies<0>();
      __syncthreads();
      if (tile + 1 < block.key_tiles) fetch_keys(p, block, tile + 1, buffer ^ 1, shared);
      commit_copies();
      Scores weights;
      unsigned counts;
      const unsigned bits = combined_weights(p, block, tile, buffer, lambda, shared, weights, counts);
      if (bits != 0) {
        count_survivors(counts, shared.survivors);
        if (threadIdx.x % 32 == 0) atomicOr(&shared.tile_flags[buffer], bits);
      }
      __syncthreads();
      const unsigned flags = shared.tile_flags[buffer];
      if (threadIdx.x == 0) {
        shared.tile_flags[buffer ^ 1] = 0;
        writer.add(tile, flags, tile + 1 == block.key_tiles);
      }
      if (flags == 0) continue;
      load_half_tile<T, VALUE>(shared.v, half_values(p, s, block.key_head), tile * kHalfTile);
      commit_copies();
      wait_for_copies<0>();
      __syncthreads();
      add_values<T, VALUE>(shared.v, bits | bits >> kSlices, scale, guarded != 0, weights, sums);
    }
    bool finite = true;
#pragma unroll
    for (int n = 0; n < VALUE / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) finite = finite && isfinite(sums[n][e]);
    }
    if (!__syncthreads_or(!finite)) break;
  }
  store_output<T, VIEWS, VALUE>(p, outputs, block, pairs, 1.f / scale, sums);
  if (!outputs.survivors) return;
  const int row = block.first_row + static_cast<int>(threadIdx.x);
  if (threadIdx.x < kHalfTile && row < s.query_length) {
    outputs.survivors[(s.batch * p.shape.query_heads + block.head) * p.shape.query_length + s.first_query + row] =
        shared.survivors[threadIdx.x];
  }
}

template <class T, int VIEWS, int DIM, int VALUE>
cudaError_t launch(const Problem& p, const ForwardOutputs& outputs, bool pairs, cudaStream_t stream) {
  const std::int64_t tiles = (p.longest_query + kHalfTile - 1) / kHalfTile;
  const auto blocks = static_cast<unsigned>(tiles * p.shape.query_heads * p.sequences);
  constexpr int kSharedBytes = static_cast<int>(sizeof(SharedPlan<T, VIEWS, DIM, VALUE>));
  const auto kernel = forward_half_kernel<T, VIEWS, DIM, VALUE>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  kernel<<<blocks, kHalfThreads, kSharedBytes, stream>>>(p, outputs, tiles, pairs);
  return cudaGetLastError();
}

template <class T, int VIEWS>
cudaError_t launch_views(const Problem& p, const ForwardOutputs& outputs, bool pairs, cudaStream_t stream) {
  return p.shape.value_dim <= 64 ? launch<T, VIEWS, 64, 64>(p, outputs, pairs, stream)
                                 : launch<T, VIEWS, 128, 128>(p, outputs, pairs, stream);
}

}  // namespace

cudaError_t launch_forward_half(const Problem& p, const ForwardOutputs& outputs, bool pairs, cudaStream_t stream) {
  if (p.type == DataType::kBFloat16) {
    return p.views == 2 ? launch_views<__nv_bfloat16, 2>(p, outputs, pairs, stream)
                        : launch_views<__nv_bfloat16, 1>(p, outputs, pairs, stream);
  }
  return p.views == 2 ? launch_views<__half, 2>(p, outputs, pairs, stream)
                      : launch_views<__half, 1>(p, outputs, pairs, stream);
}

}  // namespace tda::cuda::portable
