#include "attention/cpu/eight_bit_screen.h"

#include <cmath>

#include "attention/cpu/bf16_layout.h"

#ifdef TDA_HAS_BF16_ENGINES
// GCC 12 reports the deliberately undefined operands inside its own intrinsics (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

namespace tda::cpu {
namespace {

// Which of 32 elements from `column` on exist.
__mmask32 existing(int column, int dim) {
  const int rest = dim - column;
  return rest >= 32 ? 0xFFFFFFFFu : rest <= 0 ? 0 : (1u << rest) - 1;
}

TDA_TARGET_AVX512_BF16 inline __m512 lower_half(__m512i bf16) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(bf16)), 16));
}
TDA_TARGET_AVX512_BF16 inline __m512 upper_half(__m512i bf16) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(bf16, 1)), 16));
}

}  // namespace

TDA_TARGET_AVX512_BF16 float largest_unit_element(const std::uint16_t* rows, std::ptrdiff_t stride, int count, int dim,
                                                  const float* inverse) {
  const __mmask32 first = existing(0, dim), second = existing(32, dim);
  const __m512i magnitude = _mm512_set1_epi16(0x7FFF);
  __m512 largest = _mm512_setzero_ps();
  for (int r = 0; r < count; ++r, rows += stride) {
    // Magnitudes of bf16 are in the order of their bits.
    const __m512i row = _mm512_max_epu16(_mm512_and_si512(_mm512_maskz_loadu_epi16(first, rows), magnitude),
                                         _mm512_and_si512(_mm512_maskz_loadu_epi16(second, rows + 32), magnitude));
    const __m512 element = _mm512_max_ps(lower_half(row), upper_half(row));
    largest = _mm512_max_ps(_mm512_mul_ps(element, _mm512_set1_ps(inverse[r])), largest);
  }
  return _mm512_reduce_max_ps(largest);
}

TDA_TARGET_AVX512_BF16 void round_to_bytes(const std::uint16_t* rows, std::ptrdiff_t stride, int count, int dim,
                                           const float* factor, std::int8_t* to) {
  const __mmask32 first = existing(0, dim), second = existing(32, dim);
  for (int r = 0; r < count; ++r, rows += stride, to += kScreenDim) {
    const __m512 f = _mm512_set1_ps(factor[r]);
    const __m512i low = _mm512_maskz_loadu_epi16(first, rows), high = _mm512_maskz_loadu_epi16(second, rows + 32);
    const __m512i words0 = _mm512_packs_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(lower_half(low), f)),
                                              _mm512_cvtps_epi32(_mm512_mul_ps(upper_half(low), f)));
    const __m512i words1 = _mm512_packs_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(lower_half(high), f)),
                                              _mm512_cvtps_epi32(_mm512_mul_ps(upper_half(high), f)));
    _mm512_storeu_si512(to, _mm512_packs_epi16(words0, words1));
  }
}

TDA_TARGET_AVX512_BF16 void screen_bounds(const float* tau, const float* query_step, int count, float key_step, int dim,
                                          std::int32_t* bound) {
  const float half_root = 0.5f * std::sqrt(static_cast<float>(dim)), key_error = half_root * key_step;
  // The last term covers the fp32 arithmetic of both sides and of this bound.
  const __m512 fixed = _mm512_set1_ps(key_error + 2e-5f);
  const __m512 error_per_step = _mm512_set1_ps(half_root * (1.0f + key_error));
  const __m512 largest = _mm512_set1_ps(2.0e9f), smallest = _mm512_set1_ps(-2.0e9f);
  for (int lane = 0; lane < 64; lane += 16) {
    const __m512 step = _mm512_loadu_ps(query_step + lane);
    const __m512 margin = _mm512_fmadd_ps(step, error_per_step, fixed);
    const __m512 quotient = _mm512_div_ps(_mm512_sub_ps(_mm512_loadu_ps(tau + lane), margin),
                                          _mm512_mul_ps(step, _mm512_set1_ps(key_step)));
    // Lower by one, because the quotient is rounded. Where it is NaN, nothing is proved: a maximum keeps its second
    // operand then.
    const __m512 lower = _mm512_max_ps(_mm512_sub_ps(quotient, _mm512_set1_ps(1.0f)), smallest);
    const __m512i rounded =
        _mm512_cvt_roundps_epi32(_mm512_min_ps(lower, largest), _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    const int rest = count - lane;
    const __mmask16 exist = rest >= 16 ? 0xFFFF : rest <= 0 ? 0 : static_cast<__mmask16>((1u << rest) - 1);
    _mm512_storeu_si512(bound + lane, _mm512_mask_mov_epi32(_mm512_set1_epi32(0x7FFFFFFF), exist, rounded));
  }
}

}  // namespace tda::cpu
#else
// No engine, no screening: never called.
namespace tda::cpu {
float largest_unit_element(const std::uint16_t*, std::ptrdiff_t, int, int, const float*) { return 0.0f; }
void round_to_bytes(const std::uint16_t*, std::ptrdiff_t, int, int, const float*, std::int8_t*) {}
void screen_bounds(const float*, const float*, int, float, int, std::int32_t*) {}
}  // namespace tda::cpu
#endif
