// Single pairs of a query and a key that a warp computes exactly, for the screened fp32 kernels.
//
// A warp owns a strip of 16 rows (queries, or keys in the column half of the backward) and screens tiles of the other
// side with tensor cores (screen_product.cuh). Candidates wait in a queue in shared memory, so that one round of loads
// serves many of them. Scores use the same operations in the same order as score_tile (tile_product.cuh): chains of
// eight, added from the first to the last. So a pair has the same score, to the bit, wherever it is computed.
#pragma once

#include "attention/cuda/portable/device_problem.cuh"
#include "attention/cuda/portable/tile_product.cuh"

namespace tda::cuda::portable {

constexpr int kStripRows = 16;
constexpr unsigned kWholeWarp = 0xffffffffu;

// A queued pair: row of the strip, views that it is a candidate of, and the row on the other side.
constexpr int kOtherBits = 26;
constexpr std::int64_t kLongestScreened = std::int64_t{1} << kOtherBits;

__device__ __forceinline__ std::uint32_t pair_entry(int row, unsigned views, int other) {
  return static_cast<std::uint32_t>(row) << 28 | views << kOtherBits | static_cast<std::uint32_t>(other);
}
__device__ __forceinline__ int entry_row(std::uint32_t entry) { return static_cast<int>(entry >> 28); }
__device__ __forceinline__ unsigned entry_views(std::uint32_t entry) { return entry >> kOtherBits & 3u; }
__device__ __forceinline__ int entry_other(std::uint32_t entry) {
  return static_cast<int>(entry & ((1u << kOtherBits) - 1u));
}

__device__ __forceinline__ int lane_of_warp() { return static_cast<int>(threadIdx.x) % 32; }

// fp32 rows of one head of one sequence, with the factors that make them unit vectors.
struct UnitRows {
  const float* data;  // of row 0
  std::int64_t row_stride;
  const float *high, *low;  // of row 0
  int dim;
  bool vector;

  __device__ __forceinline__ float4 raw(int row, int d) const {
    if (d >= dim) return make_float4(0.f, 0.f, 0.f, 0.f);
    return load_four(DataType::kFloat32, data, row * row_stride + d, dim - d, vector);
  }
  __device__ __forceinline__ float4 unit(int row, int d) const {
    if (d >= dim) return make_float4(0.f, 0.f, 0.f, 0.f);
    return scaled(raw(row, d), high[row], low[row]);
  }
};

__device__ inline UnitRows unit_query_rows(const Problem& p, const Sequence& s, int view, int head) {
  const ConstTensor& q = p.inputs.q[view];
  const std::int64_t row = head * p.shape.batch * p.shape.query_length + s.flat_query;
  return {static_cast<const float*>(q.data) + row_offset(q, s.batch, head, s.first_query),
          q.row_stride,
          p.query_scale[view] + row,
          p.query_scale_low[view] + row,
          static_cast<int>(p.shape.head_dim),
          p.vector_q[view]};
}

__device__ inline UnitRows unit_key_rows(const Problem& p, const Sequence& s, int view, int key_head) {
  const ConstTensor& k = p.inputs.k[view];
  const std::int64_t row = key_head * p.shape.batch * p.shape.key_length + s.flat_key;
  return {static_cast<const float*>(k.data) + row_offset(k, s.batch, key_head, s.first_key),
          k.row_stride,
          p.key_scale[view] + row,
          p.key_scale_low[view] + row,
          static_cast<int>(p.shape.head_dim),
          p.vector_k[view]};
}

__device__ inline UnitRows value_rows(const Problem& p, const Sequence& s, int key_head) {
  const ConstTensor& v = p.inputs.v;
  return {static_cast<const float*>(v.data) + row_offset(v, s.batch, key_head, s.first_key),
          v.row_stride,
          nullptr,
          nullptr,
          static_cast<int>(p.shape.value_dim),
          p.vector_v};
}

__device__ __forceinline__ float chain_of_four(const float4& a, const float4& b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

// The product of two rows by eight neighbouring lanes, four products in a warp; all lanes take part. load_a(d) and
// load_b(d) return four elements, zero beyond the row; DIM is the depth rounded up to a multiple of 64.
template <int DIM, class LoadA, class LoadB>
__device__ __forceinline__ float pair_product(LoadA load_a, LoadB load_b) {
  const int part = lane_of_warp() % 8;
  float partial[DIM / 64];
#pragma unroll
  for (int n = 0; n < DIM / 64; ++n) {
    const int d = 64 * n + 8 * part;
    const float4 a0 = load_a(d), a1 = load_a(d + 4), b0 = load_b(d), b1 = load_b(d + 4);
    partial[n] = chain_of_four(a1, b1, chain_of_four(a0, b0, 0.f));
  }
  float sum = 0.f;
#pragma unroll
  for (int n = 0; n < DIM / 64; ++n) {
#pragma unroll
    for (int c = 0; c < 8; ++c) sum += __shfl_sync(kWholeWarp, partial[n], c, 8);
  }
  return sum;
}

// Columns of a row that belong to a lane: COLUMNS / 32 neighbours.
template <int COLUMNS>
struct LaneColumns {
  static constexpr int kCount = COLUMNS / 32;
  float x[kCount];

  __device__ static int first() { return lane_of_warp() * kCount; }
  __device__ __forceinline__ void load(const float* row, int columns, bool vector) {
    const int left = columns - first();
    if (vector && left >= kCount) {
      if constexpr (kCount == 2) {
        const float2 pair = *reinterpret_cast<const float2*>(row + first());
        x[0] = pair.x, x[1] = pair.y;
      } else {
        const float4 four = *reinterpret_cast<const float4*>(row + first());
        x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = i < left ? row[first() + i] : 0.f;
  }
  __device__ __forceinline__ void store(float* row, int columns) const {
    const int left = columns - first();
    if (left >= kCount && reinterpret_cast<std::uintptr_t>(row) % (4 * kCount) == 0) {
      if constexpr (kCount == 2) {
        *reinterpret_cast<float2*>(row + first()) = make_float2(x[0], x[1]);
      } else {
        *reinterpret_cast<float4*>(row + first()) = make_float4(x[0], x[1], x[2], x[3]);
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < left) row[first() + i] = x[i];
    }
  }
};

// The sum over rows of a strip of weight times a row of COLUMNS values, in shared memory; a lane touches its own
// columns only. Weights come in the order of rows of the other side; products of one chain (the caller says where it
// ends) are added in registers before they join the row's sum.
template <int COLUMNS>
struct StripSums {
  static constexpr int kCount = LaneColumns<COLUMNS>::kCount;
  float (*rows)[COLUMNS];  // [kStripRows], in shared memory
  float partial[kCount];
  std::uint32_t chain;  // row of the strip in the top four bits

  __device__ void clear() {
    chain = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) partial[i] = 0.f;
    for (int r = 0; r < kStripRows; ++r) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) rows[r][LaneColumns<COLUMNS>::first() + i] = 0.f;
    }
  }
  __device__ __forceinline__ void flush() {
    float* const row = rows[chain >> 28] + LaneColumns<COLUMNS>::first();
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      row[i] += partial[i];
      partial[i] = 0.f;
    }
  }
  __device__ __forceinline__ void add(std::uint32_t of_chain, float weight, const LaneColumns<COLUMNS>& values) {
    if (of_chain != chain) {
      flush();
      chain = of_chain;
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) partial[i] = fmaf(weight, values.x[i], partial[i]);
  }
};

}  // namespace tda::cuda::portable
