// The plan of the 16-bit backward (backward_plan.h).
//
// Two kinds of blocks of eight warps. Row blocks: a warp takes one row tile of one view and head, counts its live
// slices, and either provides the factors 1/|q| of its rows and lists a task, or writes zeros to dq, or, in a listed
// head, counts the pairs of its rows' keys. Column blocks: 512 keys (one word of the index) of one key head; warps read
// the words of 32 row tiles at a time and turn them by ballots into one word of each of the 32 slices. Then a warp
// takes a slice: factors and a task, or zeros to dk and dv. With dense kernels tasks have 128 rows or keys, and empty
// ones are listed, too, instead of zeros. Cost: the index once, where something survives the factors that the forward
// saved, or else Q and K, and zeros where nothing does: latency, or memory.
#include "attention/cuda/common/kernel_order.cuh"
#include "attention/cuda/portable/backward_plan.h"
#include "attention/cuda/portable/half_operands.cuh"
#include "attention/cuda/portable/pairs/lists.cuh"
#include "attention/cuda/portable/task_claims.cuh"

namespace tda::cuda::portable {
namespace {

constexpr int kPlanWarps = 8;
constexpr int kPlanThreads = kPlanWarps * 32;
constexpr int kLanesPerRow = 8;
constexpr int kRowsPerPass = 32 / kLanesPerRow;

template <class Sum>
__device__ __forceinline__ Sum sum_over_lanes(Sum x) {
#pragma unroll
  for (int step = kLanesPerRow / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

__device__ __forceinline__ float factor_of_square(float square, bool normalize) {
  return normalize ? 1.f / sqrtf(square) : 1.f;
}

// 1 / max(|x|, 1e-12) of a row that eight lanes share, or 1 without normalization; NaN when the row is not finite. For
// any row, one element at a time in double.
template <class T>
__device__ __noinline__ float factor_of_any_row(const T* row, int dim, bool normalize) {
  double square = 0.0;
#pragma unroll 1
  for (int d = static_cast<int>(threadIdx.x) % kLanesPerRow; d < dim; d += kLanesPerRow) {
    const auto x = static_cast<double>(static_cast<float>(row[d]));
    square = fma(x, x, square);
  }
  square = sum_over_lanes(square);
  if (!isfinite(square)) return CUDART_NAN_F;
  return normalize ? static_cast<float>(1.0 / fmax(sqrt(square), 1e-12)) : 1.f;
}

// Factors of rows first .. first + COUNT - 1 of a sequence from the rows, by one warp. Rows of up to 128 elements that
// can be read sixteen bytes at a time are all under way before the first is used.
template <class T, int COUNT>
__device__ void write_factors(const Problem& p, const HalfRows& rows, int first, float* factors) {
  constexpr int kPasses = COUNT / kRowsPerPass < 8 ? COUNT / kRowsPerPass : 8;
  const int lane = own_lane(), chunk = lane % kLanesPerRow;
  const T* const data = static_cast<const T*>(rows.data) + rows.start;
#pragma unroll 1
  for (int begin = first + lane / kLanesPerRow; begin < first + COUNT; begin += kPasses * kRowsPerPass) {
    float square[kPasses] = {};
    if (rows.vector) {
      uint4 raw[kPasses][2];
#pragma unroll
      for (int n = 0; n < kPasses; ++n) {
        const int row = begin + n * kRowsPerPass;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int column = (chunk + half * kLanesPerRow) * 8;
          raw[n][half] = row < rows.rows && column < rows.dim
                             ? *reinterpret_cast<const uint4*>(data + row * rows.row_stride + column)
                             : make_uint4(0, 0, 0, 0);
        }
      }
#pragma unroll
      for (int n = 0; n < kPasses; ++n) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const std::uint32_t words[4] = {raw[n][half].x, raw[n][half].y, raw[n][half].z, raw[n][half].w};
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float2 x = load_pair(reinterpret_cast<const T*>(&words[i]));
            square[n] = fmaf(x.x, x.x, fmaf(x.y, x.y, square[n]));
          }
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kPasses; ++n) {
      const int row = begin + n * kRowsPerPass;
      const bool exists = row < rows.rows;
      square[n] = sum_over_lanes(square[n]);
      float factor = factor_of_square(square[n], p.normalize);
      // Beyond fp32's comfort, zero, not finite, or not read yet.
      if (__any_sync(0xffffffffu, exists && !(square[n] > 1e-24f && square[n] < 1e30f))) {
        factor = factor_of_any_row(data + (exists ? row : 0) * rows.row_stride, rows.dim, p.normalize);
      }
      if (exists && chunk == 0) factors[row] = factor;
    }
  }
}

// Factors of the rows among 32 that `missing` names and the forward has none for, by one warp. Rare.
template <class T>
__device__ __noinline__ void write_missing_factors(const T* first_row, std::int64_t row_stride, int dim,
                                                   unsigned missing, float* factors) {
  const int lane = own_lane(), any = __ffs(static_cast<int>(missing)) - 1;
#pragma unroll 1
  for (int done = 0; done < 32; done += kRowsPerPass) {
    if ((missing >> done & ((1u << kRowsPerPass) - 1)) == 0) continue;
    const int place = done + lane / kLanesPerRow;
    const bool wanted = (missing >> place & 1u) != 0;
    const float factor = factor_of_any_row(first_row + (wanted ? place : any) * row_stride, dim, true);
    if (wanted && lane % kLanesPerRow == 0) factors[place] = factor;
  }
}

// Factors of rows first .. first + COUNT - 1 of a sequence from those that the forward saved, by one warp.
template <class T, int COUNT>
__device__ void copy_factors(const HalfRows& rows, int first, const float* saved, float* factors) {
  constexpr int kPasses = (COUNT + 31) / 32;
  const int lane = own_lane(), count = min(COUNT, rows.rows - first);
  float own[kPasses];
#pragma unroll
  for (int n = 0; n < kPasses; ++n) own[n] = 32 * n + lane < count ? saved[first + 32 * n + lane] : 0.f;
#pragma unroll
  for (int n = 0; n < kPasses; ++n) {
    if (own[n] > 0.f) factors[first + 32 * n + lane] = own[n];
    const unsigned missing = __ballot_sync(0xffffffffu, 32 * n + lane < count && !(own[n] > 0.f));
    if (missing == 0) continue;
    const T* const data = static_cast<const T*>(rows.data) + rows.start;
    write_missing_factors(data + (first + 32 * n) * rows.row_stride, rows.row_stride, rows.dim, missing,
                          factors + first + 32 * n);
  }
}

// Factors of queries and keys first .. first + COUNT - 1 of a sequence, by one warp. SAVED: the forward saved them.
template <class T, int COUNT, bool SAVED>
__device__ void provide_query_factors(const Problem& p, const BackwardPlan& plan, const Sequence& s, int view, int head,
                                      int first) {
  const HalfRows rows = half_queries(p, s, view, head);
  float* const factors = query_factors(p, s, view, head);
  if constexpr (SAVED) {
    const std::int64_t flat = (view * p.shape.query_heads + head) * p.shape.batch * p.shape.query_length + s.flat_query;
    copy_factors<T, COUNT>(rows, first, plan.saved.query + flat, factors);
  } else {
    write_factors<T, COUNT>(p, rows, first, factors);
  }
}
template <class T, int COUNT, bool SAVED>
__device__ void provide_key_factors(const Problem& p, const BackwardPlan& plan, const Sequence& s, int view,
                                    int key_head, int first) {
  const HalfRows rows = half_keys(p, s, view, key_head);
  float* const factors = key_factors(p, s, view, key_head);
  if constexpr (SAVED) {
    const std::int64_t flat = (view * p.shape.key_heads + key_head) * p.shape.batch * p.shape.key_length + s.flat_key;
    copy_factors<T, COUNT>(rows, first, plan.saved.key + flat, factors);
  } else {
    write_factors<T, COUNT>(p, rows, first, factors);
  }
}

// The buckets of dense tasks tell weights apart up to 256 tiles.
__device__ int dense_weight(int tiles) { return max(1, tiles / 2); }

// What two neighbouring row tiles hold: live slices of each, and tiles of 64 keys in which either has one.
struct RowPair {
  int live[2], tiles;
};

// By one warp; `first` is the even one of the two.
__device__ RowPair count_row_pair(const Problem& p, const BackwardArguments& a, const Sequence& s, int view, int head,
                                  int first) {
  const std::uint32_t* words[2];
  int count[2];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int first_row = (first + n) * kSliceRows, last_row = min(first_row + kSliceRows, s.query_length) - 1;
    words[n] = a.index + p.index.word_offset(view, head, s.first_row_tile + first + n);
    count[n] = first_row < s.query_length ? (s.key_length - s.query_length + last_row) / kKeysPerWord + 1 : 0;
  }
  RowPair pair{};
  for (int w = static_cast<int>(threadIdx.x) % 32; w < max(count[0], count[1]); w += 32) {
    const std::uint32_t low = w < count[0] ? words[0][w] : 0u, high = w < count[1] ? words[1][w] : 0u;
    pair.live[0] += __popc(low);
    pair.live[1] += __popc(high);
    std::uint32_t tiles = low | high;
    tiles |= tiles >> 1;
    tiles |= tiles >> 2;
    pair.tiles += __popc(tiles & 0x11111111u);
  }
  pair.live[0] = __reduce_add_sync(0xffffffffu, pair.live[0]);
  pair.live[1] = __reduce_add_sync(0xffffffffu, pair.live[1]);
  pair.tiles = __reduce_add_sync(0xffffffffu, pair.tiles);
  return pair;
}

// Factors of 64 rows or keys for which no score is computed, or only as zeros, by one warp.
__device__ void write_zero_factors(float* factors, int first, int end) {
  for (int row = first + own_lane(); row < min(first + kSliceRows, end); row += 32) factors[row] = 0.f;
}

template <class T, bool SAVED>
__device__ void plan_row_tile(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan,
                              const BlockTask& task) {
  const int view = task.head % p.views, head = task.head / p.views;
  const Sequence s = sequence_at(p, task.sequence);
  const int tile = static_cast<int>(task.tile), first_row = tile * kSliceRows;
  if (first_row >= s.query_length) return;
  const RowPair pair = count_row_pair(p, a, s, view, head, tile & ~1);
  const int live = pair.live[tile & 1];
  const int key_head = static_cast<int>(head / (p.shape.query_heads / p.shape.key_heads));
  const bool listed = is_listed(p, plan.pairs, key_head, task.sequence);
  const bool dense = !listed && plan.dense;
  if (listed) {
    if (static_cast<int>(threadIdx.x) % 32 == 0) {
      plan.pairs.live[(view * p.shape.query_heads + head) * p.index.row_tiles + s.first_row_tile + tile] = live != 0;
    }
    if (live != 0) {
      count_pairs(lists_of_head(p, plan.pairs, view, head, s.batch), first_row, s.query_length,
                  has_narrow_lists(p.shape.key_length),
                  plan.pairs.key_count + (key_head * p.shape.batch + s.batch) * p.shape.key_length);
      return;
    }
  }
  const bool leads = static_cast<int>(threadIdx.x) % 32 == 0;
  // Without a wish for dq, dbeta or dlambda the factors serve the columns alone.
  const bool wanted = a.outputs.dq[view].data || a.dbeta_parts || (view == 1 && a.dlambda_parts);
  const BackwardTask entry{static_cast<std::uint32_t>(task.sequence), static_cast<std::uint32_t>(head),
                           static_cast<std::uint32_t>(dense ? tile / 2 : tile), static_cast<std::uint32_t>(view)};
  if (dense) {
    if (leads && wanted && tile % 2 == 0) {
      list_task(pair.tiles == 0 ? plan.empty_row_blocks : plan.dense_row_tasks, dense_weight(pair.tiles), false, entry);
    }
    if (pair.tiles == 0) {
      if (plan.fused.counters != nullptr) {
        write_zero_factors(query_factors(p, s, view, head), first_row, s.query_length);
      }
      return;
    }
  } else if (live == 0) {
    const Tensor& dq = a.outputs.dq[view];
    write_zeros<T, kSliceRows>(dq, row_offset(dq, s.batch, head, s.first_query), first_row, s.query_length,
                               static_cast<int>(p.shape.head_dim), a.wide_dq[view]);
    return;
  }
  if (SAVED && live == 0) {  // beside a live one: not saved, and no score is computed with these
    write_zero_factors(query_factors(p, s, view, head), first_row, s.query_length);
  } else {
    provide_query_factors<T, kSliceRows, SAVED>(p, plan, s, view, head, first_row);
  }
  if (leads && wanted && !dense) list_task(plan.row_tasks, live, false, entry);
}

constexpr int kSlicesPerBlock = 8;  // of a dense column task
constexpr int kBlocksPerWord = kSlicesPerWord / kSlicesPerBlock;

// Turns one word column of the index, by the whole block, and counts the row tiles of each slice, and those of each
// eight slices together.
__device__ void turn_columns(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan, const Sequence& s,
                             std::int64_t first_slice, int key_head, int word, int (&count)[kSlicesPerWord],
                             int (&tiles)[kBlocksPerWord]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int group = static_cast<int>(p.shape.query_heads / p.shape.key_heads);
  const int offset = s.key_length - s.query_length, row_tiles = (s.query_length + kSliceRows - 1) / kSliceRows;
  const int tile_words = (row_tiles + 31) / 32;
  const int slice = word * kSlicesPerWord + lane;  // of this lane
  const bool exists = slice * kSliceKeys < s.key_length;
  int own = 0, together = 0;
  for (int unit = warp; unit < p.views * group * tile_words; unit += kPlanWarps) {
    const int tile_word = unit % tile_words, head = key_head * group + unit / tile_words % group;
    const int view = unit / (tile_words * group);
    const int tile = tile_word * 32 + lane;
    const int last_key = offset + min((tile + 1) * kSliceRows, s.query_length) - 1;
    std::uint32_t bits = 0;
    if (tile < row_tiles && word <= last_key / kKeysPerWord) {
      bits = a.index[p.index.word_offset(view, head, s.first_row_tile + tile) + word];
    }
    std::uint32_t turned = 0;
#pragma unroll
    for (int b = 0; b < kSlicesPerWord; ++b) {
      const std::uint32_t column = __ballot_sync(0xffffffffu, bits >> b & 1u);
      if (lane == b) turned = column;
    }
    std::uint32_t block = turned;
#pragma unroll
    for (int step = 1; step < kSlicesPerBlock; step *= 2) block |= __shfl_xor_sync(0xffffffffu, block, step);
    together += __popc(block);
    if (!exists) continue;
    plan.columns[plan.column_offset(view * p.shape.query_heads + head, first_slice + slice) + tile_word] = turned;
    own += __popc(turned);
  }
  if (own > 0) atomicAdd(&count[lane], own);
  if (together > 0 && lane % kSlicesPerBlock == 0) atomicAdd(&tiles[lane / kSlicesPerBlock], together);
}

// Lists the dense column tasks of one word column; each warp provides the factors of 64 keys.
template <class T, bool SAVED>
__device__ void list_dense_columns(const Problem& p, const BackwardPlan& plan, const Sequence& s, const BlockTask& task,
                                   bool wanted, const int (&tiles)[kBlocksPerWord]) {
  constexpr int kWarpKeys = kKeysPerWord / kPlanWarps, kBlockKeys = kSlicesPerBlock * kSliceKeys;
  const int key_in_word = static_cast<int>(threadIdx.x) / 32 * kWarpKeys;
  const int first_key = static_cast<int>(task.tile) * kKeysPerWord + key_in_word;
  if (first_key >= s.key_length) return;
  const int block_tiles = tiles[key_in_word / kBlockKeys];
  if (threadIdx.x % 32 == 0 && wanted && first_key % kBlockKeys == 0) {
    const BackwardTask entry{static_cast<std::uint32_t>(task.sequence), static_cast<std::uint32_t>(task.head),
                             static_cast<std::uint32_t>(first_key / kBlockKeys), 0};
    list_task(block_tiles == 0 ? plan.empty_column_blocks : plan.dense_column_tasks, dense_weight(block_tiles), false,
              entry);
  }
  if (block_tiles == 0) {
    if (plan.fused.counters == nullptr) return;
    for (int view = 0; view < p.views; ++view) {
      write_zero_factors(key_factors(p, s, view, task.head), first_key, s.key_length);
    }
    return;
  }
  for (int view = 0; view < p.views; ++view) {
    provide_key_factors<T, kWarpKeys, SAVED>(p, plan, s, view, task.head, first_key);
  }
}

// Adds a word column's tiles to its head's, by one thread; the last lists the head for the fused kernel if at least
// three quarters of its tiles are live.
__device__ void count_fused_tiles(const Problem& p, const FusedHeads& fused, const Sequence& s, int key_head,
                                  const int (&tiles)[kBlocksPerWord]) {
  std::uint32_t own = 0;
  for (int n = 0; n < kBlocksPerWord; ++n) own += static_cast<std::uint32_t>(tiles[n]);
  const auto head = static_cast<std::uint32_t>(s.batch * p.shape.key_heads + key_head);
  std::uint32_t* const counted = fused.counted + 2 * head;
  atomicAdd(counted, own);
  __threadfence();
  const std::uint32_t words = static_cast<std::uint32_t>((s.key_length + kKeysPerWord - 1) / kKeysPerWord);
  if (atomicAdd(counted + 1, 1u) + 1 != words) return;
  __threadfence();
  const std::uint64_t row_tiles = (s.query_length + kSliceRows - 1) / kSliceRows, half = row_tiles / 2;
  const std::uint64_t below_diagonal = half * (half + 1) + (row_tiles % 2 != 0 ? half + 1 : 0);
  const std::uint64_t all = below_diagonal * p.views * (p.shape.query_heads / p.shape.key_heads);
  if (atomicAdd(counted, 0u) < all - all / 4) return;
  fused.chosen[head] = 1;
  fused.heads[atomicAdd(&fused.counters->listed, 1u)] = head;
}

template <class T, bool SAVED>
__device__ void plan_columns(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan,
                             const BlockTask& task) {
  __shared__ int count[kSlicesPerWord], tiles[kBlocksPerWord];
  const Sequence s = sequence_at(p, task.sequence);
  const int word = static_cast<int>(task.tile), key_head = task.head;
  if (word * kKeysPerWord >= s.key_length || is_listed(p, plan.pairs, key_head, task.sequence)) return;
  const std::int64_t first_slice =
      BackwardPlan::first_slice(p.key_offsets != nullptr, task.sequence, s.first_key, p.shape.key_length);
  if (threadIdx.x < kSlicesPerWord) count[threadIdx.x] = 0;
  if (threadIdx.x < kBlocksPerWord) tiles[threadIdx.x] = 0;
  __syncthreads();
  turn_columns(p, a, plan, s, first_slice, key_head, word, count, tiles);
  __syncthreads();
  if (plan.fused.counters != nullptr && threadIdx.x == 0) count_fused_tiles(p, plan.fused, s, key_head, tiles);
  const bool wanted = a.outputs.dk[0].data || a.outputs.dk[1].data || a.outputs.dv.data;
  if (plan.dense) {
    list_dense_columns<T, SAVED>(p, plan, s, task, wanted, tiles);
    return;
  }
  for (int b = static_cast<int>(threadIdx.x) / 32; b < kSlicesPerWord; b += kPlanWarps) {
    const int slice = word * kSlicesPerWord + b, first_key = slice * kSliceKeys;
    if (first_key >= s.key_length) break;
    if (count[b] == 0) {
      for (int view = 0; view < p.views; ++view) {
        const Tensor& dk = a.outputs.dk[view];
        write_zeros<T, kSliceKeys>(dk, row_offset(dk, s.batch, key_head, s.first_key), first_key, s.key_length,
                                   static_cast<int>(p.shape.head_dim), a.wide_dk[view]);
      }
      const Tensor& dv = a.outputs.dv;
      write_zeros<T, kSliceKeys>(dv, row_offset(dv, s.batch, key_head, s.first_key), first_key, s.key_length,
                                 static_cast<int>(p.shape.value_dim), a.wide_dv);
      continue;
    }
    for (int view = 0; view < p.views; ++view) {
      provide_key_factors<T, kSliceKeys, SAVED>(p, plan, s, view, key_head, first_key);
    }
    if (threadIdx.x % 32 != 0 || !wanted) continue;
    const BackwardTask entry{static_cast<std::uint32_t>(task.sequence), static_cast<std::uint32_t>(key_head),
                             static_cast<std::uint32_t>(slice), 0};
    list_task(plan.column_tasks, count[b], count[b] < kWarpTaskSlices, entry);
  }
}

template <class T>
__global__ void __launch_bounds__(kPlanThreads, 4)
    backward_plan_kernel(const __grid_constant__ Problem p, const __grid_constant__ BackwardArguments a,
                         const __grid_constant__ BackwardPlan plan, std::int64_t row_tasks,
                         std::int64_t column_blocks) {
  allow_next_kernel();
  const bool factors_saved = plan.saved.state != nullptr && *plan.saved.state == kFactorsSaved;
  const std::int64_t block = blockIdx.x, blocks = gridDim.x;
  for (std::int64_t n = block * kPlanThreads + threadIdx.x; n < p.longest_key; n += blocks * kPlanThreads) {
    plan.position_scale[n] = static_cast<float>(threshold_scale(p, n));
  }
  if (block < column_blocks) {  // these take longer
    const BlockTask task = block_task(block, p.shape.key_heads, p.sequences);
    factors_saved ? plan_columns<T, true>(p, a, plan, task) : plan_columns<T, false>(p, a, plan, task);
    return;
  }
  const std::int64_t own = (block - column_blocks) * kPlanWarps + threadIdx.x / 32;
  if (own < row_tasks) {
    const BlockTask task = block_task(own, p.shape.query_heads * p.views, p.sequences);
    factors_saved ? plan_row_tile<T, true>(p, a, plan, task) : plan_row_tile<T, false>(p, a, plan, task);
  }
}

}  // namespace

cudaError_t launch_backward_plan(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan,
                                 cudaStream_t stream) {
  const std::int64_t row_tiles = (p.longest_query + kSliceRows - 1) / kSliceRows;
  const std::int64_t row_tasks = row_tiles * p.shape.query_heads * p.views * p.sequences;
  const std::int64_t row_blocks = (row_tasks + kPlanWarps - 1) / kPlanWarps;
  const std::int64_t words = (p.longest_key + kKeysPerWord - 1) / kKeysPerWord;
  const std::int64_t column_blocks = words * p.shape.key_heads * p.sequences;
  const auto blocks = static_cast<unsigned>(row_blocks + column_blocks);
  const auto kernel =
      p.type == DataType::kBFloat16 ? backward_plan_kernel<__nv_bfloat16> : backward_plan_kernel<__half>;
  kernel<<<blocks, kPlanThreads, 0, stream>>>(p, a, plan, row_tasks, column_blocks);
  return cudaGetLastError();
}

}  // namespace tda::cuda::portable
