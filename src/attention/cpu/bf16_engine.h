// Matrix products of bf16 operands with fp32 accumulation in hardware: Intel AMX tiles, or the AVX-512 BF16 dot product
// (Cooper Lake, Sapphire Rapids, Zen 4 and later). Chosen at run time; null where the CPU has neither.
//
// Operand layouts, both engines: A is row-major bf16. B is in "pairs": 32-bit elements, element [r][n] holds the bf16
// values of depth 2r (low half) and 2r + 1 (high half) for column n. Denormal inputs count as zero.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tda::cpu {

// What the scores of rows are multiplied by before they are compared; null: 1.
struct RowScales {
  const float* scale = nullptr;         // [rows]
  const float* largest_of_4 = nullptr;  // [rows / 4] the largest of 4 scales; NaN may count as anything
};

struct Bf16Engine {
  const char* name;

  // Brackets the use on a thread; the AMX tile configuration of the caller is kept.
  void (*begin)(void* saved_state);
  void (*end)(const void* saved_state);

  // Scores of `slices` (<= 16) slices of 16 rows y against 64 lanes x (pairs, depth32 * 16 rows of 64), and a test for
  // survivors per 16 x 16 sub-tile: bit (4 * slice + group) of the result is set if some scale[row] * score exceeds
  // bound[lane]. The raw scores of such sub-tiles are written to scores[row][64]; the rest is not.
  std::uint64_t (*score)(const std::uint16_t* y, std::ptrdiff_t y_stride, int slices, int depth32,
                         const std::uint32_t* x, const RowScales& scales, const float* bound, float* scores);

  // c (16 m16 x 16 n16) = or += a (rows of 32 k32) b (pairs, row stride b_stride elements of 32 bits).
  void (*multiply)(int m16, int n16, int k32, const std::uint16_t* a, std::ptrdiff_t a_stride, const std::uint32_t* b,
                   std::ptrdiff_t b_stride, float* c, std::ptrdiff_t c_stride, bool accumulate);

  // to[c][r] = from[r][c] for 16 rows and 16 * columns16 columns of 32-bit elements; strides in such elements.
  void (*transpose)(const std::uint32_t* from, std::ptrdiff_t from_stride, int columns16, std::uint32_t* to,
                    std::ptrdiff_t to_stride);
  // Pairs of adjacent rows: to[r][c] = (from[2r][c], from[2r+1][c]) for `pairs` pairs and 16 * columns16 columns.
  void (*pair_rows)(const std::uint16_t* from, std::ptrdiff_t from_stride, int pairs, int columns16, std::uint32_t* to,
                    std::ptrdiff_t to_stride);
  // The same from fp32 tiles, rounded to nearest even: 64 columns, row stride 64.
  void (*pair_weights)(const float* from, int pairs, std::uint32_t* to);
  // A 64 x 64 tile in bf16, rounded to nearest even.
  void (*round_weights)(const float* from, std::uint16_t* to);

  // Eight-bit products of up to 64 dimensions at twice the speed (eight_bit_screen.h); null where the CPU lacks them.
  // Bit (4 * slice + group) of the result is set if some sum over y (rows of 64 bytes) and x (16 words of 4 dimensions,
  // 64 lanes) exceeds bound[lane].
  std::uint64_t (*screen)(const std::int8_t* y, int slices, const std::uint32_t* x, const std::int32_t* bound);
};

inline constexpr std::size_t kEngineStateBytes = 64;

// Null where the CPU, the operating system or the compiler lacks it.
const Bf16Engine* amx_engine();
const Bf16Engine* avx512_bf16_engine();

}  // namespace tda::cpu
