// Keys for the forward: 1/|k| for the exact scores, and an 8-bit copy of the unit keys with its error for the screen.
//
// Plan. One block of 256 threads per 256 keys of one head and view; a key row is read once, 16 bytes a thread and load,
// all loads in flight before the first use. The 8-bit copy has one scale per 256 keys, which the screen folds into its
// thresholds. Dimensions are permuted inside each 16 (order 2t, 2t+1, 2t+8, 2t+9 for t = 0..3), so that the screen
// packs its 8-bit query fragments from 16-bit ones without moving data between lanes; a dot product does not care.
// It also chooses the heads that are screened, and clears what the other kernels of the chain count and mark; with
// packed documents the counters are in use by then. Cost: reads 2 D, writes D + 4 bytes a key, 8 with an index: bound
// by memory.
#pragma once

#include "attention/cuda/common/kernel_order.cuh"
#include "attention/cuda/sm90/forward/row_formulas.cuh"
#include "attention/cuda/sm90/forward/screen/choice.cuh"
#include "attention/cuda/sm90/forward/sequence.cuh"

namespace tda::cuda::sm90 {

constexpr int kPrepareThreads = 256;

__device__ __forceinline__ float block_max(float value, float* scratch) {
#pragma unroll
  for (int offset = 16; offset > 0; offset >>= 1) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
  __syncthreads();
  if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = value;
  __syncthreads();
  float result = scratch[0];
#pragma unroll
  for (int i = 1; i < kPrepareThreads / 32; ++i) result = fmaxf(result, scratch[i]);
  return result;
}

template <typename Element, int kHeadDim, bool kPacked>
__global__ void __launch_bounds__(kPrepareThreads, kHeadDim == 64 ? 3 : 2)
    prepare_keys(const __grid_constant__ ForwardArguments a) {
  constexpr int kLanes = kHeadDim / 8;  // threads that share a row
  constexpr int kRowsPerPass = kPrepareThreads / kLanes;
  constexpr int kPasses = kScreenKeys / kRowsPerPass;
  __shared__ float scratch[kPrepareThreads / 32];
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
  const int slot = static_cast<int>(blockIdx.x % static_cast<unsigned>(a.key_tiles));
  const int head_of_all = static_cast<int>(blockIdx.x / static_cast<unsigned>(a.key_tiles));  // view, batch, head
  const int view = head_of_all / (a.batch * a.key_heads);
  const int batch = head_of_all / a.key_heads % a.batch;
  const int head = head_of_all % a.key_heads;
  const KeyBlock<kPacked> own = key_block<kPacked>(a, batch, slot);
  if (kPacked && own.sequence.key_length() == 0) return;
  const Sequence<kPacked>& s = own.sequence;
  const ConstTensor& key = a.k[view];
  const auto* keys = static_cast<const Element*>(key.data) + batch * key.batch_stride + head * key.head_stride +
                     s.first_key() * key.row_stride;
  const int lane = thread % kLanes;
  const int first_row = own.part * kScreenKeys + thread / kLanes;

  uint4 raw[kPasses];
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    const int row = first_row + i * kRowsPerPass;
    raw[i] = row < s.key_length() ? *reinterpret_cast<const uint4*>(keys + row * key.row_stride + lane * 8)
                                  : make_uint4(0, 0, 0, 0);
  }

  float inverse[kPasses];
  float largest = 0.0f;
  float largest_norm = a.normalize ? 1.0f : 0.0f;
  bool finite = true;
  // Behind a document's end begins the next.
  const auto is_writable = [&](int row) { return !kPacked || row < s.key_length(); };
  float* scales = a.key_scale + static_cast<std::int64_t>(head_of_all) * scale_pitch<kPacked>(a) + s.first_scale();
  float* const saved = saved_key_factors(a, view, s, head);
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    const std::uint32_t word[4] = {raw[i].x, raw[i].y, raw[i].z, raw[i].w};
    float square = 0.0f;
    float peak = 0.0f;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 x = unpack<Element>(word[j]);
      square += x.x * x.x + x.y * x.y;
      peak = fmaxf(peak, fmaxf(fabsf(x.x), fabsf(x.y)));
    }
#pragma unroll
    for (int offset = 1; offset < kLanes; offset <<= 1) square += __shfl_xor_sync(0xffffffffu, square, offset);
    finite = finite && square < __int_as_float(0x7f800000);
    inverse[i] = !a.normalize ? 1.0f : square < 1e-24f ? 1e12f : rsqrtf(square);
    if (!a.normalize) largest_norm = fmaxf(largest_norm, sqrtf(square));
    largest = fmaxf(largest, peak * inverse[i]);
    const int row = first_row + i * kRowsPerPass;
    if (lane == 0 && is_writable(row)) scales[row] = inverse[i];
    if (a.factors.key != nullptr && lane == 0 && row < s.key_length()) saved[row] = saved_factor(inverse[i]);
  }
  largest = block_max(largest, scratch);
  if (!a.normalize) largest_norm = block_max(largest_norm, scratch);
  const bool usable = largest > 0.0f && largest < 1e30f;
  const float scale = usable ? 127.0f / largest : 1.0f;
  const float unit = usable ? largest / 127.0f : 1.0f;

  float largest_error = 0.0f;
  std::int8_t* copies =
      a.keys8 + (static_cast<std::int64_t>(head_of_all) * a.key_rows + s.first_key() + first_row) * kHeadDim;
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    const std::uint32_t word[4] = {raw[i].x, raw[i].y, raw[i].z, raw[i].w};
    float error = 0.0f;
    float sum[8];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 raw_pair = unpack<Element>(word[j]);
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const float x = (u == 0 ? raw_pair.x : raw_pair.y) * inverse[i];
        sum[2 * j + u] = fmaf(x, scale, kRounder);
        const float difference = fmaf(kRounder - sum[2 * j + u], unit, x);
        error = fmaf(difference, difference, error);
      }
    }
#pragma unroll
    for (int offset = 1; offset < kLanes; offset <<= 1) error += __shfl_xor_sync(0xffffffffu, error, offset);
    largest_error = fmaxf(largest_error, error);
    // The even lane holds dims 0..7 of a 16, the odd lane dims 8..15; each writes two of the four permuted words.
    const bool odd = (lane & 1) != 0;
    const std::uint32_t first = pack_bytes(sum[0], sum[1], sum[2], sum[3]);
    const std::uint32_t second = pack_bytes(sum[4], sum[5], sum[6], sum[7]);
    const std::uint32_t other = __shfl_xor_sync(0xffffffffu, odd ? first : second, 1);
    const std::uint32_t from_even = odd ? other : first;
    const std::uint32_t from_odd = odd ? second : other;
    const uint2 permuted =
        make_uint2((from_even & 0xffffu) | (from_odd << 16), (from_even >> 16) | (from_odd & 0xffff0000u));
    if (!is_writable(first_row + i * kRowsPerPass)) continue;
    *reinterpret_cast<uint2*>(copies + static_cast<std::int64_t>(i) * kRowsPerPass * kHeadDim + (lane >> 1) * 16 +
                              (odd ? 8 : 0)) = permuted;
  }
  largest_error = block_max(finite ? largest_error : __int_as_float(0x7f800000), scratch);
  if (thread == 0) {
    // Rounded up: fp32 sums of squares and the rounding of the unit keys stay within 1e-4 relative.
    a.key_tile[static_cast<std::int64_t>(head_of_all) * a.key_tiles + slot] =
        KeyTile{sqrtf(largest_error) * 1.0001f, scale, largest_norm * 1.0001f, 0.0f};
  }
}

}  // namespace tda::cuda::sm90
