// Forward of fp32 inputs for the row blocks in which the screen finds more than a warp's queue holds.
//
// A block of 256 threads owns a strip of 16 query rows of one head (strip_list.cuh):
//   1. each warp screens 32 keys at a time, from the fp16 copies in global memory into fragments of mma.sync;
//   2. all candidates of up to 2,048 keys are listed, row by row;
//   3. exact scores and weights: 32 pairs a warp, dealt out in turn; query rows lie in shared memory;
//   4. weight times value row: 16 lanes a row of the strip, which keep its sum in registers.
// Orders and roundings of scores and sums are those of forward_fp32.cu, so that the outputs are the same to the bit.
// Survivor bits were cleared by forward_fp32_screened.cu. Sums that are not finite need no other way: pairs without a
// weight are left out of them.
// Shared memory: 18 KiB and 4 VIEWS (1 + DIM / 64) KiB. What one strip takes: 900 cycles for each 256 keys, 1,500 for
// each 256 candidates, and 100 for each candidate of the longest row (estimates).
#include "attention/cuda/portable/forward_pairs.cuh"
#include "attention/cuda/portable/strip_list.cuh"

namespace tda::cuda::portable {
namespace {

constexpr int kScreenedKeys = 32;  // by a warp at once
constexpr int kKeysAtOnce = kUnits * kUnitRows;

template <int VIEWS, int DIM>
struct SharedStrip {
  Block block;  // of the strip's rows
  StripList<VIEWS> list;
  float weights[kListed];
  __align__(16) float queries[VIEWS][kStripRows * DIM];  // unit rows (strip_slot)
  Threshold threshold[kStripRows];
  int survivors[kStripRows];
};

// A lane's share of a fp16 row: of each 64 elements the 16-byte chunks t and t + 4, as a product may take its depth in
// any order. Zeros where there is no row.
template <int DIM>
__device__ __forceinline__ void load_half_chunks(uint4 (&x)[DIM / 32], const __half* row, int pitch, bool exists) {
#pragma unroll
  for (int n = 0; n < DIM / 32; ++n) {
    const int d = 32 * n + lane_of_warp() % 4 * 8;
    x[n] = exists && d < pitch ? __ldg(reinterpret_cast<const uint4*>(row + d)) : make_uint4(0, 0, 0, 0);
  }
}

// The strip's queries as A fragments.
template <int DIM>
__device__ __forceinline__ void load_query_fragments(const Problem& p, const Block& b, int view,
                                                     std::uint32_t (&a)[DIM / 16][4]) {
  const int pitch = static_cast<int>(p.half_pitch), row = lane_of_warp() / 4;
  const std::int64_t first = b.head * p.shape.batch * p.shape.query_length + b.sequence.flat_query + b.first;
  const auto* const rows = static_cast<const __half*>(p.half_query[view]) + (first + row) * pitch;
  uint4 upper[DIM / 32], lower[DIM / 32];
  load_half_chunks<DIM>(upper, rows, pitch, row < b.rows);
  load_half_chunks<DIM>(lower, rows + 8 * pitch, pitch, row + 8 < b.rows);
#pragma unroll
  for (int n = 0; n < DIM / 32; ++n) {
    a[2 * n][0] = upper[n].x, a[2 * n][1] = lower[n].x, a[2 * n][2] = upper[n].y, a[2 * n][3] = lower[n].y;
    a[2 * n + 1][0] = upper[n].z, a[2 * n + 1][1] = lower[n].z;
    a[2 * n + 1][2] = upper[n].w, a[2 * n + 1][3] = lower[n].w;
  }
}

// Candidates among the keys first_key .. + 31: in lanes 0 .. 15 the bits of row `lane`; the mask is not applied.
template <int DIM>
__device__ __forceinline__ std::uint32_t screen_keys(const Problem& p, const Block& b, int view, int first_key,
                                                     const std::uint32_t (&a)[DIM / 16][4], float upper, float lower) {
  constexpr int kTiles = kScreenedKeys / 8;
  const int pitch = static_cast<int>(p.half_pitch), lane = lane_of_warp();
  const std::int64_t first = b.key_head * p.shape.batch * p.shape.key_length + b.sequence.flat_key;
  const auto* const rows = static_cast<const __half*>(p.half_key[view]) + first * pitch;
  uint4 keys[kTiles][DIM / 32];
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    const int key = first_key + 8 * n + lane / 4;
    load_half_chunks<DIM>(keys[n], rows + static_cast<std::int64_t>(key) * pitch, pitch, key < b.sequence.key_length);
  }
  float scores[kTiles][4] = {};
#pragma unroll
  for (int m = 0; m < DIM / 32; ++m) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) multiply_add<__half>(scores[n], a[2 * m], keys[n][m].x, keys[n][m].y);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) multiply_add<__half>(scores[n], a[2 * m + 1], keys[n][m].z, keys[n][m].w);
  }
  if (!any_candidate(scores, upper, lower)) return 0;
  return word_of_own_row(candidate_bits<0, kTiles>(scores, upper, lower));
}

