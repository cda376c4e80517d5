// The backward of listed heads, pair by pair (PairPlan): where a row has a handful of survivors, all that tiles share
// is waste. The plan counts the pairs of each key; then, one after the other:
//
//   runs.cu       gives each key a run of records as long as its number of pairs, and computes 1/|k|
//   rows.cu       dq, shares of dbeta and dlambda; for every pair a record into the run of its key
//   keys.cu       dk of all views and dv, sums over records: no score is computed again
//   long_keys.cu  the same for keys with many pairs, from first principles
//
// Here is what they share. A warp works on four pairs at once, eight lanes each; a lane holds 8 (D = 64) or 16
// (D = 128) elements of a row. Scores, dP and sums are fp32. A pair costs four rows read from the L2 cache, two by its
// query and two by its key, so latency decides: warps take 32 rows (or keys) at a time, sort them by their number of
// pairs so that the four groups of lanes end together, and have the rows of the next kStages steps under way to shared
// memory. A lane copies and reads its own chunks, so that this needs no barrier.
#pragma once

#include "attention/cuda/portable/half_operands.cuh"

namespace tda::cuda::portable {

constexpr int kPairWarps = 2;  // few, so that a block does not wait for a warp with more pairs
constexpr int kPairThreads = kPairWarps * 32;
constexpr int kRowsPerWarp = kSliceRows / kPairWarps;
static_assert(kRowsPerWarp == 32, "a lane looks after a row");
constexpr int kLanesPerPair = 8;
constexpr int kPairsAtOnce = 32 / kLanesPerPair;

__device__ __forceinline__ int lane_of_pair() { return own_lane() % kLanesPerPair; }
__device__ __forceinline__ int pair_of_lane() { return own_lane() / kLanesPerPair; }

// The sum over this lane and those before it.
__device__ __forceinline__ std::uint32_t sum_up_to(std::uint32_t own) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const std::uint32_t before = __shfl_up_sync(0xffffffffu, own, step);
    if (own_lane() >= step) own += before;
  }
  return own;
}

__device__ __forceinline__ float sum_over_pair(float x) {
#pragma unroll
  for (int step = 1; step < kLanesPerPair; step *= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// data + row * stride in one instruction; the compiler makes four of it.
template <class Byte>
__device__ __forceinline__ Byte* offset_by(Byte* data, int row, std::uint32_t stride) {
  std::uint64_t address = reinterpret_cast<std::uint64_t>(data);
  asm("mad.wide.u32 %0, %1, %2, %0;" : "+l"(address) : "r"(row), "r"(stride));
  return reinterpret_cast<Byte*>(address);
}

// This lane's first chunk of row 0 of a head, and what leads to those of other rows: one instruction finds a row.
// Strides are below 2^32 bytes (rows_are_wide in portable.cpp).
struct PairRows {
  const unsigned char* data;
  std::uint32_t stride;  // bytes

  __device__ __forceinline__ explicit PairRows(const HalfRows& rows)
      : data(static_cast<const unsigned char*>(rows.data) + rows.start * 2 + lane_of_pair() * 16),
        stride(static_cast<std::uint32_t>(rows.row_stride * 2)) {}
  // For rows that an inner loop looks up: one address in registers, not pieces of it to be added each time.
  __device__ __forceinline__ PairRows pinned() const {
    PairRows own = *this;
    asm volatile("" : "+l"(own.data));
    return own;
  }
  __device__ __forceinline__ const uint4* at(int row) const {
    return reinterpret_cast<const uint4*>(offset_by(data, row, stride));
  }
};
// The same of a gradient.
struct PairTargets {
  unsigned char* data;  // null: not wanted
  std::uint32_t stride;

  __device__ __forceinline__ PairTargets(const Tensor& target, std::int64_t batch, std::int64_t head)
      : data(static_cast<unsigned char*>(target.data)), stride(static_cast<std::uint32_t>(target.row_stride * 2)) {
    if (data != nullptr) data += row_offset(target, batch, head, 0) * 2 + lane_of_pair() * 16;
  }
  __device__ __forceinline__ uint4* at(int row) const { return reinterpret_cast<uint4*>(offset_by(data, row, stride)); }
};
constexpr int kPartStride = kLanesPerPair;  // from one chunk of a lane to its next

// A lane's elements of a row, as they are in memory: chunks of eight.
template <int DIM>
struct RawElements {
  static constexpr int kParts = DIM / 64;
  uint4 part[kParts];

  // Zeros where the row does not exist.
  __device__ __forceinline__ static RawElements load(const PairRows& rows, int row, bool exists) {
    const uint4* const data = rows.at(row);
    RawElements raw;
#pragma unroll
    for (int i = 0; i < kParts; ++i) raw.part[i] = exists ? __ldg(data + i * kPartStride) : make_uint4(0, 0, 0, 0);
    return raw;
  }
};

constexpr int kStages = 4;  // of rows on their way; the copies of a step are one group

// A word on its way to shared memory, or 0.
__device__ __forceinline__ void copy_word_async(void* shared, const void* global, bool exists) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(exists ? 4 : 0)
               : "memory");
}

// A row of each pair that the warp works on at once, on its way to or in shared memory. A lane touches its own alone.
template <int DIM>
struct StagedRows {
  uint4 chunk[DIM / 64][32];

