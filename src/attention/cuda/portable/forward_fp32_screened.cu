// Forward of fp32 inputs with few survivors: a screen on tensor cores, then exact fp32 for single pairs.
//
// A block of 256 threads owns 128 query rows of one head; each of its eight warps a strip of 16. The keys pass in tiles
// of 64, unit rows rounded to fp16 (row_scales.cu writes them), two or three tiles on their way by asynchronous copies:
//   1. s~ = q~ k~^T by mma.sync, queries in registers; one maximum a row decides whether a pair may pass tau;
//   2. candidates join the warp's queue, in the order of tiles, rows, keys;
//   3. the queue is worked off: exact scores of 32 pairs at a time, weights, survivor bits, then weight times value row
//      into the strip's sums, in the order and with the roundings of forward_fp32.cu.
// So the outputs equal those of that kernel to the bit. Row blocks that a queue does not hold go through lists to
//   - forward_fp32_divided.cu, in which a block has one strip, so that a few heavy row blocks spread over the device;
//   - the dense kernel, when they have very many candidates, or anything that is not finite.
// Shared memory: sums 128 x COLUMNS floats, key tiles of 64 x DIM halves, queues; 66 KiB for one view with 64 columns.
// Cost: 2 DIM operations of tensor cores a pair, about 40 instructions of a warp a candidate.
#include <cstdlib>
#include <string_view>

#include "attention/cuda/portable/forward_pairs.cuh"

namespace tda::cuda::portable {
namespace {

constexpr int kRows = kDenseRows;
static_assert(kRows == kWarps * kStripRows && kWarps == kForwardStrips);

// Thresholds, zeros, and whether the block is better left to the dense kernel: tau near 0 or NaN in most rows, or a NaN
// for lambda, which reaches pairs without a weight.
template <int VIEWS, int DIM, int COLUMNS>
__device__ bool start_block(const Problem& p, const ForwardOutputs& outputs, const Block& b,
                            Plan<VIEWS, DIM, COLUMNS>& plan) {
  constexpr float kLowThreshold = 0.02f;
  bool low = false;
  const int r = static_cast<int>(threadIdx.x);
  if (r < kRows) {
    plan.threshold[r] = threshold_of_row(p, b, r);
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

// Whether the block is better left to the dense kernel: more than a sixth of the pairs in the `tiles` screened so far
// are candidates.
__device__ __forceinline__ bool too_many(int candidates, int tiles) {
  return candidates > 1024 + tiles * (kRows * kKeys / 6);
}

// Screens all key tiles; false when the block turned out to be dense. All threads agree.
template <int VIEWS, int DIM, int COLUMNS>
__device__ __forceinline__ bool walk_keys(const Problem& p, Plan<VIEWS, DIM, COLUMNS>& plan, float lambda,
                                          ForwardStrip<VIEWS, DIM, COLUMNS>& strip) {
  const Block& b = strip.b;
  const int lane = lane_of_warp(), warp = static_cast<int>(threadIdx.x) / 32;
  constexpr int kAhead = Plan<VIEWS, DIM, COLUMNS>::kStages - 1;
  std::uint32_t queries[VIEWS][DIM / 16][4];
#pragma unroll
  for (int view = 0; view < VIEWS; ++view) load_queries<DIM>(p, b, warp * kStripRows, view, queries[view]);
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
    if (too_many(candidates, tile)) {
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
    if (__any_sync(kWholeWarp, any)) strip.add_candidates(first_key, bits);
  }
  if (!strip.overflow) strip.work_off(lambda);
  strip.sums.flush();
  return true;
}

// Where the row blocks go that this kernel does not finish.
struct Lists {
  DenseTasks divided, dense;
};

template <int VIEWS, int DIM, int COLUMNS>
__global__ void __launch_bounds__(kThreads, VIEWS* DIM > 128 ? 1 : 2)
    forward_fp32_screened_kernel(const __grid_constant__ Problem p, const __grid_constant__ ForwardOutputs outputs,
                                 const __grid_constant__ Lists lists, std::int64_t tiles) {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  auto& plan = *reinterpret_cast<Plan<VIEWS, DIM, COLUMNS>*>(shared_bytes);
  const Block b = make_block(p, tiles, blockIdx.x);
  if (b.rows <= 0) return;
  if (start_block(p, outputs, b, plan)) {
    if (threadIdx.x == 0) list_dense_task(lists.dense, blockIdx.x);
    return;
  }
  auto strip = make_strip(p, outputs, b, static_cast<int>(threadIdx.x) / 32 * kStripRows, plan);
  const float lambda = VIEWS == 2 ? clamped_lambda(p, b.head) : 0.f;
  bool dense = !walk_keys(p, plan, lambda, strip), divided = false;
  if (!dense) {
    bool finite = true;
    for (int r = 0; r < kStripRows; ++r) {
#pragma unroll
      for (int i = 0; i < COLUMNS / 32; ++i) {
        finite = finite && isfinite(strip.sums.rows[r][LaneColumns<COLUMNS>::first() + i]);
      }
    }
    dense = __syncthreads_or(!finite) != 0;
    divided = __syncthreads_or(strip.overflow) != 0;
  }
  if (!dense && !divided) {
    store_strip(p, outputs, strip);
  } else if (threadIdx.x == 0) {
    list_dense_task(dense ? lists.dense : lists.divided, blockIdx.x);
  }
}

template <int VIEWS, int DIM, int COLUMNS>
cudaError_t launch(const Problem& p, const ForwardOutputs& outputs, const Lists& lists, cudaStream_t stream) {
  const std::int64_t tiles = (p.longest_query + kRows - 1) / kRows;
  const std::int64_t tasks = tiles * p.shape.query_heads * p.sequences;
  constexpr auto kBytes = static_cast<int>(sizeof(Plan<VIEWS, DIM, COLUMNS>));
  const auto kernel = forward_fp32_screened_kernel<VIEWS, DIM, COLUMNS>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(tasks), kThreads, kBytes, stream>>>(p, outputs, lists, tiles);
  return cudaGetLastError();
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

cudaError_t launch_forward_fp32_screened(const Problem& p, const ForwardOutputs& outputs, const DenseTasks& divided,
                                         const DenseTasks& dense, cudaStream_t stream) {
  const Lists lists{divided, dense};
  return with_instance(p.shape, p.views, [&]<int VIEWS, int DIM, int COLUMNS>() {
    return launch<VIEWS, DIM, COLUMNS>(p, outputs, lists, stream);
  });
}

}  // namespace tda::cuda::portable