// Screens the keys first_key .. end_key - 1, which are at most kKeysAtOnce, in one view.
template <int VIEWS, int DIM>
__device__ __forceinline__ void screen_strip(const Problem& p, int view, int first_key, int end_key,
                                             SharedStrip<VIEWS, DIM>& strip) {
  const Block& b = strip.block;
  const int lane = lane_of_warp(), dim = static_cast<int>(p.shape.head_dim);
  std::uint32_t queries[DIM / 16][4];
  load_query_fragments<DIM>(p, b, view, queries);
  const float upper = screen_threshold(strip.threshold[lane / 4], dim);
  const float lower = screen_threshold(strip.threshold[lane / 4 + 8], dim);
  const int keys_seen = lane < b.rows ? b.offset + b.first + lane + 1 : 0;
#pragma unroll 1
  for (int key = first_key + warp_of_block() * kScreenedKeys; key < end_key; key += kListWarps * kScreenedKeys) {
    const std::uint32_t word = screen_keys<DIM>(p, b, view, key, queries, upper, lower) & low_bits(keys_seen - key);
    const int unit = (key - first_key) / kUnitRows;
    set_unit(strip.list, view, unit, word & 0xffffu);
    set_unit(strip.list, view, unit + 1, word >> 16);
    if (lane < 2) strip.list.others[unit + lane] = key + kUnitRows * lane;
  }
}

// The weight, in one view, of the lane's own pair among the `count` behind `entries`.
template <int VIEWS, int DIM>
__device__ __forceinline__ float pair_weight(const Problem& p, int view, const std::uint32_t* entries, int count,
                                             std::uint32_t own, std::uint32_t* index,
                                             const SharedStrip<VIEWS, DIM>& strip) {
  const Block& b = strip.block;
  const bool wanted = own_pair() < count && (VIEWS == 1 || (entry_views(own) >> view & 1u) != 0);
  if (VIEWS == 2 && !__any_sync(kWholeWarp, wanted)) return 0.f;
  const UnitRows keys = unit_key_rows(p, b.sequence, view, b.key_head);
  // Pairs that are candidates of the other view only load a row of theirs as well; nobody uses the product.
  const float s = strip_products<DIM, 4>(strip.queries[view], entries, count,
                                         [&](int key, int d, float4(&x)[2]) { keys.load_unit(key, d, x); });
  const float r = excess(s, strip.threshold[entry_row(own)]);
  const float w = wanted && survives(r) ? weight(r, p.power) : 0.f;
  if (index && w != 0.f) {
    const int key = entry_other(own);
    atomicOr(index + p.index.word_offset(view, 0, 0) + key / kKeysPerWord, 1u << (key / kSliceKeys % kSlicesPerWord));
  }
  return w;
}