  // Begins to copy; zeros where the row does not exist.
  __device__ __forceinline__ void copy(const PairRows& rows, int row, bool exists) {
    const uint4* const data = rows.at(row);
#pragma unroll
    for (int i = 0; i < DIM / 64; ++i) copy_async(&chunk[i][own_lane()], data + i * kPartStride, exists);
  }
  __device__ __forceinline__ RawElements<DIM> read() const {
    RawElements<DIM> raw;
#pragma unroll
    for (int i = 0; i < DIM / 64; ++i) raw.part[i] = chunk[i][own_lane()];
    return raw;
  }
};

// Rows (or keys) of a warp by their number of pairs, most first: lane n holds the n-th, as weight * 32 + lane.
__device__ __forceinline__ std::uint32_t sort_by_weight(std::uint32_t weight) {
  const std::uint32_t lane = static_cast<std::uint32_t>(own_lane());
  std::uint32_t own = weight * 32 + lane;
#pragma unroll
  for (std::uint32_t run = 2; run <= 32; run *= 2) {
#pragma unroll
    for (std::uint32_t step = run / 2; step > 0; step /= 2) {
      const std::uint32_t other = __shfl_xor_sync(0xffffffffu, own, step);
      const bool greater = ((lane & run) == 0) == ((lane & step) == 0);
      own = greater ? max(own, other) : min(own, other);
    }
  }
  return own;
}

// Factors beyond which products with raw elements could leave fp32; elements are scaled first then. NaN is beyond.
__device__ __forceinline__ bool is_extreme(float factor) { return !(factor > 0x1p-60f && factor < 0x1p60f); }

// A lane's elements of a row.
template <int DIM>
struct Elements {
  static constexpr int kCount = DIM / kLanesPerPair;
  float x[kCount];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = 0.f;
  }
  template <class T>
  __device__ __forceinline__ void unpack(int part, const uint4& raw) {
    const std::uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (std::is_same_v<T, __nv_bfloat16>) {  // the upper half of an fp32 number
        x[8 * part + 2 * i] = __uint_as_float(words[i] << 16);
        x[8 * part + 2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
      } else {
        const float2 pair = load_pair(reinterpret_cast<const T*>(&words[i]));
        x[8 * part + 2 * i] = pair.x;
        x[8 * part + 2 * i + 1] = pair.y;
      }
    }
  }
  template <class T>
  __device__ __forceinline__ void unpack(const RawElements<DIM>& raw) {
#pragma unroll
    for (int part = 0; part < kCount / 8; ++part) unpack<T>(part, raw.part[part]);
  }
  template <class T>
  __device__ __forceinline__ void load(const PairRows& rows, int row) {
    unpack<T>(RawElements<DIM>::load(rows, row, true));
  }
  template <class T>
  __device__ __forceinline__ void store(uint4* row) const {
#pragma unroll
    for (int part = 0; part < kCount / 8; ++part) {
      std::uint32_t words[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i] = rounded_pair<T>(x[8 * part + 2 * i], x[8 * part + 2 * i + 1]);
      __stcg(row + part * kPartStride, make_uint4(words[0], words[1], words[2], words[3]));
    }
  }
  __device__ __forceinline__ void add_scaled(float factor, const Elements& other) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = fmaf(factor, other.x[i], x[i]);
  }
  __device__ __forceinline__ void scale(float factor) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] *= factor;
  }
  // Over the pairs that the warp works on at once, in a fixed order.
  __device__ __forceinline__ void sum_over_pairs() {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      x[i] += __shfl_xor_sync(0xffffffffu, x[i], kLanesPerPair);
      x[i] += __shfl_xor_sync(0xffffffffu, x[i], 2 * kLanesPerPair);
    }
  }
};

template <int DIM>
__device__ __forceinline__ float dot(const Elements<DIM>& a, const Elements<DIM>& b) {
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < Elements<DIM>::kCount; ++i) sum = fmaf(a.x[i], b.x[i], sum);
  return sum_over_pair(sum);
}

// 1 / max(|x|, 1e-12) of the row that the lanes of a pair hold, 1 without normalization, NaN for a row that is not
// finite, 0 for one that does not exist. In double where the square leaves fp32's comfort.
template <int DIM>
__device__ __forceinline__ float row_factor(const Elements<DIM>& row, bool normalize, bool exists) {
  const float square = dot(row, row);
  const float first = rsqrtf(square);  // one step of Newton's method takes it to half a unit more than the last place
  float factor = normalize ? fmaf(0.5f * first, fmaf(-square * first, first, 1.f), first) : 1.f;
  if (__any_sync(0xffffffffu, exists && !(square > 1e-24f && square < 1e30f))) {
    double exact = 0.0;
#pragma unroll
    for (int i = 0; i < Elements<DIM>::kCount; ++i) {
      const auto x = static_cast<double>(row.x[i]);
      exact = fma(x, x, exact);
    }
#pragma unroll
    for (int step = 1; step < kLanesPerPair; step *= 2) exact += __shfl_xor_sync(0xffffffffu, exact, step);
    factor = !isfinite(exact) ? CUDART_NAN_F : normalize ? static_cast<float>(1.0 / fmax(sqrt(exact), 1e-12)) : 1.f;
  }
  return exists ? factor : 0.f;
}

// The gradient of a row from that of its unit vector: dx = (du - u <u, du>) f.
template <int DIM>
__device__ __forceinline__ void undo_norm(bool normalize, const Elements<DIM>& unit, float factor,
                                          Elements<DIM>& gradient) {
  if (normalize) gradient.add_scaled(-dot(unit, gradient), unit);
  gradient.scale(factor);
}

}  // namespace tda::cuda::portable
