// Forward of fp32 inputs with few survivors: a screen on tensor cores, then exact fp32 for single pairs.
//
// A block of 256 threads owns 128 query rows of one head; each of its eight warps a strip of 16. The keys pass in tiles
// of 64, unit rows rounded to fp16 (row_scales.cu writes them), two or three tiles on their way by asynchronous copies:
//   1. s~ = q~ k~^T by mma.sync, queries in registers; one maximum a row decides whether a pair may pass tau;
//   2. candidates join the warp's queue, in the order of tiles, rows, keys;
//   3. a full queue is worked off: exact scores of 32 pairs at a time, weights, survivor bits, then weight times
//      value row into the strip's sums, in the order and with the roundings of forward_fp32.cu.
// So the outputs equal those of that kernel to the bit. Row blocks with many candidates, or with anything that is not
// finite, are left to it through a list.
// Shared memory: sums 128 x COLUMNS floats, key tiles of 64 x DIM halves, queues; 66 KiB for one view with 64 columns.
// Cost: 2 DIM operations of tensor cores a pair, about 40 instructions of a warp a candidate.
#include <cstdlib>
#include <string_view>

#include "attention/cuda/portable/half_tile.cuh"
#include "attention/cuda/portable/kernels.h"
#include "attention/cuda/portable/screen_product.cuh"

namespace tda::cuda::portable {
namespace {

constexpr int kRows = kDenseRows, kKeys = 64, kThreads = 256, kWarps = kThreads / 32;
static_assert(kRows == kWarps * kStripRows);
constexpr int kQueue = 128;
constexpr int kPairsAtOnce = 2;  // under way; more would need registers that the screen holds

struct PairQueue {
  std::uint32_t entries[kQueue];
  float weights[kQueue];
};

template <int VIEWS, int DIM, int COLUMNS>
struct Plan {
  static constexpr int kStages = VIEWS * DIM > 64 ? 2 : 3;
  __half keys[kStages][VIEWS][kKeys * DIM];
  float sums[kRows][COLUMNS];
  PairQueue queue[kWarps];
  Threshold threshold[kRows];
  int survivors[kRows];
  int candidates[2][kWarps];
};

struct Block {
  Sequence sequence;
  int head, key_head;
  int first;      // query row of the block in the sequence
  int offset;     // absolute position of query row 0
  int rows;       // that exist
  int key_tiles;  // that a row sees
};

__device__ Block make_block(const Problem& p, std::int64_t tiles, std::int64_t index) {
  const BlockTask task = block_task(index, p.shape.query_heads, p.sequences);
  Block b;
  b.sequence = sequence_at(p, task.sequence);
  b.head = task.head;
  b.key_head = static_cast<int>(task.head / (p.shape.query_heads / p.shape.key_heads));
  b.first = static_cast<int>((tiles - 1 - task.tile) * kRows);
  b.offset = b.sequence.key_length - b.sequence.query_length;
  b.rows = min(kRows, b.sequence.query_length - b.first);
  b.key_tiles = (b.offset + b.first + b.rows + kKeys - 1) / kKeys;
  return b;
}

// Thresholds, zeros, and whether the block is better left to the dense kernel: tau near 0 or NaN in most rows, or a NaN
// for lambda, which reaches pairs without a weight.
template <int VIEWS, int DIM, int COLUMNS>
__device__ bool start_block(const Problem& p, const ForwardOutputs& outputs, const Block& b,
                            Plan<VIEWS, DIM, COLUMNS>& plan) {
  constexpr float kLowThreshold = 0.02f;
  bool low = false;
  const int r = static_cast<int>(threadIdx.x);
  if (r < kRows) {
    plan.threshold[r] = r < b.rows ? threshold_at(load_beta(p, b.head), p.position_scale[b.offset + b.first + r])
                                   : unreachable_threshold();
    plan.survivors[r] = 0;
    low = !(plan.threshold[r].high > kLowThreshold);
  }
  auto* const index = static_cast<std::uint32_t*>(outputs.survivor_index);
  if (index) {
    for (int n = 0; n < p.views * (kRows / kSliceRows); ++n) {
      const int first = n % (kRows / kSliceRows) * kSliceRows;
      if (first >= b.rows) continue;
      const int last_key = b.offset + b.first + min(first + kSliceRows, b.rows) - 1;
      const std::int64_t tile = b.sequence.first_row_tile + (b.first + first) / kSliceRows;
      std::uint32_t* const words = index + p.index.word_offset(n / (kRows / kSliceRows), b.head, tile);
      for (int w = r; w <= last_key / kKeysPerWord; w += kThreads) words[w] = 0;
    }
  }
  bool spoiled = false;
  if constexpr (VIEWS == 2) {
    const float lambda = clamped_lambda(p, b.head);
    spoiled = lambda != lambda;
  }
  return 2 * __syncthreads_count(low) > b.rows || spoiled;
}

// Rows of the fp16 copies.
__device__ inline HalfRows screen_rows(const Problem& p, const void* copy, std::int64_t first, int rows) {
  return {copy, first * p.half_pitch, p.half_pitch, rows, static_cast<int>(p.half_pitch), true};
}

// Fragments of the strip's 16 queries.
template <int DIM>
__device__ void load_queries(const Problem& p, const Block& b, int view, std::uint32_t (&a)[DIM / 16][4]) {
  const int lane = lane_of_warp(), row = static_cast<int>(threadIdx.x) / 32 * kStripRows + lane / 4;
  const std::int64_t first = b.head * p.shape.batch * p.shape.query_length + b.sequence.flat_query + b.first;
  const auto* const copy = static_cast<const __half*>(p.half_query[view]);
#pragma unroll
  for (int step = 0; step < DIM / 16; ++step) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int r = row + n % 2 * 8, d = 16 * step + n / 2 * 8 + lane % 4 * 2;
      const bool exists = r < b.rows && d < p.half_pitch;
      a[step][n] = exists ? *reinterpret_cast<const std::uint32_t*>(copy + (first + r) * p.half_pitch + d) : 0u;
    }
  }
}