// Weights of the listed pairs, over all views.
template <int VIEWS, int DIM>
__device__ __forceinline__ void weigh(const Problem& p, const ForwardOutputs& outputs, int listed,
                                      SharedStrip<VIEWS, DIM>& strip) {
  const Block& b = strip.block;
  const float lambda = VIEWS == 2 ? clamped_lambda(p, b.head) : 0.f;
  auto* index = static_cast<std::uint32_t*>(outputs.survivor_index);
  if (index) index += p.index.word_offset(0, b.head, b.sequence.first_row_tile + b.first / kSliceRows);
#pragma unroll 1
  for (int base = 32 * warp_of_block(); base < listed; base += 32 * kListWarps) {
    const std::uint32_t* const entries = strip.list.entries + base;
    const int count = listed - base;
    const bool exists = own_pair() < count;
    const std::uint32_t own = entries[exists ? own_pair() : 0];
    float w = pair_weight(p, 0, entries, count, own, index, strip);
    bool survivor = w != 0.f;
    if constexpr (VIEWS == 2) {
      const float second = pair_weight(p, 1, entries, count, own, index, strip);
      survivor = survivor || second != 0.f;
      w = fmaf(-lambda, second, w);
    }
    if (exists) strip.weights[base + own_pair()] = w;
    if (survivor) atomicAdd(&strip.survivors[entry_row(own)], 1);
  }
}

// The output of the row that 16 lanes own: chains of kChain keys are added in `partial` before they join the sum.
template <int COLUMNS>
struct RowSum {
  GroupColumns<COLUMNS> sum, partial;
  int chain = 0;

  __device__ RowSum() {
    sum.clear();
    partial.clear();
  }
  __device__ __forceinline__ void end_chain() {
    sum.add(partial);
    partial.clear();
  }
  // Adds weight times value row of the pairs begin .. end - 1 of the list, several rows under way at a time.
  __device__ __forceinline__ void add_values(const UnitRows& v, const std::uint32_t* entries, const float* weights,
                                             int begin, int end) {
    constexpr int kAtOnce = COLUMNS == 64 ? 6 : 2;
#pragma unroll 1
    for (int base = begin; base < end; base += kAtOnce) {
      GroupColumns<COLUMNS> values[kAtOnce];
      int key[kAtOnce];
      float w[kAtOnce];
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        const int place = min(base + n, end - 1);
        key[n] = entry_other(entries[place]);
        w[n] = base + n < end ? weights[place] : 0.f;
        if (w[n] != 0.f) values[n].load(v.data + key[n] * v.row_stride, v.dim);
      }
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        if (w[n] == 0.f) continue;
        if (key[n] / kChain != chain) end_chain();
        chain = key[n] / kChain;
        partial.multiply_add(w[n], values[n]);
      }
    }
  }
};

template <int COLUMNS>
__device__ __forceinline__ void store_row(const Problem& p, const ForwardOutputs& outputs, const Block& b,
                                          int survivors, const RowSum<COLUMNS>& row) {
  if (row_group() >= b.rows) return;
  const Sequence& s = b.sequence;
  const Tensor& target = outputs.output;
  const std::int64_t at = b.first + row_group();
  row.sum.store(static_cast<float*>(target.data) + row_offset(target, s.batch, b.head, s.first_query + at),
                static_cast<int>(p.shape.value_dim));
  if (!outputs.survivors || lane_of_row() != 0) return;
  outputs.survivors[(s.batch * p.shape.query_heads + b.head) * p.shape.query_length + s.first_query + at] = survivors;
}

// Names the strip `task` % kForwardStrips of a listed row block and loads its rows; false when it does not exist. Ends
// with a barrier.
template <int VIEWS, int DIM>
__device__ __forceinline__ bool start_strip(const Problem& p, std::int64_t tiles, std::int64_t task,
                                            SharedStrip<VIEWS, DIM>& strip) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    Block b = make_block(p, tiles, task / kForwardStrips);
    const int own = static_cast<int>(task % kForwardStrips) * kStripRows;
    b.first += own;
    b.rows = min(kStripRows, b.rows - own);
    strip.block = b;
  }
  __syncthreads();
  const Block& b = strip.block;
  if (b.rows <= 0) return false;
  if (thread < kStripRows) {
    strip.threshold[thread] = threshold_of_row(p, b, thread);
    strip.survivors[thread] = 0;
  }
