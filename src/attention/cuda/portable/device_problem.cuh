// What every portable kernel is told about a call, and the arithmetic of the definition (tda/attention.h) on the
// device.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <math_constants.h>

#include "attention/cuda/portable/problem.h"

namespace tda::cuda::portable {

// One batch element or one packed document.
struct Sequence {
  std::int64_t batch;                   // index for batch strides
  std::int64_t first_query, first_key;  // first rows within the tensors
  std::int64_t flat_query, flat_key;    // the same as flat rows
  std::int64_t first_row_tile;          // in the survivor index
  int query_length, key_length;
};

template <bool PACKED>
__device__ __forceinline__ Sequence sequence_of(const Problem& p, std::int64_t index) {
  Sequence s;
  if constexpr (PACKED) {
    s.batch = 0;
    s.first_query = p.query_offsets[index];
    s.first_key = p.key_offsets[index];
    s.query_length = static_cast<int>(p.query_offsets[index + 1] - s.first_query);
    s.key_length = static_cast<int>(p.key_offsets[index + 1] - s.first_key);
    s.flat_query = s.first_query;
    s.flat_key = s.first_key;
  } else {
    s.batch = index;
    s.first_query = s.first_key = 0;
    s.query_length = static_cast<int>(p.shape.query_length);
    s.key_length = static_cast<int>(p.shape.key_length);
    s.flat_query = index * p.shape.query_length;
    s.flat_key = index * p.shape.key_length;
  }
  s.first_row_tile = SurvivorIndexLayout::first_row_tile(PACKED, index, s.first_query, p.shape.query_length);
  return s;
}

__device__ inline Sequence sequence_at(const Problem& p, std::int64_t index) {
  return p.query_offsets ? sequence_of<true>(p, index) : sequence_of<false>(p, index);
}

// Which (tile, head, sequence) a block works on. Tiles vary slowest, so that the caller can start with the heaviest.
struct BlockTask {
  std::int64_t tile, sequence;
  int head;
};

__device__ inline BlockTask block_task(std::int64_t block, std::int64_t heads, std::int64_t sequences) {
  const std::int64_t head_and_sequence = block % (heads * sequences);
  return {block / (heads * sequences), head_and_sequence / heads, static_cast<int>(head_and_sequence % heads)};
}

// Start of row `row` of (batch, head), in elements.
template <class AnyTensor>
__device__ std::int64_t row_offset(const AnyTensor& t, std::int64_t batch, std::int64_t head, std::int64_t row) {
  return batch * t.batch_stride + head * t.head_stride + row * t.row_stride;
}

__device__ inline float load_element(DataType type, const void* data, std::int64_t offset) {
  if (type == DataType::kFloat32) return static_cast<const float*>(data)[offset];
  if (type == DataType::kBFloat16) return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[offset]);
  return __half2float(static_cast<const __half*>(data)[offset]);
}

__device__ inline void store_element(DataType type, void* data, std::int64_t offset, float value) {
  if (type == DataType::kFloat32) {
    static_cast<float*>(data)[offset] = value;
  } else if (type == DataType::kBFloat16) {
    static_cast<__nv_bfloat16*>(data)[offset] = __float2bfloat16_rn(value);
  } else {
    static_cast<__half*>(data)[offset] = __float2half_rn(value);
  }
}

// Elements offset .. offset + 3 of which `count` exist (the rest are 0). `vector`: the address is aligned to four
// elements.
__device__ inline float4 load_four(DataType type, const void* data, std::int64_t offset, int count, bool vector) {
  if (vector && count >= 4) {
    if (type == DataType::kFloat32) return *reinterpret_cast<const float4*>(static_cast<const float*>(data) + offset);
    const uint2 raw = *reinterpret_cast<const uint2*>(static_cast<const std::uint16_t*>(data) + offset);
    float2 low, high;
    if (type == DataType::kBFloat16) {
      low = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&raw.x));
      high = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(&raw.y));
    } else {
      low = __half22float2(*reinterpret_cast<const __half2*>(&raw.x));
      high = __half22float2(*reinterpret_cast<const __half2*>(&raw.y));
    }
    return make_float4(low.x, low.y, high.x, high.y);
  }
  float4 result = make_float4(0.f, 0.f, 0.f, 0.f);
  if (count > 0) result.x = load_element(type, data, offset);
  if (count > 1) result.y = load_element(type, data, offset + 1);
  if (count > 2) result.z = load_element(type, data, offset + 2);
  if (count > 3) result.w = load_element(type, data, offset + 3);
  return result;
}

