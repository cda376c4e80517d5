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

// Rows are read by __ldg: a struct of pointers that lies in memory hides from the compiler that they are global, and
// generic loads would not be moved across stores to shared memory.
// fp32 rows of one head of one sequence, with the factors that make them unit vectors. Rows can be read four elements
// at a time, and their number of elements is a multiple of four: other calls are not screened.
struct UnitRows {
  const float* data;  // of row 0
  std::int64_t row_stride;
  const float *high, *low;  // of row 0
  int dim;

  // Elements d .. d + 7, zero beyond the row.
  __device__ __forceinline__ void load_raw(int row, int d, float4 (&x)[2]) const {
    const float* const from = data + row * row_stride + d;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      x[n] = d + 4 * n < dim ? __ldg(reinterpret_cast<const float4*>(from + 4 * n)) : make_float4(0.f, 0.f, 0.f, 0.f);
    }
  }
  __device__ __forceinline__ void load_unit(int row, int d, float4 (&x)[2]) const {
    load_raw(row, d, x);
    const float factor = __ldg(high + row), rest = __ldg(low + row);
    x[0] = scaled(x[0], factor, rest), x[1] = scaled(x[1], factor, rest);
  }
};

__device__ inline UnitRows unit_query_rows(const Problem& p, const Sequence& s, int view, int head) {
  const ConstTensor& q = p.inputs.q[view];
  const std::int64_t row = head * p.shape.batch * p.shape.query_length + s.flat_query;
  return {static_cast<const float*>(q.data) + row_offset(q, s.batch, head, s.first_query), q.row_stride,
          p.query_scale[view] + row, p.query_scale_low[view] + row, static_cast<int>(p.shape.head_dim)};
}

__device__ inline UnitRows unit_key_rows(const Problem& p, const Sequence& s, int view, int key_head) {
  const ConstTensor& k = p.inputs.k[view];
  const std::int64_t row = key_head * p.shape.batch * p.shape.key_length + s.flat_key;
  return {static_cast<const float*>(k.data) + row_offset(k, s.batch, key_head, s.first_key), k.row_stride,
          p.key_scale[view] + row, p.key_scale_low[view] + row, static_cast<int>(p.shape.head_dim)};
}

__device__ inline UnitRows value_rows(const Problem& p, const Sequence& s, int key_head) {
  const ConstTensor& v = p.inputs.v;
  return {static_cast<const float*>(v.data) + row_offset(v, s.batch, key_head, s.first_key), v.row_stride, nullptr,
          nullptr, static_cast<int>(p.shape.value_dim)};
}

__device__ __forceinline__ float chain_of_four(const float4& a, const float4& b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

// Of 32 queued pairs, the eight lanes of group g multiply the pairs 4 u + g, u < 8; afterwards each lane owns one.
__device__ __forceinline__ int own_pair() { return lane_of_warp() % 8 * 4 + lane_of_warp() / 8; }

// Hands partial sum u of lane c to lane u of the group, where it becomes number c.
__device__ __forceinline__ void transpose_over_group(float (&partial)[8]) {
#pragma unroll
  for (int step = 4; step > 0; step /= 2) {
    const bool upper = (lane_of_warp() & step) != 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if ((i & step) != 0) continue;
      const float received = __shfl_xor_sync(kWholeWarp, upper ? partial[i] : partial[i | step], step);
      (upper ? partial[i] : partial[i | step]) = received;
    }
  }
}

// The products of the first `count` (at least 1) of 32 queued pairs, in the lanes that own them. A lane computes one
// chain of eight; AT_ONCE pairs are loaded at once. load_a(entry, d) and load_b(entry, d) return four elements, zero
// beyond the row; DIM is the depth rounded up to a multiple of 64.
template <int DIM, int AT_ONCE, class LoadA, class LoadB>
__device__ __forceinline__ float pair_products(const std::uint32_t* entries, int count, LoadA load_a, LoadB load_b) {
  float sum = 0.f;
#pragma unroll
  for (int n = 0; n < DIM / 64; ++n) {
    const int d = 64 * n + lane_of_warp() % 8 * 8;
    float partial[8] = {};
#pragma unroll
    for (int first = 0; first < 8; first += AT_ONCE) {
      if (4 * first >= count) continue;
      float4 a[AT_ONCE][2], b[AT_ONCE][2];
#pragma unroll
      for (int u = 0; u < AT_ONCE; ++u) {
        const std::uint32_t entry = entries[min(4 * (first + u) + lane_of_warp() / 8, count - 1)];
        load_a(entry, d, a[u]);
        load_b(entry, d, b[u]);
      }
#pragma unroll
      for (int u = 0; u < AT_ONCE; ++u) {
        partial[first + u] = chain_of_four(a[u][1], b[u][1], chain_of_four(a[u][0], b[u][0], 0.f));
      }
    }
    transpose_over_group(partial);
#pragma unroll
    for (int c = 0; c < 8; ++c) sum += partial[c];
  }
  return sum;
}

// Columns of a row that belong to a lane: COLUMNS / 32 neighbours.
template <int COLUMNS>
struct LaneColumns {
  static constexpr int kCount = COLUMNS / 32;
  float x[kCount];

  __device__ static int first() { return lane_of_warp() * kCount; }
  __device__ __forceinline__ void load(const float* row, int columns) {
    if (first() >= columns) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) x[i] = 0.f;
    } else if constexpr (kCount == 2) {
      const float2 pair = __ldg(reinterpret_cast<const float2*>(row + first()));
      x[0] = pair.x, x[1] = pair.y;
    } else {
      const float4 four = __ldg(reinterpret_cast<const float4*>(row + first()));
      x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
    }
  }
  __device__ __forceinline__ void store(float* row, int columns) const {
    if (first() >= columns) return;
    if (reinterpret_cast<std::uintptr_t>(row) % (4 * kCount) != 0) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) row[first() + i] = x[i];
    } else if constexpr (kCount == 2) {
      *reinterpret_cast<float2*>(row + first()) = make_float2(x[0], x[1]);
    } else {
      *reinterpret_cast<float4*>(row + first()) = make_float4(x[0], x[1], x[2], x[3]);
    }
  }
};

// The sum over rows of a strip of weight times a row of COLUMNS values, in shared memory; a lane touches its own
// columns only. Weights come in the order of rows of the other side; products of one chain (the caller says where it
// ends) are added in registers before they join the row's sum.
template <int COLUMNS>
struct StripSums {
  static constexpr int kCount = LaneColumns<COLUMNS>::kCount;
  float (*rows)[COLUMNS];  // of the strip, or the warp's share of it, in shared memory
  float partial[kCount];
  std::uint32_t chain;  // index of the row in the top four bits

  __device__ void clear(int count) {
    chain = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) partial[i] = 0.f;
    for (int r = 0; r < count; ++r) {
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
