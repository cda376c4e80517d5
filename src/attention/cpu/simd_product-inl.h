// fp32 matrix products with register tiles, for one instruction set at a time (see simd_kernels.cpp).
#if defined(TDA_SIMD_PRODUCT_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef TDA_SIMD_PRODUCT_INL_H
#undef TDA_SIMD_PRODUCT_INL_H
#else
#define TDA_SIMD_PRODUCT_INL_H
#endif

#include <cstddef>
#include <cstdint>

#include "attention/cpu/simd_kernels.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tda::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using VF = hn::Vec<F32>;
constexpr int kLanes = static_cast<int>(hn::MaxLanes(F32()));
constexpr int kGroupVectors = kSlice / kLanes;

// kRows x kVectors accumulators stay in registers while k runs.
template <int kRows, int kVectors>
HWY_INLINE void MultiplyTile(int k, const float* HWY_RESTRICT a, std::ptrdiff_t a_row, std::ptrdiff_t a_column,
                             const float* HWY_RESTRICT b, std::ptrdiff_t b_row, float* HWY_RESTRICT c,
                             std::ptrdiff_t c_row, ProductMode mode) {
  const F32 d;
  VF sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = mode == ProductMode::kContinue ? hn::LoadU(d, c + r * c_row + v * kLanes) : hn::Zero(d);
    }
  }
  for (int i = 0; i < k; ++i) {
    VF column[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) column[v] = hn::LoadU(d, b + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const VF value = hn::Set(d, a[r * a_row]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] = hn::MulAdd(value, column[v], sum[r][v]);
    }
    a += a_column;
    b += b_row;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      float* to = c + r * c_row + v * kLanes;
      hn::StoreU(mode == ProductMode::kAddSum ? hn::Add(hn::LoadU(d, to), sum[r][v]) : sum[r][v], d, to);
    }
  }
}

template <int kVectors>
void MultiplyColumns(int m, int k, const float* a, std::ptrdiff_t a_row, std::ptrdiff_t a_column, const float* b,
                     std::ptrdiff_t b_row, float* c, std::ptrdiff_t c_row, ProductMode mode) {
  constexpr int kRows = kVectors == 1 ? 8 : 6;
  int r = 0;
  for (; r + kRows <= m; r += kRows) {
    MultiplyTile<kRows, kVectors>(k, a + r * a_row, a_row, a_column, b, b_row, c + r * c_row, c_row, mode);
  }
  const float* a_rest = a + r * a_row;
  float* c_rest = c + r * c_row;
  int rest = m - r;
  if (rest >= 4) {
    MultiplyTile<4, kVectors>(k, a_rest, a_row, a_column, b, b_row, c_rest, c_row, mode);
    a_rest += 4 * a_row;
    c_rest += 4 * c_row;
    rest -= 4;
  }
  if (rest >= 2) {
    MultiplyTile<2, kVectors>(k, a_rest, a_row, a_column, b, b_row, c_rest, c_row, mode);
    a_rest += 2 * a_row;
    c_rest += 2 * c_row;
    rest -= 2;
  }
  if (rest == 1) MultiplyTile<1, kVectors>(k, a_rest, a_row, a_column, b, b_row, c_rest, c_row, mode);
}

void Multiply(int m, int n, int k, const float* a, std::ptrdiff_t a_row, std::ptrdiff_t a_column, const float* b,
              std::ptrdiff_t b_row, float* c, std::ptrdiff_t c_row, ProductMode mode) {
  // Four vectors need 24 accumulators, which only the 32 registers of AVX-512 hold.
  constexpr int kWide = kLanes == 16 ? 4 : 2;
  int column = 0;
  for (; column + kWide * kLanes <= n; column += kWide * kLanes) {
    MultiplyColumns<kWide>(m, k, a, a_row, a_column, b + column, b_row, c + column, c_row, mode);
  }
  if constexpr (kWide == 4) {
    if (column + 2 * kLanes <= n) {
      MultiplyColumns<2>(m, k, a, a_row, a_column, b + column, b_row, c + column, c_row, mode);
      column += 2 * kLanes;
    }
  }
  if (column < n) MultiplyColumns<1>(m, k, a, a_row, a_column, b + column, b_row, c + column, c_row, mode);
}

// The product of each segment is added to those before it in memory, which leaves all registers to one segment.
void MultiplyScores(int m, int n, int depth, const float* y, std::ptrdiff_t y_row, const float* x, float* c) {
  for (int first = 0; first < depth; first += kSegment) {
    const int length = depth - first < kSegment ? depth - first : kSegment;
    Multiply(m, n, length, y + first, y_row, 1, x + first * kBlock, kBlock, c, kBlock,
             first == 0 ? ProductMode::kOverwrite : ProductMode::kAddSum);
  }
}

template <int kRows>
HWY_INLINE void MultiplyListed(const std::uint8_t* rows, int depth, const float* y, std::ptrdiff_t y_row,
                               const float* HWY_RESTRICT x, float* c) {
  const F32 d;
  const float* row[kRows];
  for (int r = 0; r < kRows; ++r) row[r] = y + rows[r] * y_row;
  for (int v = 0; v < kGroupVectors; ++v) {
    VF total[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) total[r] = hn::Zero(d);
    for (int first = 0; first < depth; first += kSegment) {
      VF sum[kRows];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) sum[r] = hn::Zero(d);
      const int last = depth - first < kSegment ? depth : first + kSegment;
      for (int i = first; i < last; ++i) {
        const VF column = hn::LoadU(d, x + i * kBlock + v * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) sum[r] = hn::MulAdd(hn::Set(d, row[r][i]), column, sum[r]);
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) total[r] = first == 0 ? sum[r] : hn::Add(total[r], sum[r]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) hn::StoreU(total[r], d, c + rows[r] * kBlock + v * kLanes);
  }
}

void MultiplyRows(const std::uint8_t* rows, int count, int depth, const float* y, std::ptrdiff_t y_row, const float* x,
                  float* c) {
  for (; count >= 8; count -= 8, rows += 8) MultiplyListed<8>(rows, depth, y, y_row, x, c);
  if (count >= 4) {
    MultiplyListed<4>(rows, depth, y, y_row, x, c);
    count -= 4;
    rows += 4;
  }
  if (count >= 2) {
    MultiplyListed<2>(rows, depth, y, y_row, x, c);
    count -= 2;
    rows += 2;
  }
  if (count == 1) MultiplyListed<1>(rows, depth, y, y_row, x, c);
}

}  // namespace tda::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // TDA_SIMD_PRODUCT_INL_H