// x times a factor given in two pieces.
__device__ inline float4 scaled(float4 x, float high, float low) {
  return make_float4(fmaf(x.x, high, x.x * low), fmaf(x.y, high, x.y * low), fmaf(x.z, high, x.z * low),
                     fmaf(x.w, high, x.w * low));
}

// Whether the 16-bit kernels can use a row with this factor as it is: their products of raw rows must not overflow, and
// g / |x| must keep its digits in 16 bits. Zero vectors (factor 1e12, taken for 0 in products) and rows that are not
// finite are dropped from products.
__device__ inline bool is_regular(const Problem& p, float factor) {
  if (!p.normalize || factor != factor || factor >= 1e12f || factor == 0.f) return true;
  return p.type == DataType::kFloat16 ? factor > 0x1p-10f && factor < 0x1p8f : factor > 0x1p-50f && factor < 0x1p50f;
}

// c_n of the absolute position n.
__device__ inline double threshold_scale(const Problem& p, std::int64_t position) {
  const double log_ratio = log(static_cast<double>(position + 1) / p.kappa);
  return sqrt(2.0 * fmax(0.0, log_ratio) / static_cast<double>(p.shape.head_dim));
}

// tau in two pieces: a score near tau loses all but its last bits in s - tau, so tau's own rounding would show.
struct Threshold {
  float high, low;
};

__device__ inline Threshold threshold_at(float beta, double scale) {
  const double tau = static_cast<double>(beta) * scale;
  const float high = static_cast<float>(tau);
  return {high, static_cast<float>(tau - static_cast<double>(high))};
}

// For rows that do not exist: nothing survives.
__device__ inline Threshold unreachable_threshold() { return {CUDART_INF_F, 0.f}; }

// s - tau.
__device__ inline float excess(float score, Threshold tau) { return (score - tau.high) - tau.low; }

__device__ inline float load_beta(const Problem& p, int head) { return static_cast<const float*>(p.inputs.beta)[head]; }

// lambda clamped to [0, 1]; a NaN stays NaN.
__device__ inline float clamped_lambda(const Problem& p, int head) {
  const float value = static_cast<const float*>(p.inputs.lambda)[head];
  return value < 0.f ? 0.f : value > 1.f ? 1.f : value;
}

// r^e for r > 0 or NaN. Out of line: inlined for every pair of a tile, the code would outgrow the instruction cache.
__device__ __noinline__ inline float general_power(float r, float e) {
  if (e == 0.5f) return sqrtf(r);
  if (e == 1.5f) return r * sqrtf(r);
  if (e == 2.f) return r * r;
  if (e == 3.f) return r * r * r;
  return powf(r, e);
}

// r^p for r > 0 or NaN.
__device__ inline float weight(float r, float power) {
  if (power == 2.f) return r * r;
  if (power == 1.f) return r;
  return general_power(r, power);
}

// p r^(p-1) for r > 0 or NaN; a NaN stays NaN for p = 1 as well.
__device__ inline float weight_derivative(float r, float power) {
  if (power == 2.f) return 2.f * r;
  if (power == 1.f) return r != r ? r : 1.f;
  return power * general_power(r, power - 1.f);
}

// The same for kernels with an instance of their own for p = 2: there no call interrupts the code, so that registers
// need not be saved around it.
template <bool SQUARE>
__device__ __forceinline__ float weight_of(float r, float power) {
  return SQUARE ? r * r : weight(r, power);
}
template <bool SQUARE>
__device__ __forceinline__ float weight_derivative_of(float r, float power) {
  return SQUARE ? 2.f * r : weight_derivative(r, power);
}

// A pair with the excess s - tau has a weight: s > tau, or s is NaN.
__device__ inline bool survives(float excess) { return !(excess <= 0.f); }

}  // namespace tda::cuda::portable
