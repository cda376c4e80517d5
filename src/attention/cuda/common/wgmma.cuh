// Warpgroup matrix products (wgmma) with the shapes that the kernels use, and the descriptors of their shared operands.
//
// 128 threads of a warpgroup multiply a 64-row A by a B of kColumns columns. Thread t of the warpgroup (warp w = t /
// 32, g = (t % 32) / 4, c = t % 4) holds, of a 64 x N accumulator, d[4 n + 2 h + e] = row 16 w + g + 8 h, column 8 n +
// 2 c + e. An accumulator of 16 columns, packed in pairs, is exactly the A fragment of a following product over those
// 16 columns.
//
// Use: wgmma_fence(), products, wgmma_commit(), wgmma_wait<0>(). hold(d) keeps the compiler from moving accesses to an
// accumulator across these points; put one before the fence and one after the wait.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace tda::cuda {

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

template <int kSize>
__device__ __forceinline__ void hold(float (&d)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

template <int kSize>
__device__ __forceinline__ void hold(std::int32_t (&d)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+r"(d[i])::"memory");
}

template <int kSize>
__device__ __forceinline__ void hold(std::uint32_t (&d)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+r"(d[i])::"memory");
}

// Descriptor of a K-major tile with swizzled rows of kRowBytes bytes (the swizzle equals the row). The next 32 bytes
// along K are at descriptor + 2.
template <int kRowBytes>
__device__ __forceinline__ std::uint64_t k_major_descriptor(std::uint32_t address) {
  static_assert(kRowBytes == 64 || kRowBytes == 128);
  const std::uint64_t eight_rows = (8 * kRowBytes) >> 4;
  const std::uint64_t layout = kRowBytes == 128 ? 1 : 2;
  return ((address & 0x3FFFF) >> 4) | (std::uint64_t{1} << 16) | (eight_rows << 32) | (layout << 62);
}

// Descriptor of an MN-major tile: rows are keys (the reduction), 64 16-bit columns in 128 swizzled bytes; further
// columns lie `column_block_bytes` away. The next 16 keys are at descriptor + 128 (2048 bytes).
__device__ __forceinline__ std::uint64_t mn_major_descriptor(std::uint32_t address, std::uint32_t column_block_bytes) {
  const std::uint64_t eight_rows = 1024 >> 4;
  return ((address & 0x3FFFF) >> 4) | (std::uint64_t{(column_block_bytes & 0x3FFFF) >> 4} << 16) | (eight_rows << 32) |
         (std::uint64_t{1} << 62);
}

#define TDA_8(f, d, i) \
  f(d[i]), f(d[i + 1]), f(d[i + 2]), f(d[i + 3]), f(d[i + 4]), f(d[i + 5]), f(d[i + 6]), f(d[i + 7])
#define TDA_32(f, d, i) TDA_8(f, d, i), TDA_8(f, d, i + 8), TDA_8(f, d, i + 16), TDA_8(f, d, i + 24)
#define TDA_FLOAT(x) "+f"(x)
#define TDA_FLOAT_RESULT(x) "=f"(x)
#define TDA_INT(x) "+r"(x)
#define TDA_DATA_128 TDA_32(TDA_FLOAT, d, 0), TDA_32(TDA_FLOAT, d, 32)
#define TDA_LIST_64                                                                                       \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31} "
#define TDA_LIST_128                                                                                      \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "  \
  "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "  \
  "%62, %63} "

// A product that does not accumulate must not depend on what the registers held: ptxas would otherwise wait for whoever
// wrote them.
#define TDA_WGMMA_64_REGISTERS(type, data)                                        \
  asm volatile(                                                                   \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"                                \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " " TDA_LIST_64 \
      ", {%32, %33, %34, %35}, %36, p, 1, 1, %38;\n}\n"                           \
      : TDA_32(data, d, 0)                                                        \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kAccumulate ? 1 : 0), "n"(kTransposedB ? 1 : 0))

#define TDA_WGMMA_64_SHARED(type, data)                                                                             \
  asm volatile(                                                                                                     \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"                                                                  \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " " TDA_LIST_64 ", %32, %33, p, 1, 1, 0, 0;\n}\n" \
      : TDA_32(data, d, 0)                                                                                          \
      : "l"(a), "l"(b), "n"(kAccumulate ? 1 : 0))

#define TDA_WGMMA_64_TRANSPOSED(type)                                                                               \
  asm volatile(                                                                                                     \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"                                                                  \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " " TDA_LIST_64 ", %32, %33, p, 1, 1, 1, 1;\n}\n" \
      : TDA_32(TDA_FLOAT, d, 0)                                                                                     \
      : "l"(a), "l"(b), "r"(static_cast<std::uint32_t>(accumulates)))

#define TDA_WGMMA_128_REGISTERS(type)                                               \
  asm volatile(                                                                     \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"                                  \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " " TDA_LIST_128 \
      ", {%64, %65, %66, %67}, %68, p, 1, 1, %70;\n}\n"                             \
      : TDA_DATA_128                                                                \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kAccumulate ? 1 : 0), "n"(kTransposedB ? 1 : 0))

// d (+)= A B over 16 of the reduction; A from registers; B K-major, or MN-major with kTransposedB.
template <typename Element, bool kAccumulate, bool kTransposedB, int kSize>
__device__ __forceinline__ void wgmma(float (&d)[kSize], const std::uint32_t (&a)[4], std::uint64_t b) {
  static_assert(kSize == 32 || kSize == 64);
  constexpr bool kBFloat16 = std::is_same_v<Element, __nv_bfloat16>;
  if constexpr (kSize == 32 && kBFloat16 && kAccumulate) TDA_WGMMA_64_REGISTERS("bf16", TDA_FLOAT);
  if constexpr (kSize == 32 && kBFloat16 && !kAccumulate) TDA_WGMMA_64_REGISTERS("bf16", TDA_FLOAT_RESULT);
  if constexpr (kSize == 32 && !kBFloat16 && kAccumulate) TDA_WGMMA_64_REGISTERS("f16", TDA_FLOAT);
  if constexpr (kSize == 32 && !kBFloat16 && !kAccumulate) TDA_WGMMA_64_REGISTERS("f16", TDA_FLOAT_RESULT);
  if constexpr (kSize == 64 && std::is_same_v<Element, __nv_bfloat16>) TDA_WGMMA_128_REGISTERS("bf16");
  if constexpr (kSize == 64 && std::is_same_v<Element, __half>) TDA_WGMMA_128_REGISTERS("f16");
}

// The same with a K-major A in shared memory, a K-major B and 64 columns.
template <typename Element, bool kAccumulate>
__device__ __forceinline__ void wgmma(float (&d)[32], std::uint64_t a, std::uint64_t b) {
  constexpr bool kBFloat16 = std::is_same_v<Element, __nv_bfloat16>;
  if constexpr (kBFloat16 && kAccumulate) TDA_WGMMA_64_SHARED("bf16", TDA_FLOAT);
  if constexpr (kBFloat16 && !kAccumulate) TDA_WGMMA_64_SHARED("bf16", TDA_FLOAT_RESULT);
  if constexpr (!kBFloat16 && kAccumulate) TDA_WGMMA_64_SHARED("f16", TDA_FLOAT);
  if constexpr (!kBFloat16 && !kAccumulate) TDA_WGMMA_64_SHARED("f16", TDA_FLOAT_RESULT);
}

// d (+)= A B over 16 of the reduction; A and B both from shared memory and MN-major, 64 rows and 64 columns.
template <typename Element>
__device__ __forceinline__ void wgmma_transposed(float (&d)[32], std::uint64_t a, std::uint64_t b, bool accumulates) {
  if constexpr (std::is_same_v<Element, __nv_bfloat16>) TDA_WGMMA_64_TRANSPOSED("bf16");
  if constexpr (std::is_same_v<Element, __half>) TDA_WGMMA_64_TRANSPOSED("f16");
}

// d (+)= A B over 32 of the reduction, signed 8-bit integers, exact 32-bit sums, 128 columns.
template <bool kAccumulate>
__device__ __forceinline__ void wgmma_int8(std::int32_t (&d)[64], const std::uint32_t (&a)[4], std::uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %69, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8 " TDA_LIST_128 ", {%64, %65, %66, %67}, %68, p;\n}\n"
      : TDA_32(TDA_INT, d, 0), TDA_32(TDA_INT, d, 32)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kAccumulate ? 1 : 0));
}

#undef TDA_WGMMA_64_REGISTERS
#undef TDA_WGMMA_64_SHARED
#undef TDA_WGMMA_64_TRANSPOSED
#undef TDA_WGMMA_128_REGISTERS
#undef TDA_LIST_64
#undef TDA_LIST_128
#undef TDA_DATA_128
#undef TDA_FLOAT
#undef TDA_FLOAT_RESULT
#undef TDA_INT
#undef TDA_32
#undef TDA_8

}  // namespace tda::cuda
