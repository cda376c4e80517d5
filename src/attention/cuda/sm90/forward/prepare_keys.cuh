// Keys for the forward: 1/|k| for the exact scores, and an 8-bit copy of the unit keys with its error for the screen.
//
// Plan. One block of 256 threads per 256 keys of one head and view; a key row is read once, 16 bytes a thread and load,
// all loads in flight before the first use. The 8-bit copy has one scale per 256 keys, which the screen folds into its
// thresholds. Dimensions are permuted inside each 16 (order 2t, 2t+1, 2t+8, 2t+9 for t = 0..3), so that the screen
// packs its 8-bit query fragments from 16-bit ones without moving data between lanes; a dot product does not care.
// It also chooses the heads that are screened, and clears what the other kernels of the chain count and mark; with
// packed documents the counters are in use by then. Cost: reads 2 D, writes D + 4 bytes a key, 8 with an index, without
// a screen 4 or 8: bound by memory.
#pragma once

#include "attention/cuda/common/kernel_order.cuh"
#include "attention/cuda/sm90/forward/row_formulas.cuh"
#include "attention/cuda/sm90/forward/screen/choice.cuh"
#include "attention/cuda/sm90/forward/sequence.cuh"

namespace tda::cuda::sm90 {

constexpr int kPrepareThreads = 256;

// The largest of the block's values, none of which is negative: their bits are in the order of their values.
__device__ __forceinline__ float block_max(float value, std::uint32_t* scratch) {
  const std::uint32_t largest = __reduce_max_sync(0xffffffffu, __float_as_uint(value));
  __syncthreads();
  if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = largest;
  __syncthreads();
  std::uint32_t result = scratch[0];
#pragma unroll
  for (int i = 1; i < kPrepareThreads / 32; ++i) result = max(result, scratch[i]);
  return __uint_as_float(result);
}

// Sums of kLanes values over as many lanes, sum i for lane i: in each step half of what is left goes to a neighbour.
template <int kLanes>
__device__ __forceinline__ float lane_sums(float (&values)[kLanes], int lane) {
#pragma unroll
  for (int neighbour = 1; neighbour < kLanes; neighbour *= 2) {
    const bool odd = (lane & neighbour) != 0;
#pragma unroll
    for (int i = 0; i < kLanes / 2 / neighbour; ++i) {
      const float kept = odd ? values[2 * i + 1] : values[2 * i];
      const float sent = odd ? values[2 * i] : values[2 * i + 1];
      values[i] = kept + __shfl_xor_sync(0xffffffffu, sent, neighbour);
    }
  }
  return values[0];
}

template <typename Element, int kHeadDim, bool kPacked>
__global__ void __launch_bounds__(kPrepareThreads, kHeadDim == 64 ? 4 : 2)
    prepare_keys(const __grid_constant__ ForwardArguments a) {
  constexpr int kLanes = kHeadDim / 8;  // threads that share a row
  constexpr int kRowsPerPass = kPrepareThreads / kLanes;
  constexpr int kPasses = kScreenKeys / kRowsPerPass;
  static_assert(kPasses == kLanes, "each of a row's threads finishes one of its passes' rows");
  __shared__ std::uint32_t scratch[kPrepareThreads / 32];
  if constexpr (kPacked) {
    begin_kernel(KernelOrder::kAfterPrevious);
  } else {
    allow_next_kernel();
  }

  const int thread = static_cast<int>(threadIdx.x);
  if (!kPacked && blockIdx.x == 0 && thread < static_cast<int>(sizeof(Counters) / sizeof(int))) {
    reinterpret_cast<int*>(a.counters)[thread] = 0;
  }
  if (blockIdx.x == 0) choose_screened_heads(a, thread, kPrepareThreads);
  const int threads = static_cast<int>(gridDim.x) * kPrepareThreads;
  for (int i = static_cast<int>(blockIdx.x) * kPrepareThreads + thread; i < a.list_heads; i += threads) {
    a.lists.totals[i] = a.lists_wanted ? 0u : kIncompleteHead;
  }
  if (blockIdx.x == 0 && thread == 0 && a.factors.state != nullptr) {
    *a.factors.state = a.factors.query != nullptr ? kFactorsSaved : 0u;
  }
  if (a.dense_scales) return;
  const int head_of_all = static_cast<int>(blockIdx.x / static_cast<unsigned>(a.key_tiles));  // view, batch, head
  const int slot = static_cast<int>(blockIdx.x) - head_of_all * a.key_tiles;
  const int heads_of_view = a.batch * a.key_heads;
  const int view = head_of_all >= heads_of_view ? 1 : 0;
  const int batch = (head_of_all - view * heads_of_view) / a.key_heads;
  const int head = head_of_all - (view * a.batch + batch) * a.key_heads;
  const KeyBlock<kPacked> own = key_block<kPacked>(a, batch, slot);
  if (kPacked && own.sequence.key_length() == 0) return;
  const Sequence<kPacked>& s = own.sequence;
  const int lane = thread % kLanes;
  const int first_row = own.part * kScreenKeys + thread / kLanes;
  const int rows_left = s.key_length() - first_row;

  const ConstTensor& key = a.k[view];
  const auto* source = static_cast<const Element*>(key.data) + batch * key.batch_stride + head * key.head_stride +
                       (s.first_key() + first_row) * key.row_stride + lane * 8;
  const std::int64_t pass_stride = kRowsPerPass * key.row_stride;
  uint4 raw[kPasses];
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    raw[i] = i * kRowsPerPass < rows_left ? *reinterpret_cast<const uint4*>(source + i * pass_stride)
                                          : make_uint4(0, 0, 0, 0);
  }

