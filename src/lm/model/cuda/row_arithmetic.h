// What the formulas of rows (entmax_row.h, lssar_row.h, softpick_row.h) are made of, for a device and for the host,
// where tests run them. A NaN in a row reaches the whole row, as it does in tensor operations: no minimum or maximum
// drops it.
//
// The kernels are compiled without contraction of products and sums (CMakeLists.txt): forward and backward must find
// the same excess of a score over its threshold, and both sizes of a team the same sums.
#pragma once

#include <math.h>

#ifdef __CUDACC__
#define TDA_HOST_DEVICE __host__ __device__
#else
#define TDA_HOST_DEVICE
#endif

namespace tda {

// Two sums that one pass over a row makes.
struct Pair {
  float first, second;
};

TDA_HOST_DEVICE inline Pair operator+(Pair a, Pair b) { return {a.first + b.first, a.second + b.second}; }

TDA_HOST_DEVICE inline float greater(float a, float b) { return a > b || a != a ? a : b; }

TDA_HOST_DEVICE inline float rectified(float x) { return x < 0 ? 0 : x; }

// The order of every sum over a row, so that its bits depend on the row alone and not on how many threads share it:
// key j belongs to part j / 32 mod 8 of lane j mod 32. Each lane adds its parts in this tree, then lanes add up in five
// butterfly steps.
constexpr int kLanes = 32, kSumParts = 8;

template <typename Combine, typename Value>
TDA_HOST_DEVICE inline Value tree_of_parts(const Value* x, Combine combine) {
  return combine(combine(combine(x[0], x[1]), combine(x[2], x[3])), combine(combine(x[4], x[5]), combine(x[6], x[7])));
}

// x^exponent for x >= 0, with 0^0 = 0: the derivative of a rectifier is 0 where it is closed.
class RectifiedPower {
 public:
  explicit RectifiedPower(double exponent) : exponent_(static_cast<float>(exponent)) {
    // Products instead of a logarithm and an exponential; 1 / (1.1 - 1) is 10 only after rounding.
    if (exponent_ <= kMostProducts && exponent_ == rintf(exponent_)) whole_ = static_cast<int>(exponent_);
  }

  TDA_HOST_DEVICE float operator()(float x) const {
    if (whole_ == 0) return x > 0 ? 1 : 0;
    if (whole_ < 0) return powf(x, exponent_);
    float result = 1, square = x;
    for (int bits = whole_;; square *= square) {
      if (bits & 1) result *= square;
      bits >>= 1;
      if (bits == 0) return result;
    }
  }

 private:
  static constexpr float kMostProducts = 64;

  float exponent_;
  int whole_ = -1;  // the exponent, or -1 where it is not a small whole number
};

// The same for an exponent that the compiler knows, for the innermost loop.
template <int kExponent>
class WholePower {
  static_assert(kExponent >= 0 && kExponent <= 2);

 public:
  explicit WholePower(double) {}

  TDA_HOST_DEVICE float operator()(float x) const {
    if constexpr (kExponent == 0) return x > 0 ? 1 : 0;
    return kExponent == 1 ? x : x * x;
  }
};

}  // namespace tda