// Candidates of the 16 x 64 pairs of a strip and a key tile: in lanes 0 .. 15 the bits of row `lane`, keys 0-31 and
// 32-63; the mask is not applied.
template <int DIM>
__device__ __forceinline__ uint2 screen_strip(const __half* keys, const std::uint32_t (&a)[DIM / 16][4], float upper,
                                              float lower) {
  const int lane = lane_of_warp();
  float scores[8][4] = {};
#pragma unroll
  for (int step = 0; step < DIM / 16; ++step) {
#pragma unroll
    for (int n = 0; n < 8; n += 2) {
      std::uint32_t k[4];
      load_matrices(k, keys + half_slot<DIM>(n * 8 + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
      multiply_add<__half>(scores[n], a[step], k[0], k[1]);
      multiply_add<__half>(scores[n + 1], a[step], k[2], k[3]);
    }
  }
  if (!any_candidate(scores, upper, lower)) return make_uint2(0, 0);
  const std::uint32_t low = word_of_own_row(candidate_bits<0, 4>(scores, upper, lower));
  return make_uint2(low, word_of_own_row(candidate_bits<4, 4>(scores, upper, lower)));
}

// What a warp works with: its strip, its queue, and what it has found so far.
template <int VIEWS, int DIM, int COLUMNS>
struct Strip {
  const Problem& p;
  const Block& b;
  PairQueue& queue;
  const Threshold* threshold;  // of the strip's row 0, as the next three
  int* survivors;
  std::uint32_t* index;  // words of the row tile in view 0, or null
  std::int64_t index_view_stride;
  int first;       // row of the strip in the sequence
  int queued;      // pairs in the queue
  int candidates;  // so far
  StripSums<COLUMNS> sums;

  // The weight, in one view, of the lane's own pair among the 32 behind `base`.
  __device__ __forceinline__ float pair_weight(int view, int base, std::uint32_t own, bool exists) const {
    const UnitRows q = unit_query_rows(p, b.sequence, view, b.head), k = unit_key_rows(p, b.sequence, view, b.key_head);
    // Pairs that are candidates of the other view only load a row of theirs as well; nobody uses the product.
    const float s = pair_products<DIM, kPairsAtOnce>(
        queue.entries + base, queued - base,
        [&](std::uint32_t entry, int d, float4(&x)[2]) { q.load_unit(first + entry_row(entry), d, x); },
        [&](std::uint32_t entry, int d, float4(&x)[2]) { k.load_unit(entry_other(entry), d, x); });
    const float r = excess(s, threshold[entry_row(own)]);
    const bool wanted = exists && (VIEWS == 1 || (entry_views(own) >> view & 1u) != 0);
    const float w = wanted && survives(r) ? weight(r, p.power) : 0.f;
    if (index && w != 0.f) {
      const int key = entry_other(own);
      atomicOr(index + view * index_view_stride + key / kKeysPerWord, 1u << (key / kSliceKeys % kSlicesPerWord));
    }
    return w;
  }

  // Weights of the queued pairs, over both views.
  __device__ __forceinline__ void weigh(float lambda) {
#pragma unroll 1
    for (int base = 0; base < queued; base += 32) {
      const int place = base + own_pair();
      const bool exists = place < queued;
      const std::uint32_t own = queue.entries[exists ? place : base];
      float w = pair_weight(0, base, own, exists);
      bool survivor = w != 0.f;
      if constexpr (VIEWS == 2) {
        const float second = pair_weight(1, base, own, exists);
        survivor = survivor || second != 0.f;
        w = fmaf(-lambda, second, w);
      }
      if (exists) queue.weights[place] = w;
      if (survivor) atomicAdd(&survivors[entry_row(own)], 1);
    }
    __syncwarp();
  }

  // Adds weight times value row of the queued pairs, several rows under way at a time.
  __device__ __forceinline__ void add_values() {
    constexpr int kAtOnce = 512 / COLUMNS;
    const UnitRows v = value_rows(p, b.sequence, b.key_head);
#pragma unroll 1
    for (int base = 0; base < queued; base += kAtOnce) {
      LaneColumns<COLUMNS> values[kAtOnce];
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        const int place = base + n;
        if (place >= queued || queue.weights[place] == 0.f) continue;
        values[n].load(v.data + entry_other(queue.entries[place]) * v.row_stride, v.dim);
      }
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        const int place = base + n;
        if (place >= queued || queue.weights[place] == 0.f) continue;
        const std::uint32_t entry = queue.entries[place];
        const auto chain = static_cast<std::uint32_t>(entry_row(entry)) << 28 |
                           static_cast<std::uint32_t>(entry_other(entry) / kChain);
        sums.add(chain, queue.weights[place], values[n]);
      }
    }
    __syncwarp();
    queued = 0;
  }

  __device__ __noinline__ void work_off(float lambda) {
    __syncwarp();
    weigh(lambda);
    add_values();
  }

  // Queues the candidates of a tile: in lane r < 16 the bits of row r in each view.
  __device__ __forceinline__ void add_candidates(int first_key, const uint2 (&bits)[VIEWS], float lambda) {
    uint2 either = bits[0];
    if constexpr (VIEWS == 2) either = make_uint2(bits[0].x | bits[1].x, bits[0].y | bits[1].y);
    int total;
    const int before = sum_before(__popc(either.x) + __popc(either.y), total);
    candidates += total;
    if (queued + total > kQueue) work_off(lambda);
#pragma unroll 1
    for (int base = 0; base < total; base += kQueue) {
      int place = queued + before - base;
#pragma unroll
      for (int word = 0; word < 2; ++word) {
        std::uint32_t left = word == 0 ? either.x : either.y;
        while (left != 0) {
          const int bit = __ffs(static_cast<int>(left)) - 1;
          left &= left - 1;
          if (place >= 0 && place < kQueue) {
            unsigned views = (word == 0 ? bits[0].x : bits[0].y) >> bit & 1u;
            if constexpr (VIEWS == 2) views |= ((word == 0 ? bits[1].x : bits[1].y) >> bit & 1u) << 1;
            queue.entries[place] = pair_entry(lane_of_warp(), views, first_key + 32 * word + bit);
          }
          ++place;
        }
      }
      queued = min(kQueue, queued + total - base);
      if (base + kQueue < total) work_off(lambda);
    }
  }
};

