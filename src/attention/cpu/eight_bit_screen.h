// Eight-bit screening of bf16 inputs: certainly empty sub-tiles at half the cost of their scores.
//
// With unit vectors x = step * X + e, X in [-127, 127]^D rounded to nearest, |e| <= sqrt(D) / 2 * step. For a query and
// a key, |<q, k> - step_q step_k <Q, K>| <= |<q, e_k>| + |<e_q, step_k K>| <= |e_k| + |e_q| (1 + |e_k|) by
// Cauchy-Schwarz. So <Q, K> <= (tau - that) / (step_q step_k) proves s <= tau. What is not proved is computed exactly:
// no result changes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tda::cpu {

inline constexpr int kScreenDim = 64;  // dimensions, padded with zeros

// Callers have checked for AVX-512. The largest |row * inverse[row]| of `count` rows of bf16, and rows * factor[row]
// rounded to [count][64] bytes (in an order of the dimensions that is the same for all rows).
float largest_unit_element(const std::uint16_t* rows, std::ptrdiff_t stride, int count, int dim, const float* inverse);
void round_to_bytes(const std::uint16_t* rows, std::ptrdiff_t stride, int count, int dim, const float* factor,
                    std::int8_t* to);

// What the sums of 64 lanes must exceed. key_step: the step of the keys; query_step: per lane, NaN where every pair is
// to be computed; lanes from `count` on exceed nothing.
void screen_bounds(const float* tau, const float* query_step, int count, float key_step, int dim, std::int32_t* bound);

}  // namespace tda::cpu
