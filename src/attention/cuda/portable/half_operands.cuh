// The operands of the 16-bit backward kernels, and when these kernels apply.
#pragma once

#include "attention/cuda/portable/half_tile.cuh"
#include "attention/cuda/portable/live_slices.cuh"

namespace tda::cuda::portable {

__device__ inline HalfRows half_queries(const Problem& p, const Sequence& s, int view, int head) {
  const ConstTensor& q = p.inputs.q[view];
  return {q.data,         row_offset(q, s.batch, head, s.first_query), q.row_stride,
          s.query_length, static_cast<int>(p.shape.head_dim),          p.wide_q[view]};
}
__device__ inline HalfRows half_keys(const Problem& p, const Sequence& s, int view, int key_head) {
  const ConstTensor& k = p.inputs.k[view];
  return {k.data,
          row_offset(k, s.batch, key_head, s.first_key),
          k.row_stride,
          s.key_length,
          static_cast<int>(p.shape.head_dim),
          p.wide_k[view]};
}
__device__ inline HalfRows half_values(const Problem& p, const Sequence& s, int key_head) {
  const ConstTensor& v = p.inputs.v;
  return {v.data,       row_offset(v, s.batch, key_head, s.first_key), v.row_stride,
          s.key_length, static_cast<int>(p.shape.value_dim),           p.wide_v};
}
__device__ inline HalfRows half_output_gradients(const Problem& p, const ConstTensor& d_output, const Sequence& s,
                                                 int head) {
  return {d_output.data,
          row_offset(d_output, s.batch, head, s.first_query),
          d_output.row_stride,
          s.query_length,
          static_cast<int>(p.shape.value_dim),
          p.wide_d_output};
}

// Factors of a sequence's rows, from its row 0.
__device__ inline float* query_factors(const Problem& p, const Sequence& s, int view, int head) {
  return p.query_scale[view] + head * p.shape.batch * p.shape.query_length + s.flat_query;
}
__device__ inline float* key_factors(const Problem& p, const Sequence& s, int view, int key_head) {
  return p.key_scale[view] + key_head * p.shape.batch * p.shape.key_length + s.flat_key;
}

// A zero vector has the factor 1e12, which 16 bits may not hold; its products are 0 whatever the factor.
__device__ inline float product_factor(float factor) { return factor >= 1e12f ? 0.f : factor; }

// Rare: makes rows fit for products, in shared memory. A row whose factor is NaN becomes zero (the weights of its pairs
// carry the NaN, and times zero it stays in its own row of a product); a row that is not regular is scaled by a power
// of two to a norm near 1, its factor with it. Factors lie `stride` floats apart. The whole block takes part, or with
// BY_WARP each warp for itself.
template <class T, int DIM, bool BY_WARP>
__device__ __noinline__ void mend_rows(const Problem& p, T* tile, float* factors, int stride, int rows) {
  const int own = BY_WARP ? own_lane() : static_cast<int>(threadIdx.x), threads = BY_WARP ? 32 : kHalfThreads;
#pragma unroll 1
  for (int i = own; i < rows * DIM; i += threads) {
    const float factor = factors[i / DIM * stride];
    if (factor != factor) {
      tile[i] = T(0.f);
    } else if (!is_regular(p, factor)) {
      tile[i] = T(scalbnf(static_cast<float>(tile[i]), ilogbf(factor)));
    }
  }
  BY_WARP ? __syncwarp() : __syncthreads();
#pragma unroll 1
  for (int r = own; r < rows; r += threads) {
    const float factor = factors[r * stride];
    if (!is_regular(p, factor)) factors[r * stride] = scalbnf(factor, -ilogbf(factor));
  }
  BY_WARP ? __syncwarp() : __syncthreads();
}

// Whether one of eight excesses is positive or NaN (the NaN of a product has a clear sign bit).
__device__ __forceinline__ bool any_survives(const float (&low)[4], const float (&high)[4]) {
  const int first = __vimax3_s32(__float_as_int(low[0]), __float_as_int(low[1]), __float_as_int(low[2]));
  const int second = __vimax3_s32(__float_as_int(low[3]), __float_as_int(high[0]), __float_as_int(high[1]));
  const int third = max(__float_as_int(high[2]), __float_as_int(high[3]));
  return __vimax3_s32(first, second, third) > 0;
}

// Gradients with respect to unit vectors are products of g with raw rows, whose entries have the size of norm /
// sqrt(D): weights are g / norm times this power of two, so that they keep the size of g where entries have the size
// of 1.
template <int DIM>
constexpr float kWeightScale = DIM == 64 ? 8.f : 16.f;

// fp16 weights below 6e-5 lose digits. While unit vectors bound a weight by (1 + |tau|)^p, they may be raised that far.
template <class T>
__device__ float weight_scale(const Problem& p, int head, int key_length) {
  if (std::is_same_v<T, __nv_bfloat16> || !p.normalize) return 1.f;
  const float tau = fabsf(load_beta(p, head)) * static_cast<float>(threshold_scale(p, key_length - 1));
  const float room = 8192.f / powf(1.f + tau, p.power);
  return room >= 1.f ? exp2f(floorf(log2f(room))) : 1.f;
}

// Zeros to rows first .. first + COUNT - 1 of a head's gradient, by one warp.
template <class T, int COUNT>
__device__ void write_zeros(const Tensor& target, std::int64_t start, int first, int rows, int dim, bool wide) {
  if (!target.data) return;
  T* const data = static_cast<T*>(target.data) + start;
  const int lane = static_cast<int>(threadIdx.x) % 32, end = min(first + COUNT, rows);
  if (wide) {
    const int chunks = dim / 8;
    int row = first + lane / chunks, chunk = lane % chunks;
    const int rows_a_step = 32 / chunks, chunks_a_step = 32 % chunks;
    while (row < end) {
      *reinterpret_cast<uint4*>(data + row * target.row_stride + chunk * 8) = make_uint4(0, 0, 0, 0);
      row += rows_a_step;
      chunk += chunks_a_step;
      if (chunk >= chunks) {
        chunk -= chunks;
        ++row;
      }
    }
    return;
  }
  for (int i = lane; i < (end - first) * dim; i += 32) data[(first + i / dim) * target.row_stride + i % dim] = T(0.f);
}

}  // namespace tda::cuda::portable
