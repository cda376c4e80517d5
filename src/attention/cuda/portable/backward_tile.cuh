// What the three fp32 backward kernels share: a tile of 64 x 64 pairs and its operands.
#pragma once

#include "attention/cuda/portable/live_slices.cuh"
#include "attention/cuda/portable/tile_product.cuh"

namespace tda::cuda::portable {

constexpr int kTile = 64;
using TileSums = float[4][4];

__device__ __forceinline__ void clear(TileSums& sums) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) sums[i][j] = 0.f;
  }
}

// Rows of one head of one sequence: row r, columns d .. d + 3, zero outside. With `scale` the row is multiplied by its
// factor; kZeroBroken turns rows whose factor is NaN into zeros, for products in which the weight carries the NaN.
enum class Broken { kKeep, kZero };

struct RowSource {
  DataType type;
  const void* data;
  std::int64_t start, row_stride;
  const float *scale, *scale_low;  // of row 0, or null
  int rows, dim;
  bool vector;

  __device__ RowSource unscaled() const {
    RowSource copy = *this;
    copy.scale = nullptr;
    return copy;
  }

  template <Broken BROKEN = Broken::kKeep>
  __device__ __forceinline__ float4 load(int row, int d) const {
    if (row < 0 || row >= rows || d >= dim) return make_float4(0.f, 0.f, 0.f, 0.f);
    const float4 x = load_four(type, data, start + row * row_stride + d, dim - d, vector);
    if (!scale) return x;
    const float factor = scale[row];
    if (BROKEN == Broken::kZero && factor != factor) return make_float4(0.f, 0.f, 0.f, 0.f);
    return scaled(x, factor, scale_low[row]);
  }
};

__device__ inline RowSource unit_queries(const Problem& p, const Sequence& s, int view, int head) {
  const ConstTensor& q = p.inputs.q[view];
  const std::int64_t row = head * p.shape.batch * p.shape.query_length + s.flat_query;
  return {p.type,
          q.data,
          row_offset(q, s.batch, head, s.first_query),
          q.row_stride,
          p.query_scale[view] + row,
          p.query_scale_low[view] + row,
          s.query_length,
          static_cast<int>(p.shape.head_dim),
          p.vector_q[view]};
}

__device__ inline RowSource unit_keys(const Problem& p, const Sequence& s, int view, int key_head) {
  const ConstTensor& k = p.inputs.k[view];
  const std::int64_t row = key_head * p.shape.batch * p.shape.key_length + s.flat_key;
  return {p.type,
          k.data,
          row_offset(k, s.batch, key_head, s.first_key),
          k.row_stride,
          p.key_scale[view] + row,
          p.key_scale_low[view] + row,
          s.key_length,
          static_cast<int>(p.shape.head_dim),
          p.vector_k[view]};
}

__device__ inline RowSource values(const Problem& p, const Sequence& s, int key_head) {
  const ConstTensor& v = p.inputs.v;
  return {p.type,  v.data,       row_offset(v, s.batch, key_head, s.first_key), v.row_stride, nullptr,
          nullptr, s.key_length, static_cast<int>(p.shape.value_dim),           p.vector_v};
}

__device__ inline RowSource output_gradients(const Problem& p, const ConstTensor& d_output, const Sequence& s,
                                             int head) {
  return {p.type,
          d_output.data,
          row_offset(d_output, s.batch, head, s.first_query),
          d_output.row_stride,
          nullptr,
          nullptr,
          s.query_length,
          static_cast<int>(p.shape.value_dim),
          p.vector_d_output};
}

// tau of 64 query rows; unreachable for rows that do not exist.
__device__ inline void load_thresholds(const Problem& p, const Sequence& s, int head, int first_row,
                                       Threshold* threshold) {
  if (threadIdx.x >= kTile) return;
  const int row = first_row + static_cast<int>(threadIdx.x);
  threshold[threadIdx.x] =
      row < s.query_length ? threshold_at(load_beta(p, head), threshold_scale(p, s.key_length - s.query_length + row))
                           : unreachable_threshold();
}

// One weight for each pair of a 64 x 64 tile, as the products read it: [inner][outer] with the thread's rows outer.
__device__ __forceinline__ void store_weights(float* tile, const TileSums& weights) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    *reinterpret_cast<float4*>(tile + weight_slot<kTile>(thread_column() * 4 + j, thread_row() * 4)) =
        make_float4(weights[0][j], weights[1][j], weights[2][j], weights[3][j]);
  }
}

// sums (64 rows x COLUMNS) += tile^T (64 inner x 64 rows) times 64 inner rows of COLUMNS values, 16 inner rows at a
// time. load(inner, column) -> float4. Ends with a barrier.
template <int COLUMNS, class Load>
__device__ __forceinline__ void accumulate_rows(float (&sums)[4][COLUMNS / 16], const float* weight_tile,
                                                float* value_tile, bool guarded, Load load) {
  for (int inner = 0; inner < kTile; inner += kSliceKeys) {
    load_tile<COLUMNS>(value_tile, kSliceKeys, [&](int row, int column) { return load(inner + row, column); });
    __syncthreads();
    accumulate_tile<kTile, COLUMNS>(sums, weight_tile, inner, value_tile, guarded);
    __syncthreads();
  }
}

__device__ inline double sum_over_columns(double x) {
#pragma unroll
  for (int step = 8; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// Undoes the L2 norm of a row whose gradient with respect to the unit vector lies in sums (this thread's columns), and
// stores it: dx = (du - u <u, du>) / |x|, or du / 1e-12 where the norm was clamped. In double, because du and its
// projection nearly cancel; for D = 1 the result is exactly 0.
template <int COLUMNS>
__device__ __forceinline__ void store_norm_backward(const Problem& p, const RowSource& unit, const Tensor& target,
                                                    std::int64_t start, int row, float* sums) {
  const bool exists = row < unit.rows;
  if (p.normalize) {
    float x[COLUMNS / 16];
    double square = 0.0, projection = 0.0;
#pragma unroll
    for (int h = 0; h < COLUMNS / 64; ++h) {
      *reinterpret_cast<float4*>(x + 4 * h) = unit.unscaled().load(row, 64 * h + 4 * thread_column());
    }
#pragma unroll
    for (int j = 0; j < COLUMNS / 16; ++j) {
      square += static_cast<double>(x[j]) * x[j];
      projection += static_cast<double>(x[j]) * sums[j];
    }
    square = sum_over_columns(square);
    projection = sum_over_columns(projection);
    const float factor = exists ? unit.scale[row] : 1.f;
    const double inverse = factor < 1e12f ? 1.0 / sqrt(square) : static_cast<double>(factor);
    const double along = factor < 1e12f ? projection / square : 0.0;
#pragma unroll
    for (int j = 0; j < COLUMNS / 16; ++j) sums[j] = static_cast<float>((sums[j] - along * x[j]) * inverse);
  }
  if (!exists) return;
#pragma unroll
  for (int j = 0; j < COLUMNS / 16; ++j) {
    const int column = owned_index(thread_column(), j);
    if (column < unit.dim) store_element(p.type, target.data, start + row * target.row_stride + column, sums[j]);
  }
}

}  // namespace tda::cuda::portable
