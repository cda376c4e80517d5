// The exact arithmetic that the product, the listed product and the dense kernel share, so that a row has the same bits
// from each.
//
// Scores come from the raw 16-bit q and k, accumulated in fp32: s_ij |q'_i| = <q'_i, k_j> / |k_j|, where q' is the
// query row times a power of two (query_scale), and t_ij = s_ij |q'_i| - tau_i |q'_i| takes one fused multiply-add. One
// view weighs t^p in 16 bits and scales the output row by |q'|^-p; two views weigh t1^p - r t2^p with r = lambda (|q1'|
// / |q2'|)^p and scale by |q1'|^-p. No unit vector is ever rounded to 16 bits.
#pragma once

#include "attention/cuda/common/wgmma.cuh"
#include "attention/cuda/sm90/forward/row_formulas.cuh"
#include "attention/cuda/sm90/forward/sequence.cuh"

namespace tda::cuda::sm90 {

// Rows g and g + 8 of a warp's 16: threshold in units of the scaled query, and that query's norm.
struct QueryRows {
  float threshold[2];
  float norm[2];
};

// Scales the warp's fragments by the rows' powers of two and returns what the scores need. `row` is that of row g; rows
// behind the end get a threshold that nothing reaches. In packed documents they may hold anything, and become zero.
// With an index, 1/|q| is saved for the backward.
template <typename Element, int kHeadDim, bool kPacked>
__device__ __forceinline__ QueryRows prepare_queries(const ForwardArguments& a, const Sequence<kPacked>& s, int view,
                                                     int head, int row, std::uint32_t (&q)[kHeadDim / 16][4]) {
  if constexpr (kPacked) {
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k) {
#pragma unroll
      for (int r = 0; r < 4; ++r) q[k][r] = row + 8 * (r & 1) < s.query_length() ? q[k][r] : 0u;
    }
  }
  float square[2] = {0.0f, 0.0f};
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const float2 x = unpack<Element>(q[k][r]);
      square[r & 1] += x.x * x.x + x.y * x.y;
    }
  }
  // Every lane works out one of its two rows, even lanes row g; the neighbour knows the other.
  const bool second = (threadIdx.x & 1) != 0;
  float own_square = second ? square[1] : square[0];
  own_square += __shfl_xor_sync(0xffffffffu, second ? square[0] : square[1], 1);
  own_square += __shfl_xor_sync(0xffffffffu, own_square, 2);
  const int own_row = second ? row + 8 : row;
  const bool exists = own_row < s.query_length();
  const float norm = a.normalize ? norm_from_square(own_square) : 1.0f;
  const float tau = threshold_at<kHeadDim>(a.beta[head], s.offset() + own_row, a.kappa);
  const float own_scale = a.normalize ? query_scale(norm, tau, a.largest_t) : 1.0f;
  const float scaled_norm = norm * own_scale;
  if (a.factors.query != nullptr && (threadIdx.x & 3) < 2 && exists) {
    *saved_query_factor(a, view, s, head, own_row) = saved_factor(__fdividef(own_scale, scaled_norm));
  }
  const auto of_both = [&](float own, float(&both)[2]) {
    const float other = __shfl_xor_sync(0xffffffffu, own, 1);
    both[0] = second ? other : own;
    both[1] = second ? own : other;
  };
  QueryRows rows;
  float scale[2];
  of_both(own_scale, scale);
  of_both(scaled_norm, rows.norm);
  of_both(exists ? tau * scaled_norm : 1e30f, rows.threshold);
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
#pragma unroll
    for (int r = 0; r < 4; ++r) q[k][r] = scale_pair<Element>(q[k][r], scale[r & 1]);
  }
  return rows;
}

// 1/|k| of this thread's columns: pair n belongs to columns 8 n + 2 c and 8 n + 2 c + 1. `scales` is the shared address
// of that of the first column.
template <int kPairs>
__device__ __forceinline__ void load_key_scales(std::uint32_t scales, float2 (&pairs)[kPairs]) {
  const std::uint32_t first = scales + (threadIdx.x & 3) * 8;
#pragma unroll
  for (int n = 0; n < kPairs; ++n) pairs[n] = load_shared_float2(first + n * 32);
}