  float squares[kPasses];
  std::uint32_t peaks[kPasses];  // pairs
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    const std::uint32_t word[4] = {raw[i].x, raw[i].y, raw[i].z, raw[i].w};
    squares[i] = sum_of_squares<Element>(raw[i]);
    peaks[i] = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) peaks[i] = larger_of_pairs<Element>(peaks[i], word[j] & 0x7fff7fffu);
  }
  const float square = lane_sums<kLanes>(squares, lane);
  const float own_inverse = key_scale(a.normalize, square);
  const int own_row = first_row + lane * kRowsPerPass;
  const bool own_exists = lane * kRowsPerPass < rows_left;
  // Behind a document's end begins the next.
  if (!kPacked || own_exists) {
    a.key_scale[static_cast<std::int64_t>(head_of_all) * scale_pitch<kPacked>(a) + s.first_scale() + own_row] =
        own_inverse;
  }
  if (a.factors.key != nullptr && own_exists) {
    saved_key_factors(a, view, s, head)[own_row] = saved_factor(own_inverse);
  }

  if (!a.screening) return;

  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    const float2 peak = unpack<Element>(peaks[i]);
    largest = fmaxf(largest, fmaxf(peak.x, peak.y) * __shfl_sync(0xffffffffu, own_inverse, i, kLanes));
  }
  largest = block_max(largest, scratch);
  const float largest_norm = a.normalize ? 1.0f : block_max(sqrtf(square), scratch);
  // Keys that are not finite, or beyond what a scale can do, are not screened.
  const bool usable = largest > 1e-20f && largest < 1e30f;
  const bool good = square < __int_as_float(0x7f800000) && (usable || largest == 0.0f);
  const float scale = usable ? 127.0f / largest : 1.0f;

  float errors[kPasses];  // squared, in units of the 8-bit keys
  std::int8_t* copies =
      a.keys8 + (static_cast<std::int64_t>(head_of_all) * a.key_rows + s.first_key() + first_row) * kHeadDim;
  // The even lane holds dims 0..7 of a 16, the odd lane dims 8..15; each writes two of the four permuted words, with
  // two bytes of its own in front of, or behind, two of the other's.
  const bool odd = (lane & 1) != 0;
  copies += (lane >> 1) * 16 + (odd ? 8 : 0);
  const std::uint32_t low_bytes = odd ? 0x1054 : 0x5410, high_bytes = odd ? 0x3276 : 0x7632;
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    const std::uint32_t word[4] = {raw[i].x, raw[i].y, raw[i].z, raw[i].w};
    const float factor = __shfl_sync(0xffffffffu, own_inverse * scale, i, kLanes);
    errors[i] = 0.0f;
    float sum[8];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 pair = unpack<Element>(word[j]);
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const float x = u == 0 ? pair.x : pair.y;
        sum[2 * j + u] = fmaf(x, factor, kRounder);
        const float difference = fmaf(x, factor, kRounder - sum[2 * j + u]);
        errors[i] = fmaf(difference, difference, errors[i]);
      }
    }
    const std::uint32_t first = pack_bytes(sum[0], sum[1], sum[2], sum[3]);
    const std::uint32_t second = pack_bytes(sum[4], sum[5], sum[6], sum[7]);
    const std::uint32_t mine = odd ? second : first;
    const std::uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? first : second, 1);
    if (!kPacked || i * kRowsPerPass < rows_left) {
      *reinterpret_cast<uint2*>(copies + i * kRowsPerPass * kHeadDim) =
          make_uint2(__byte_perm(mine, other, low_bytes), __byte_perm(mine, other, high_bytes));
    }
  }
  const float error = lane_sums<kLanes>(errors, lane);
  const float largest_error = block_max(good ? error : __int_as_float(0x7f800000), scratch);
  if (thread == 0) {
    // Rounded up: fp32 sums of squares and the rounding of the unit keys stay within 1e-4 relative.
    a.key_tile[static_cast<std::int64_t>(head_of_all) * a.key_tiles + slot] =
        KeyTile{sqrtf(largest_error) / scale * 1.0001f, scale, largest_norm * 1.0001f, 0.0f};
  }
}

}  // namespace tda::cuda::sm90