// Whether the block is better left to the dense kernel, to which a tile costs as much as some 256 candidates do here.
// `tiles` are screened so far; an eighth of their pairs says early where this ends.
__device__ __forceinline__ bool too_many(int candidates, int tiles, const Block& b) {
  return candidates > 512 + 256 * b.key_tiles || (tiles >= 2 && candidates > tiles * (kRows * kKeys / 8));
}

template <int VIEWS, int DIM, int COLUMNS>
__device__ __forceinline__ void load_keys(const Problem& p, const Block& b, int tile, Plan<VIEWS, DIM, COLUMNS>& plan) {
  if (tile < b.key_tiles) {
#pragma unroll
    for (int view = 0; view < VIEWS; ++view) {
      const std::int64_t first = b.key_head * p.shape.batch * p.shape.key_length + b.sequence.flat_key;
      load_rows<__half, DIM, kKeys, kThreads>(plan.keys[tile % plan.kStages][view],
                                              screen_rows(p, p.half_key[view], first, b.sequence.key_length),
                                              static_cast<int>(threadIdx.x), tile * kKeys);
    }
  }
  commit_copies();
}

// Screens all key tiles; false when the block turned out to be dense. All threads agree.
template <int VIEWS, int DIM, int COLUMNS>
__device__ __forceinline__ bool walk_keys(const Problem& p, Plan<VIEWS, DIM, COLUMNS>& plan, float lambda,
                                          Strip<VIEWS, DIM, COLUMNS>& strip) {
  const Block& b = strip.b;
  const int lane = lane_of_warp(), warp = static_cast<int>(threadIdx.x) / 32;
  constexpr int kAhead = Plan<VIEWS, DIM, COLUMNS>::kStages - 1;
  std::uint32_t queries[VIEWS][DIM / 16][4];
#pragma unroll
  for (int view = 0; view < VIEWS; ++view) load_queries<DIM>(p, b, view, queries[view]);
  const int dim = static_cast<int>(p.shape.head_dim);
  const float upper = screen_threshold(strip.threshold[lane / 4], dim);
  const float lower = screen_threshold(strip.threshold[lane / 4 + 8], dim);
  const int strip_rows = b.rows - warp * kStripRows;  // that exist, and more
  const int keys_seen = strip_rows > 0 ? b.offset + strip.first + min(strip_rows, kStripRows) : 0;
  const int own_keys_seen = lane < min(strip_rows, kStripRows) ? b.offset + strip.first + lane + 1 : 0;
  for (int tile = 0; tile < kAhead; ++tile) load_keys(p, b, tile, plan);
#pragma unroll 1
  for (int tile = 0; tile < b.key_tiles; ++tile) {
    wait_for_copies<kAhead - 1>();
    if (lane == 0) plan.candidates[tile % 2][warp] = strip.candidates;
    __syncthreads();
    int candidates = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) candidates += plan.candidates[tile % 2][w];
    if (too_many(candidates, tile, b)) {
      wait_for_copies<0>();
      return false;
    }
    load_keys(p, b, tile + kAhead, plan);
    const int first_key = tile * kKeys;
    if (first_key >= keys_seen) continue;
    uint2 bits[VIEWS];
    bool any = false;
#pragma unroll
    for (int view = 0; view < VIEWS; ++view) {
      bits[view] = screen_strip<DIM>(plan.keys[tile % plan.kStages][view], queries[view], upper, lower);
      bits[view].x &= low_bits(own_keys_seen - first_key);
      bits[view].y &= low_bits(own_keys_seen - first_key - 32);
      any = any || (bits[view].x | bits[view].y) != 0;
    }
    if (__any_sync(kWholeWarp, any)) strip.add_candidates(first_key, bits, lambda);
  }
  strip.work_off(lambda);
  strip.sums.flush();
  return true;
}