// scores (raw products of 8 n columns) -> t.
template <int kSize>
__device__ __forceinline__ void subtract_threshold(float (&scores)[kSize], const float2 (&scales)[kSize / 4],
                                                   const QueryRows& rows) {
#pragma unroll
  for (int n = 0; n < kSize / 4; ++n) {
    scores[4 * n] = fmaf(scores[4 * n], scales[n].x, -rows.threshold[0]);
    scores[4 * n + 1] = fmaf(scores[4 * n + 1], scales[n].y, -rows.threshold[0]);
    scores[4 * n + 2] = fmaf(scores[4 * n + 2], scales[n].x, -rows.threshold[1]);
    scores[4 * n + 3] = fmaf(scores[4 * n + 3], scales[n].y, -rows.threshold[1]);
  }
}

template <int kSize>
__device__ __forceinline__ void subtract_threshold(float (&scores)[kSize], std::uint32_t scales,
                                                   const QueryRows& rows) {
  float2 pairs[kSize / 4];
  load_key_scales(scales, pairs);
  subtract_threshold(scores, pairs, rows);
}

// Hides keys that rows g and g + 8 do not see; `position` is that of row g. Behind a document's end are keys of the
// next, which rows that do not exist would see.
template <bool kPacked, int kSize>
__device__ __forceinline__ void hide_future(const Sequence<kPacked>& s, float (&scores)[kSize], int position,
                                            int first_key) {
  const int column = static_cast<int>(threadIdx.x & 3) * 2;
  int limit[2] = {position - first_key, position - first_key + 8};
  if constexpr (kPacked) {
#pragma unroll
    for (int& last : limit) last = min(last, s.key_length() - 1 - first_key);
  }
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    if ((i >> 2) * 8 + column + (i & 1) > limit[(i >> 1) & 1]) scores[i] = -1.0f;
  }
}

// One view, in two halves: t -> t^p in place, negative where t is; then A fragments of max(t, 0)^p. Without kSquare the
// first half rectifies.
template <bool kSquare, int kSize>
__device__ __forceinline__ void raise(float (&t)[kSize], float power) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) t[i] = kSquare ? t[i] * fabsf(t[i]) : rectified_power(t[i], power);
}

template <typename Element, bool kSquare>
__device__ __forceinline__ std::uint32_t rounded_weights(float first, float second) {
  return kSquare ? pack_positive<Element>(first, second) : pack<Element>(first, second);
}

template <typename Element, bool kSquare, int kSize>
__device__ __forceinline__ void round_weights(const float (&t)[kSize], std::uint32_t (&weights)[kSize / 8][4]) {
#pragma unroll
  for (int i = 0; i < kSize / 2; ++i) {
    weights[i / 4][i % 4] = rounded_weights<Element, kSquare>(t[2 * i], t[2 * i + 1]);
  }
}

// One view: t -> A fragments of max(t, 0)^p.
template <typename Element, bool kSquare, int kSize>
__device__ __forceinline__ void weigh(float (&t)[kSize], float power, std::uint32_t (&weights)[kSize / 8][4]) {
  raise<kSquare>(t, power);
  round_weights<Element, kSquare>(t, weights);
}

// Two views: t -> max(t, 0)^p in place.
template <bool kSquare, int kSize>
__device__ __forceinline__ void rectify(float (&t)[kSize], float power) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    if constexpr (kSquare) {
      const float x = positive_part(t[i]);
      t[i] = x * x;
    } else {
      t[i] = rectified_power(t[i], power);
    }
  }
}

// Two views: of the rectified powers of two scores of each view.
template <typename Element>
__device__ __forceinline__ std::uint32_t rounded_difference(const float* t0, const float* t1, float ratio) {
  return pack<Element>(fmaf(-ratio, t1[0], t0[0]), fmaf(-ratio, t1[1], t0[1]));
}

