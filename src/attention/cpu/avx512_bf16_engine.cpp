// bf16 products with the AVX-512 dot-product instruction, for CPUs with AVX512_BF16 and no AMX.
#include <cstring>

#include "attention/cpu/bf16_engine.h"
#include "attention/cpu/bf16_layout.h"

#ifdef TDA_HAS_BF16_ENGINES
// GCC 12 reports the deliberately undefined operands inside its own intrinsics (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>

namespace tda::cpu {
namespace {

void begin(void*) {}
void end(const void*) {}

TDA_TARGET_AVX512_BF16 inline __m512bh broadcast_pair(const std::uint16_t* pair) {
  std::int32_t word;
  std::memcpy(&word, pair, sizeof(word));
  return (__m512bh)_mm512_set1_epi32(word);
}

// 4 rows x 16 kGroups columns in registers.
template <int kGroups>
TDA_TARGET_AVX512_BF16 inline void multiply_tile(int pairs, const std::uint16_t* a, std::ptrdiff_t a_stride,
                                                 const std::uint32_t* b, std::ptrdiff_t b_stride, float* c,
                                                 std::ptrdiff_t c_stride, bool accumulate) {
  __m512 sum[4][kGroups];
  for (int r = 0; r < 4; ++r) {
    for (int g = 0; g < kGroups; ++g) {
      sum[r][g] = accumulate ? _mm512_loadu_ps(c + r * c_stride + 16 * g) : _mm512_setzero_ps();
    }
  }
  for (int p = 0; p < pairs; ++p) {
    __m512bh column[kGroups];
    for (int g = 0; g < kGroups; ++g) column[g] = (__m512bh)_mm512_loadu_si512(b + p * b_stride + 16 * g);
    for (int r = 0; r < 4; ++r) {
      const __m512bh value = broadcast_pair(a + r * a_stride + 2 * p);
      for (int g = 0; g < kGroups; ++g) sum[r][g] = _mm512_dpbf16_ps(sum[r][g], value, column[g]);
    }
  }
  for (int r = 0; r < 4; ++r) {
    for (int g = 0; g < kGroups; ++g) _mm512_storeu_ps(c + r * c_stride + 16 * g, sum[r][g]);
  }
}

TDA_TARGET_AVX512_BF16 void multiply(int m16, int n16, int k32, const std::uint16_t* a, std::ptrdiff_t a_stride,
                                     const std::uint32_t* b, std::ptrdiff_t b_stride, float* c, std::ptrdiff_t c_stride,
                                     bool accumulate) {
  for (int r = 0; r < 16 * m16; r += 4) {
    int g = 0;
    for (; g + 4 <= n16; g += 4) {
      multiply_tile<4>(16 * k32, a + r * a_stride, a_stride, b + 16 * g, b_stride, c + r * c_stride + 16 * g, c_stride,
                       accumulate);
    }
    for (; g < n16; ++g) {
      multiply_tile<1>(16 * k32, a + r * a_stride, a_stride, b + 16 * g, b_stride, c + r * c_stride + 16 * g, c_stride,
                       accumulate);
    }
  }
}

TDA_TARGET_AVX512_BF16 std::uint64_t score(const std::uint16_t* y, std::ptrdiff_t y_stride, int slices, int depth32,
                                           const std::uint32_t* x, const RowScales& scales, const float* bound,
                                           float* scores) {
  std::uint64_t live = 0;
  for (int slice = 0; slice < slices; ++slice) {
    float* tile = scores + slice * 16 * 64;
    multiply(1, 4, depth32, y + slice * 16 * y_stride, y_stride, x, 64, tile, 64, false);
    for (int group = 0; group < 4; ++group) {
      __m512 largest = _mm512_set1_ps(-__builtin_inff());
      for (int r = 0; r < 16; ++r) {
        __m512 value = _mm512_loadu_ps(tile + r * 64 + 16 * group);
        if (scales.scale != nullptr) {
          value = _mm512_mul_ps(value, _mm512_set1_ps(scales.scale[16 * slice + r]));
        }
        largest = _mm512_max_ps(value, largest);  // keeps `largest` where value is NaN
      }
      const bool exceeds = _mm512_cmp_ps_mask(largest, _mm512_loadu_ps(bound + 16 * group), _CMP_GT_OQ) != 0;
      live |= std::uint64_t{exceeds} << (4 * slice + group);
    }
  }
  return live;
}

}  // namespace

const Bf16Engine* avx512_bf16_engine() {
  static const Bf16Engine engine = {
      "avx512", begin, end, score, multiply, transpose_words, pair_bf16_rows, pair_fp32_rows, round_fp32_tile, nullptr};
  static const bool available = cpu_has_avx512_bf16();
  return available ? &engine : nullptr;
}

}  // namespace tda::cpu
#else
namespace tda::cpu {
const Bf16Engine* avx512_bf16_engine() { return nullptr; }
}  // namespace tda::cpu
#endif
