// Operand layouts of the bf16 engines (bf16_engine.h) with AVX-512, shared by both. Callers have checked the CPU.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__)
#define TDA_HAS_BF16_ENGINES 1
// Attributes on functions rather than flags on files: an inline function of a header, compiled for AVX-512, could
// otherwise be the copy that the linker keeps for the whole program.
#define TDA_TARGET_AVX512_BF16 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))

#include <cstddef>
#include <cstdint>

namespace tda::cpu {

bool cpu_has_avx512_bf16();

void transpose_words(const std::uint32_t* from, std::ptrdiff_t from_stride, int columns16, std::uint32_t* to,
                     std::ptrdiff_t to_stride);
void pair_bf16_rows(const std::uint16_t* from, std::ptrdiff_t from_stride, int pairs, int columns16, std::uint32_t* to,
                    std::ptrdiff_t to_stride);
void pair_fp32_rows(const float* from, int pairs, std::uint32_t* to);
void round_fp32_tile(const float* from, std::uint16_t* to);

}  // namespace tda::cpu
#endif