// Two views: t0, t1 -> A fragments of max(t0, 0)^p - ratio max(t1, 0)^p; both are raised in place.
template <typename Element, bool kSquare, int kSize>
__device__ __forceinline__ void weigh_difference(float (&t0)[kSize], float (&t1)[kSize], float power,
                                                 const float (&ratio)[2], std::uint32_t (&weights)[kSize / 8][4]) {
  rectify<kSquare>(t0, power);
  rectify<kSquare>(t1, power);
#pragma unroll
  for (int i = 0; i < kSize / 2; ++i) {
    weights[i / 4][i % 4] = rounded_difference<Element>(t0 + 2 * i, t1 + 2 * i, ratio[i & 1]);
  }
}

// lambda (|q1'| / |q2'|)^p of rows g and g + 8.
__device__ __forceinline__ void view_ratio(const ForwardArguments& a, int head, const QueryRows (&rows)[2],
                                           float (&ratio)[2]) {
  const float lambda = fminf(fmaxf(a.lambda[head], 0.0f), 1.0f);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    ratio[h] = lambda * inverse_power(rows[1].norm[h], a.power) / inverse_power(rows[0].norm[h], a.power);
  }
}

// Adds up what the lanes of a quad counted for rows `row` and `row` + 8, and stores it.
template <bool kPacked>
__device__ __forceinline__ void store_survivors(const ForwardArguments& a, const Sequence<kPacked>& s, int head,
                                                int row, const int (&survivors)[2]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    int count = survivors[h];
    count += __shfl_xor_sync(0xffffffffu, count, 1);
    count += __shfl_xor_sync(0xffffffffu, count, 2);
    if ((threadIdx.x & 3) == 0 && row + 8 * h < s.query_length()) {
      a.survivors[flat_row(a, s, head) + row + 8 * h] = count;
    }
  }
}

// What scores of the key at `k` are multiplied by, by one warp, to the bit as prepare_keys computes it.
template <typename Element, int kHeadDim>
__device__ __forceinline__ float scale_of_key(const ForwardArguments& a, const Element* k, int lane) {
  constexpr int kChunks = kHeadDim / 8;
  float square = sum_of_squares<Element>(reinterpret_cast<const uint4*>(k)[lane % kChunks]);
#pragma unroll
  for (int distance = 1; distance < kChunks; distance *= 2) square += __shfl_xor_sync(0xffffffffu, square, distance);
  return key_scale(a.normalize, square);
}