#pragma unroll 1
  for (int view = 0; view < VIEWS; ++view) {
    const UnitRows q = unit_query_rows(p, b.sequence, view, b.head);
    load_strip_rows<DIM>(strip.queries[view], b.first, b.sequence.query_length,
                         [&](int row, int d, float4(&x)[2]) { q.load_unit(row, d, x); });
  }
  __syncthreads();
  return true;
}

template <int VIEWS, int DIM, int COLUMNS>
__device__ __forceinline__ void run_strip(const Problem& p, const ForwardOutputs& outputs,
                                          SharedStrip<VIEWS, DIM>& strip) {
  const Block& b = strip.block;
  const int keys_seen = b.offset + b.first + b.rows;
  RowSum<COLUMNS> row;
#pragma unroll 1
  for (int first_key = 0; first_key < keys_seen; first_key += kKeysAtOnce) {
    const int end_key = min(first_key + kKeysAtOnce, keys_seen);
#pragma unroll 1
    for (int view = 0; view < VIEWS; ++view) screen_strip(p, view, first_key, end_key, strip);
    const int units = (end_key - first_key + kScreenedKeys - 1) / kScreenedKeys * (kScreenedKeys / kUnitRows);
#pragma unroll 1
    for (int begin = 0, end; begin < units; begin = end) {
      const int listed = list_units(strip.list, begin, units, end);
      weigh(p, outputs, listed, strip);
      __syncthreads();
      row.add_values(value_rows(p, b.sequence, b.key_head), strip.list.entries, strip.weights,
                     strip.list.row_begin[row_group()], strip.list.row_begin[row_group() + 1]);
    }
    __syncthreads();
  }
  row.end_chain();
  store_row(p, outputs, b, strip.survivors[row_group()], row);
}

template <int VIEWS, int DIM, int COLUMNS>
__global__ void __launch_bounds__(kListThreads, DIM > 64 ? 1 : 2)
    forward_fp32_divided_kernel(const __grid_constant__ Problem p, const __grid_constant__ ForwardOutputs outputs,
                                const __grid_constant__ DenseTasks list, std::int64_t tiles) {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  auto& strip = *reinterpret_cast<SharedStrip<VIEWS, DIM>*>(shared_bytes);
  run_listed_places(list.claimed, listed_places(list), [&](std::uint32_t place) {
    if (start_strip(p, tiles, listed_task(list, place), strip)) run_strip<VIEWS, DIM, COLUMNS>(p, outputs, strip);
  });
}

}  // namespace

cudaError_t launch_forward_fp32_divided(const Problem& p, const ForwardOutputs& outputs, const DenseTasks& list,
                                        cudaStream_t stream) {
  const std::int64_t tiles = (p.longest_query + kDenseRows - 1) / kDenseRows;
  const unsigned blocks = blocks_for(p, list, tiles * p.shape.query_heads * p.sequences * kForwardStrips);
  return with_instance(p.shape, p.views, [&]<int VIEWS, int DIM, int COLUMNS>() {
    constexpr auto kBytes = static_cast<int>(sizeof(SharedStrip<VIEWS, DIM>));
    static_assert(kBytes <= static_cast<int>(sizeof(Plan<VIEWS, DIM, COLUMNS>)), "see screens_fp32_now");
    const auto kernel = forward_fp32_divided_kernel<VIEWS, DIM, COLUMNS>;
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
    if (error != cudaSuccess) return error;
    kernel<<<blocks, kListThreads, kBytes, stream>>>(p, outputs, list, tiles);
    return cudaGetLastError();
  });
}

}  // namespace tda::cuda::portable
