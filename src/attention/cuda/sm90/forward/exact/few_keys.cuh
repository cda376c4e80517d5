// Strips with up to eight candidate keys, both views together: nearly all where scores are random. None: where counts
// or an index are to be written (screen/dispatch.cuh zeroes the others).
//
// Plan. As for more keys (listed_product.cuh), with what eight columns allow: one step, the queries' fragments stay in
// registers and keys are gathered in the natural order of dims (4 bytes a lane and 8 dims), before the queries are
// looked at; value rows are fetched only if a row survives, and otherwise the output is zero. The same bits: half of
// the columns of each product are missing, and a product with zeros adds nothing.
#pragma once

#include "attention/cuda/sm90/forward/exact/strip.cuh"

namespace tda::cuda::sm90 {

constexpr int kFewKeys = 8;

// Key rows of columns 0 to 7 as B fragments, and 1/|k| of column `lane`.
template <int kHeadDim>
struct FewKeys {
  std::uint32_t b[kHeadDim / 16][2];
  float scale;

  // `stride`: bytes from key to key.
  __device__ __forceinline__ void load(const char* keys, int stride, const float* scales, const KeyChunk& chunk) {
    const int g = static_cast<int>(threadIdx.x & 31) >> 2;
    const int c = static_cast<int>(threadIdx.x & 3);
    const char* row = keys + static_cast<std::int64_t>(__shfl_sync(kAllLanes, chunk.key, g)) * stride + 4 * c;
#pragma unroll
    for (int k = 0; k < kHeadDim / 16; ++k) {
      b[k][0] = *reinterpret_cast<const std::uint32_t*>(row + 32 * k);
      b[k][1] = *reinterpret_cast<const std::uint32_t*>(row + 32 * k + 16);
    }
    scale = scales[chunk.key];
  }
};

// score_chunk of columns 0 to 7: t[2 h + e].
template <typename Element, int kHeadDim>
__device__ __forceinline__ void score_few(const FewKeys<kHeadDim>& keys,
                                          const std::uint32_t (&queries)[kHeadDim / 16][4], const QueryRows& rows,
                                          const KeyChunk& chunk, int position, float (&t)[4]) {
  float sums[4] = {};
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) multiply_add<Element>(sums, queries[k], keys.b[k][0], keys.b[k][1]);
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const float scale = __shfl_sync(kAllLanes, keys.scale, own_column(e));
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float excess = fmaf(sums[2 * h + e], scale, -rows.threshold[h]);
      const bool counts = own_column(e) < chunk.size && chunk.column_key[e] <= position + 8 * h;
      t[2 * h + e] = counts ? excess : -1.0f;
    }
  }
}

// The value rows of columns 0 to 7 as B fragments, output columns as ChunkValues has them.
template <int kHeadDim>
__device__ __forceinline__ void load_few_values(const char* values, int stride, const KeyChunk& chunk,
                                                std::uint32_t (&b)[kHeadDim / 8]) {
  const int g = static_cast<int>(threadIdx.x & 31) >> 2;
  const char* even = values + static_cast<std::int64_t>(chunk.column_key[0]) * stride + 16 * g;
  const char* odd = values + static_cast<std::int64_t>(chunk.column_key[1]) * stride + 16 * g;
#pragma unroll
  for (int part = 0; part < kHeadDim / 64; ++part) {
    const uint4 x = *reinterpret_cast<const uint4*>(even + 128 * part);
    const uint4 y = *reinterpret_cast<const uint4*>(odd + 128 * part);
    interleave(x, y, b + 8 * part);
  }
}

// A fragments of the weights of columns 0 to 7; their other half is zero.
template <typename Element, int kViews, bool kSquare>
__device__ __forceinline__ void weigh_few(const ForwardArguments& a, int head, const QueryRows (&rows)[kViews],
                                          float (&t)[kViews][4], std::uint32_t (&weights)[4]) {
  if constexpr (kViews == 1) {
    raise<kSquare>(t[0], a.power);
    weights[0] = rounded_weights<Element, kSquare>(t[0][0], t[0][1]);
    weights[1] = rounded_weights<Element, kSquare>(t[0][2], t[0][3]);
  } else {
    float ratio[2];
    view_ratio(a, head, rows, ratio);
    rectify<kSquare>(t[0], a.power);
    rectify<kSquare>(t[1], a.power);
    weights[0] = rounded_difference<Element>(t[0], t[1], ratio[0]);
    weights[1] = rounded_difference<Element>(t[0] + 2, t[1] + 2, ratio[1]);
  }
}