// One output row from first principles, by one warp: for rows whose fast result is not finite, because a value that is
// not finite meets weights that are exactly zero. A pair below the threshold contributes nothing, whatever v holds.
// kMayScale: of a kernel that may run without the scales of prepare_keys (ForwardArguments::dense_scales).
template <typename Element, int kHeadDim, bool kMayScale, bool kPacked>
__device__ __forceinline__ void repair_row(const ForwardArguments& a, const Sequence<kPacked>& s, int head, int row) {
  constexpr int kPart = kHeadDim / 32;
  const int lane = static_cast<int>(threadIdx.x & 31);
  const int key_head = head / a.heads_per_key;
  const int position = s.offset() + row;
  const float tau = threshold_at<kHeadDim>(a.beta[head], position, a.kappa);
  float query[2][kPart];
  float norm[2] = {1.0f, 1.0f};
  for (int view = 0; view < a.views; ++view) {
    const auto* q = static_cast<const Element*>(a.q[view].data) + s.batch() * a.q[view].batch_stride +
                    head * a.q[view].head_stride + (s.first_query() + row) * a.q[view].row_stride;
    float square = 0.0f;
#pragma unroll
    for (int d = 0; d < kPart; ++d) {
      query[view][d] = static_cast<float>(q[lane * kPart + d]);
      square += query[view][d] * query[view][d];
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) square += __shfl_xor_sync(0xffffffffu, square, offset);
    if (a.normalize) norm[view] = norm_from_square(square);
  }
  float sum[kPart] = {};
#pragma unroll 1
  for (int key = 0; key <= position; ++key) {
    float weight[2] = {0.0f, 0.0f};
#pragma unroll 1
    for (int view = 0; view < a.views; ++view) {
      const auto* k = static_cast<const Element*>(a.k[view].data) + s.batch() * a.k[view].batch_stride +
                      key_head * a.k[view].head_stride + (s.first_key() + key) * a.k[view].row_stride;
      float dot = 0.0f;
#pragma unroll
      for (int d = 0; d < kPart; ++d) dot += query[view][d] * static_cast<float>(k[lane * kPart + d]);
#pragma unroll
      for (int offset = 16; offset > 0; offset >>= 1) dot += __shfl_xor_sync(0xffffffffu, dot, offset);
      const float scale = kMayScale && a.dense_scales ? scale_of_key<Element, kHeadDim>(a, k, lane)
                                                      : key_scales(a, view, s, key_head)[key];
      weight[view] = rectified_power(dot * scale / norm[view] - tau, a.power);
    }
    if (weight[0] == 0.0f && weight[1] == 0.0f) continue;
    const float lambda = a.views == 2 ? fminf(fmaxf(a.lambda[head], 0.0f), 1.0f) : 0.0f;
    const float combined = a.views == 2 ? weight[0] - lambda * weight[1] : weight[0];
    const auto* v = static_cast<const Element*>(a.v.data) + s.batch() * a.v.batch_stride + key_head * a.v.head_stride +
                    (s.first_key() + key) * a.v.row_stride;
#pragma unroll
    for (int d = 0; d < kPart; ++d) sum[d] += combined * static_cast<float>(v[lane * kPart + d]);
  }
  auto* output = static_cast<Element*>(a.output) + s.batch() * a.output_batch_stride + head * a.output_head_stride +
                 (s.first_query() + row) * a.output_row_stride;
#pragma unroll
  for (int d = 0; d < kPart; ++d) output[lane * kPart + d] = static_cast<Element>(sum[d]);
}

// Computes again the rows whose lanes are set in `bad`, for rows g and g + 8 of a warp's 16.
template <typename Element, int kHeadDim, bool kMayScale = false, bool kPacked>
__device__ __forceinline__ void repair_rows(const ForwardArguments& a, const Sequence<kPacked>& s, int head,
                                            int first_row, const unsigned (&bad)[2]) {
  if ((bad[0] | bad[1]) == 0) return;
  __syncwarp();
  for (int h = 0; h < 2; ++h) {
    for (int g = 0; g < 8; ++g) {
      if ((bad[h] >> (4 * g) & 15u) != 0) repair_row<Element, kHeadDim, kMayScale>(a, s, head, first_row + g + 8 * h);
    }
  }
}

// Scales and stores a warp's 16 output rows; rows that are not finite are computed again.
template <typename Element, int kHeadDim, bool kMayScale = false, bool kPacked>
__device__ __forceinline__ void store_output(const ForwardArguments& a, const Sequence<kPacked>& s, int head,
                                             int first_row, const float (&output)[kHeadDim / 2],
                                             const QueryRows& rows) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  auto* base = static_cast<Element*>(a.output) + s.batch() * a.output_batch_stride + head * a.output_head_stride +
               s.first_query() * a.output_row_stride;
  unsigned bad[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = first_row + (lane >> 2) + 8 * h;
    const bool inside = row < s.query_length();
    const float scale = inverse_power(rows.norm[h], a.power);
    float check = 0.0f;  // 0 x = 0 exactly when x is finite
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) check += 0.0f * output[4 * n + 2 * h] + 0.0f * output[4 * n + 2 * h + 1];
    bad[h] = __ballot_sync(0xffffffffu, inside && !(check == 0.0f));
    store_row<Element>(base + row * a.output_row_stride, output, h, scale, lane & 3, inside);
  }
  repair_rows<Element, kHeadDim, kMayScale>(a, s, head, first_row, bad);
}

}  // namespace tda::cuda::sm90