template <int VIEWS, int DIM, int COLUMNS>
__device__ void store_strip(const Problem& p, const ForwardOutputs& outputs, const Strip<VIEWS, DIM, COLUMNS>& strip) {
  const Block& b = strip.b;
  const Tensor& target = outputs.output;
  const int end = min(strip.first + kStripRows, b.first + b.rows);
  float* const data =
      static_cast<float*>(target.data) + row_offset(target, b.sequence.batch, b.head, b.sequence.first_query);
  for (int row = strip.first; row < end; ++row) {
    LaneColumns<COLUMNS> columns;
#pragma unroll
    for (int i = 0; i < columns.kCount; ++i) {
      columns.x[i] = strip.sums.rows[row - strip.first][LaneColumns<COLUMNS>::first() + i];
    }
    columns.store(data + row * target.row_stride, static_cast<int>(p.shape.value_dim));
  }
  if (!outputs.survivors) return;
  const int row = strip.first + lane_of_warp();
  std::int32_t* const counts = outputs.survivors +
                               (b.sequence.batch * p.shape.query_heads + b.head) * p.shape.query_length +
                               b.sequence.first_query;
  if (row < end) counts[row] = strip.survivors[row - strip.first];
}

template <int VIEWS, int DIM, int COLUMNS>
__global__ void __launch_bounds__(kThreads, VIEWS* DIM > 128 ? 1 : 2)
    forward_fp32_screened_kernel(const __grid_constant__ Problem p, const __grid_constant__ ForwardOutputs outputs,
                                 const __grid_constant__ DenseTasks dense, std::int64_t tiles) {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  auto& plan = *reinterpret_cast<Plan<VIEWS, DIM, COLUMNS>*>(shared_bytes);
  const Block b = make_block(p, tiles, blockIdx.x);
  if (b.rows <= 0) return;
  if (start_block(p, outputs, b, plan)) {
    if (threadIdx.x == 0) list_dense_task(dense, blockIdx.x);
    return;
  }
  const int warp = static_cast<int>(threadIdx.x) / 32, own = warp * kStripRows;
  auto* const index = static_cast<std::uint32_t*>(outputs.survivor_index);
  const std::int64_t row_tile = b.sequence.first_row_tile + (b.first + own) / kSliceRows;
  Strip<VIEWS, DIM, COLUMNS> strip{p,
                                   b,
                                   plan.queue[warp],
                                   plan.threshold + own,
                                   plan.survivors + own,
                                   index && own < b.rows ? index + p.index.word_offset(0, b.head, row_tile) : nullptr,
                                   p.index.word_offset(1, 0, 0),
                                   b.first + own,
                                   0,
                                   0,
                                   {plan.sums + own}};
  strip.sums.clear(kStripRows);
  const float lambda = VIEWS == 2 ? clamped_lambda(p, b.head) : 0.f;
  bool leave = !walk_keys(p, plan, lambda, strip);
  if (!leave) {
    bool finite = true;
    for (int r = 0; r < kStripRows; ++r) {
#pragma unroll
      for (int i = 0; i < COLUMNS / 32; ++i) {
        finite = finite && isfinite(strip.sums.rows[r][LaneColumns<COLUMNS>::first() + i]);
      }
    }
    leave = __syncthreads_or(!finite) != 0;
  }
  if (!leave) {
    store_strip(p, outputs, strip);
  } else if (threadIdx.x == 0) {
    list_dense_task(dense, blockIdx.x);
  }
}

