#include "attention/cpu/bf16_layout.h"

#ifdef TDA_HAS_BF16_ENGINES
#include <cpuid.h>
// GCC 12 reports the deliberately undefined operands inside its own intrinsics (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

namespace tda::cpu {

bool cpu_has_avx512_bf16() {
  // The builtin also checks that the operating system saves the wide registers.
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq")) {
    return false;
  }
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 5 & 1) != 0;
}

namespace {

// Transposes 16 x 16 words: exchanges inside 128-bit lanes first, then whole lanes.
TDA_TARGET_AVX512_BF16 void transpose16(const std::uint32_t* from, std::ptrdiff_t from_stride, std::uint32_t* to,
                                        std::ptrdiff_t to_stride) {
  __m512i row[16], mixed[16];
  for (int i = 0; i < 16; ++i) row[i] = _mm512_loadu_si512(from + i * from_stride);
  for (int i = 0; i < 8; ++i) {
    mixed[2 * i] = _mm512_unpacklo_epi32(row[2 * i], row[2 * i + 1]);
    mixed[2 * i + 1] = _mm512_unpackhi_epi32(row[2 * i], row[2 * i + 1]);
  }
  for (int i = 0; i < 4; ++i) {
    row[4 * i] = _mm512_unpacklo_epi64(mixed[4 * i], mixed[4 * i + 2]);
    row[4 * i + 1] = _mm512_unpackhi_epi64(mixed[4 * i], mixed[4 * i + 2]);
    row[4 * i + 2] = _mm512_unpacklo_epi64(mixed[4 * i + 1], mixed[4 * i + 3]);
    row[4 * i + 3] = _mm512_unpackhi_epi64(mixed[4 * i + 1], mixed[4 * i + 3]);
  }
  // row[4 b + c] now holds, in lane l, column 4 l + c of rows 4 b .. 4 b + 3.
  for (int c = 0; c < 4; ++c) {
    const __m512i even01 = _mm512_shuffle_i32x4(row[c], row[4 + c], 0x88);
    const __m512i odd01 = _mm512_shuffle_i32x4(row[c], row[4 + c], 0xDD);
    const __m512i even23 = _mm512_shuffle_i32x4(row[8 + c], row[12 + c], 0x88);
    const __m512i odd23 = _mm512_shuffle_i32x4(row[8 + c], row[12 + c], 0xDD);
    _mm512_storeu_si512(to + (0 + c) * to_stride, _mm512_shuffle_i32x4(even01, even23, 0x88));
    _mm512_storeu_si512(to + (4 + c) * to_stride, _mm512_shuffle_i32x4(odd01, odd23, 0x88));
    _mm512_storeu_si512(to + (8 + c) * to_stride, _mm512_shuffle_i32x4(even01, even23, 0xDD));
    _mm512_storeu_si512(to + (12 + c) * to_stride, _mm512_shuffle_i32x4(odd01, odd23, 0xDD));
  }
}

}  // namespace

void transpose_words(const std::uint32_t* from, std::ptrdiff_t from_stride, int columns16, std::uint32_t* to,
                     std::ptrdiff_t to_stride) {
  for (int c = 0; c < columns16; ++c) transpose16(from + 16 * c, from_stride, to + 16 * c * to_stride, to_stride);
}

TDA_TARGET_AVX512_BF16 void pair_bf16_rows(const std::uint16_t* from, std::ptrdiff_t from_stride, int pairs,
                                           int columns16, std::uint32_t* to, std::ptrdiff_t to_stride) {
  for (int p = 0; p < pairs; ++p, from += 2 * from_stride, to += to_stride) {
    for (int c = 0; c < 16 * columns16; c += 16) {
      const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + c));
      const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + from_stride + c));
      _mm512_storeu_si512(
          to + c, _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16)));
    }
  }
}

TDA_TARGET_AVX512_BF16 void pair_fp32_rows(const float* from, int pairs, std::uint32_t* to) {
  const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
                                              6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  for (int p = 0; p < pairs; ++p, from += 128, to += 64) {
    for (int c = 0; c < 64; c += 16) {
      const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + 64 + c), _mm512_loadu_ps(from + c));
      _mm512_storeu_si512(to + c, _mm512_permutexvar_epi16(interleave, (__m512i)both));
    }
  }
}

TDA_TARGET_AVX512_BF16 void round_fp32_tile(const float* from, std::uint16_t* to) {
  for (int i = 0; i < 64 * 64; i += 32) {
    _mm512_storeu_si512(to + i,
                        (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + i + 16), _mm512_loadu_ps(from + i)));
  }
}

}  // namespace tda::cpu
#endif