// Output and counts of a strip without a survivor.
template <typename Element, int kHeadDim>
__device__ __forceinline__ void store_empty_strip(const ForwardArguments& a, const ListedJob& job) {
  constexpr int kChunks = kHeadDim / 8;
  constexpr int kRowsAtOnce = 32 / kChunks;
  const int lane = static_cast<int>(threadIdx.x & 31);
  auto* to = static_cast<Element*>(a.output) + job.batch * a.output_batch_stride + job.head * a.output_head_stride +
             (job.first_row + lane / kChunks) * a.output_row_stride + lane % kChunks * 8;
#pragma unroll
  for (int row = lane / kChunks; row < kStripRows; row += kRowsAtOnce) {
    if (job.first_row + row < a.query_length) *reinterpret_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
    to += kRowsAtOnce * a.output_row_stride;
  }
  if (a.survivors == nullptr) return;
  const int none[2] = {0, 0};
  store_survivors(a, Sequence<false>(a, job.batch), job.head, job.first_row + (lane >> 2), none);
}

// Computes a strip of `count` keys whose queries have arrived in `slot`.
template <typename Element, int kHeadDim, int kViews, bool kSquare>
__device__ __forceinline__ void strip_of_few_keys(const ForwardArguments& a, const ListedJob& job, const char* slot,
                                                  const StripKeys<kViews>& keys, int count) {
  using Plan = ListedPlan<kHeadDim, kViews>;
  const int key_head = job.head / a.heads_per_key;
  const int row = job.first_row + (static_cast<int>(threadIdx.x & 31) >> 2);
  KeyChunk chunk{};
  FewKeys<kHeadDim> few[kViews] = {};
  __builtin_assume(count <= kFewKeys);
  if (count > 0) {
    chunk = take_chunk(keys, 0, count);
#pragma unroll
    for (int view = 0; view < kViews; ++view) {
      const int head_of_all = (view * a.batch + job.batch) * a.key_heads + key_head;
      few[view].load(reinterpret_cast<const char*>(head_rows<Element>(a.k[view], job.batch, key_head)),
                     row_bytes<Element>(a.k[view]),
                     a.key_scale + static_cast<std::int64_t>(head_of_all) * a.key_tiles * kScreenKeys, chunk);
    }
  }
  QueryRows rows[kViews];
  ListWriter lists[kViews];
  float t[kViews][4];
  std::uint32_t alive[kViews];
  std::uint32_t live[kViews];
#pragma unroll
  for (int view = 0; view < kViews; ++view) {
    std::uint32_t queries[kHeadDim / 16][4];
    rows[view] = load_queries<Element, kHeadDim>(a, view, job, slot + view * Plan::kStripBytes, queries);
    lists[view].begin(a);
    score_few<Element, kHeadDim>(few[view], queries, rows[view], chunk, a.position_offset + row, t[view]);
    alive[view] = survivors_of(t[view]);
    live[view] = live_columns(alive[view]);
  }
  if ((live[0] | live[kViews - 1]) != 0) {
    int survivors[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      survivors[h] = (t[0][2 * h] > 0.0f || t[kViews - 1][2 * h] > 0.0f) +
                     (t[0][2 * h + 1] > 0.0f || t[kViews - 1][2 * h + 1] > 0.0f);
    }
    std::uint32_t values[2][kHeadDim / 8] = {};
    load_few_values<kHeadDim>(reinterpret_cast<const char*>(head_rows<Element>(a.v, job.batch, key_head)),
                              row_bytes<Element>(a.v), chunk, values[0]);
    hold(values[0]);  // or else they are put together anew for every slice
    std::uint32_t weights[4] = {};
    weigh_few<Element, kViews, kSquare>(a, job.head, rows, t, weights);
    float output[kHeadDim / 8][4] = {};
    add_slices<Element>(a, job, chunk, alive, live, weights, values, lists, output);
    store_strip<Element, kHeadDim>(a, job, output, rows[0]);
    if (a.survivors != nullptr) store_survivors(a, Sequence<false>(a, job.batch), job.head, row, survivors);
  } else {
    store_empty_strip<Element, kHeadDim>(a, job);
  }
#pragma unroll
  for (int view = 0; view < kViews; ++view) lists[view].finish(a, list_place(a, view, job.batch, job.head, row));
}

}  // namespace tda::cuda::sm90
