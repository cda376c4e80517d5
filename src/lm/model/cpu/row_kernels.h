// Vector kernels for the passes over rows that ATen would make in several trips through memory.
//
// All work on rows [begin, end), so that a caller can spread rows over threads. T is float or BFloat16; sums are fp32.
// Gain gradients are added to `gain_gradient`, one buffer per caller's chunk.
#pragma once

#include <cstdint>

namespace c10 {
struct BFloat16;
}

namespace tda::cpu {

// sum = x + delta; y = (sum - mean) * rstd * gain over the last dimension of `width`. delta may be null; then `sum` is
// not written and may be null. mean, rstd: (rows).
template <typename T>
struct AddLayerNormForward {
  const float* x;
  const T* delta;
  const float* gain;
  float* sum;
  T* y;
  float* mean;
  float* rstd;
  std::int64_t width;
  double eps;
  void run(std::int64_t begin, std::int64_t end) const;
};

// d_x = d_sum + gradient of LayerNorm at `sum`; d_delta is d_x in T. d_sum and d_delta may be null.
template <typename T>
struct AddLayerNormBackward {
  const float* sum;
  const float* gain;
  const float* mean;
  const float* rstd;
  const T* d_y;
  const float* d_sum;
  float* d_x;
  T* d_delta;
  std::int64_t width;
  void run(std::int64_t begin, std::int64_t end, float* gain_gradient) const;
};

// A tensor (B, H, T, D) with unit last stride.
template <typename T>
struct HeadsView {
  T* data;
  std::int64_t batch_stride, head_stride, row_stride;
  T* row(std::int64_t b, std::int64_t h, std::int64_t t) const {
    return data + b * batch_stride + h * head_stride + t * row_stride;
  }
};

// RMSNorm of rows r = b*length + t of u (B, H, T, D) into y (B, T, H*D), over each head, or over all heads together
// when `joint`. gain: (H*D). rstd: (rows, H), or (rows) when joint.
template <typename T>
struct RmsNormForward {
  HeadsView<const T> u;
  const float* gain;
  T* y;
  float* rstd;
  std::int64_t length, heads, dim;
  bool joint;
  double eps;
  void run(std::int64_t begin, std::int64_t end) const;
};

template <typename T>
struct RmsNormBackward {
  HeadsView<const T> u;
  const float* gain;
  const float* rstd;
  const T* d_y;      // (B, T, H*D)
  HeadsView<T> d_u;  // (B, H, T, D)
  std::int64_t length, heads, dim;
  bool joint;
  void run(std::int64_t begin, std::int64_t end, float* gain_gradient) const;
};

// Turns the pairs (c, c + dim/2) of `heads` consecutive heads of one row: by +angle with direction = 1, by -angle with
// direction = -1. in and out may have any distance between heads. cosine, sine: (dim/2).
template <typename In, typename Out>
void turn_row(const In* in, std::int64_t in_stride, Out* out, std::int64_t out_stride, std::int64_t heads,
              std::int64_t dim, const float* cosine, const float* sine, float direction);

// Copies `heads` runs of `dim` values, converting.
template <typename In, typename Out>
void copy_row(const In* in, std::int64_t in_stride, Out* out, std::int64_t out_stride, std::int64_t heads,
              std::int64_t dim);

}  // namespace tda::cpu
