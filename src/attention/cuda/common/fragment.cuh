// 16-bit element types and the register fragments that warps hold of them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace tda::cuda {

// Four 8 x 8 matrices of 16-bit elements: lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(std::uint32_t address, std::uint32_t (&fragment)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(address)
               : "memory");
}

// The inverse of load_matrices.
__device__ __forceinline__ void store_matrices(std::uint32_t address, const std::uint32_t (&fragment)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(fragment[0]),
               "r"(fragment[1]), "r"(fragment[2]), "r"(fragment[3])
               : "memory");
}

__device__ __forceinline__ float2 load_shared_float2(std::uint32_t address) {
  float2 value;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(value.x), "=f"(value.y) : "r"(address));
  return value;
}

__device__ __forceinline__ float4 load_shared_float4(std::uint32_t address) {
  float4 value;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
               : "r"(address));
  return value;
}

__device__ __forceinline__ uint4 load_shared_uint4(std::uint32_t address) {
  uint4 value;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(address));
  return value;
}

__device__ __forceinline__ void store_shared_float(std::uint32_t address, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}

template <typename Element>
__device__ __forceinline__ float2 unpack(std::uint32_t pair) {
  if constexpr (std::is_same_v<Element, __nv_bfloat16>) {
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
  } else {
    __half2 value;
    memcpy(&value, &pair, sizeof(pair));
    return __half22float2(value);
  }
}

// Rounds two floats to nearest even; `low` goes to the lower half.
template <typename Element>
__device__ __forceinline__ std::uint32_t pack(float low, float high) {
  std::uint32_t pair;
  if constexpr (std::is_same_v<Element, __nv_bfloat16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
}

// As pack, with negative values replaced by 0; NaN stays NaN.
template <typename Element>
__device__ __forceinline__ std::uint32_t pack_positive(float low, float high) {
  std::uint32_t pair;
  if constexpr (std::is_same_v<Element, __nv_bfloat16>) {
    asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
}

// Two elements times a power of two.
template <typename Element>
__device__ __forceinline__ std::uint32_t scale_pair(std::uint32_t pair, float power_of_two) {
  if constexpr (std::is_same_v<Element, __nv_bfloat16>) {  // which has the exponents of a float
    std::uint32_t product;
    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(pair), "r"(pack<Element>(power_of_two, power_of_two)));
    return product;
  } else {
    const float2 x = unpack<Element>(pair);
    return pack<Element>(x.x * power_of_two, x.y * power_of_two);
  }
}

// The larger of each of two elements; of a number and a NaN the number.
template <typename Element>
__device__ __forceinline__ std::uint32_t larger_of_pairs(std::uint32_t x, std::uint32_t y) {
  std::uint32_t pair;
  if constexpr (std::is_same_v<Element, __nv_bfloat16>) {
    asm("max.bf16x2 %0, %1, %2;" : "=r"(pair) : "r"(x), "r"(y));
  } else {
    asm("max.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(x), "r"(y));
  }
  return pair;
}

// max(x, 0) that keeps NaN.
__device__ __forceinline__ float positive_part(float x) {
  float result;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(result) : "f"(x));
  return result;
}

// Rounding to integers without the slow conversion instructions: for |x| < 2^22, x + kRounder holds round(x) in its low
// bits, in two's complement; subtract kRounder for the rounded float.
constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23
constexpr int kRounderBits = 0x4b400000;

// The low bytes of four such sums, first in the lowest byte.
__device__ __forceinline__ std::uint32_t pack_bytes(float a, float b, float c, float d) {
  const std::uint32_t low = __byte_perm(__float_as_uint(a), __float_as_uint(b), 0x0040);
  const std::uint32_t high = __byte_perm(__float_as_uint(c), __float_as_uint(d), 0x0040);
  return __byte_perm(low, high, 0x5410);
}

// `x`, which all lanes of the warp must hold, in a form that the compiler knows to be the same in all of them: loops
// that depend on it and addresses made of it then use uniform registers, from which products take their descriptors.
template <typename T>
__device__ __forceinline__ T uniform(T x) {
  return __shfl_sync(0xffffffffu, x, 0);
}

// Sum over the four lanes that share a row of an accumulator.
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// 4 x 4 transpose inside a quad: lane t gives words 0..3 and leaves with word t of lanes 0..3.
__device__ __forceinline__ void quad_transpose(std::uint32_t (&word)[4], int t) {
  const bool odd = (t & 1) != 0;
  const bool upper = (t & 2) != 0;
  std::uint32_t received = __shfl_xor_sync(0xffffffffu, odd ? word[0] : word[1], 1);
  if (odd) {
    word[0] = received;
  } else {
    word[1] = received;
  }
  received = __shfl_xor_sync(0xffffffffu, odd ? word[2] : word[3], 1);
  if (odd) {
    word[2] = received;
  } else {
    word[3] = received;
  }
  received = __shfl_xor_sync(0xffffffffu, upper ? word[0] : word[2], 2);
  if (upper) {
    word[0] = received;
  } else {
    word[2] = received;
  }
  received = __shfl_xor_sync(0xffffffffu, upper ? word[1] : word[3], 2);
  if (upper) {
    word[1] = received;
  } else {
    word[3] = received;
  }
}

// Stores one row of an accumulator (64 or 128 columns, scaled) as 16-byte words. `half` picks row g or g + 8.
template <typename Element, int kSize>
__device__ __forceinline__ void store_row(Element* row, const float (&d)[kSize], int half, float scale,
                                          int lane_in_quad, bool inside) {
#pragma unroll
  for (int block = 0; block < kSize / 16; ++block) {
    std::uint32_t word[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int n = (block * 4 + i) * 4;
      const float low = half != 0 ? d[n + 2] : d[n];
      const float high = half != 0 ? d[n + 3] : d[n + 1];
      word[i] = pack<Element>(low * scale, high * scale);
    }
    quad_transpose(word, lane_in_quad);
    if (inside) {
      *reinterpret_cast<uint4*>(row + (block * 4 + lane_in_quad) * 8) = make_uint4(word[0], word[1], word[2], word[3]);
    }
  }
}

}  // namespace tda::cuda