template <int VIEWS, int DIM, int COLUMNS>
cudaError_t launch(const Problem& p, const ForwardOutputs& outputs, const DenseTasks& dense, cudaStream_t stream) {
  const std::int64_t tiles = (p.longest_query + kRows - 1) / kRows;
  const std::int64_t tasks = tiles * p.shape.query_heads * p.sequences;
  constexpr auto kSharedBytes = static_cast<int>(sizeof(Plan<VIEWS, DIM, COLUMNS>));
  const auto kernel = forward_fp32_screened_kernel<VIEWS, DIM, COLUMNS>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(tasks), kThreads, kSharedBytes, stream>>>(p, outputs, dense, tiles);
  return cudaGetLastError();
}

// Calls run.operator()<VIEWS, DIM, COLUMNS>() for the instance that fits.
template <class Run>
auto with_instance(const AttentionShape& shape, int views, Run run) {
  const auto of_views = [&]<int VIEWS>() {
    if (shape.head_dim > 64) return run.template operator()<VIEWS, 128, 128>();
    if (shape.value_dim > 64) return run.template operator()<VIEWS, 64, 128>();
    return run.template operator()<VIEWS, 64, 64>();
  };
  return views == 2 ? of_views.template operator()<2>() : of_views.template operator()<1>();
}

}  // namespace

bool screens_fp32(const AttentionShape& shape, const AttentionOptions& options, std::int64_t longest_key) {
  return options.data_type == DataType::kFloat32 && options.normalize && shape.head_dim > 8 && shape.head_dim <= 128 &&
         shape.head_dim % 4 == 0 && shape.value_dim <= 128 && shape.value_dim % 4 == 0 &&
         longest_key < kLongestScreened;
}

bool screens_fp32_now(const Problem& p) {
  const char* const value = std::getenv("TDA_FP32_SCREEN");
  if (value != nullptr && std::string_view(value) == "off") return false;
  for (int view = 0; view < p.views; ++view) {
    if (!p.vector_q[view] || !p.vector_k[view]) return false;
  }
  int device = 0, available = 0;
  if (!p.vector_v || cudaGetDevice(&device) != cudaSuccess) return false;
  if (cudaDeviceGetAttribute(&available, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) return false;
  return available >= with_instance(p.shape, p.views, [&]<int VIEWS, int DIM, int COLUMNS>() {
           return static_cast<int>(sizeof(Plan<VIEWS, DIM, COLUMNS>));
         });
}

cudaError_t launch_forward_fp32_screened(const Problem& p, const ForwardOutputs& outputs, const DenseTasks& dense,
                                         cudaStream_t stream) {
  return with_instance(p.shape, p.views, [&]<int VIEWS, int DIM, int COLUMNS>() {
    return launch<VIEWS, DIM, COLUMNS>(p, outputs, dense, stream);
  });
}

}  // namespace tda::cuda::portable
