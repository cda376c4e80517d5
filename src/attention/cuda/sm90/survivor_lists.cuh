// Writes the lists of survivors (common/survivor_index.h) of the 16 rows that a warp owns for a whole job.
//
// The four lanes of a quad share rows g and g + 8; places in a list go by prefix sums over the quad, so that a list
// depends on the scores alone. Cost: about 50 instructions for 16 keys with a survivor. A warp that meets a row with
// more than a list holds marks the head as incomplete and stops listing. At the end a warp adds its number of pairs to
// that of the head.
#pragma once

#include "attention/cuda/sm90/forward_arguments.h"

namespace tda::cuda::sm90 {

// Which slices of 16 keys hold t > 0 (or NaN, which has a clear sign bit) in this thread.
template <int kSize>
__device__ __forceinline__ std::uint32_t live_slices(const float (&t)[kSize]) {
  std::uint32_t slices = 0;
#pragma unroll
  for (int slice = 0; slice < kSize / 8; ++slice) {
    int maximum = -1;
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      maximum = __vimax3_s32(maximum, __float_as_int(t[slice * 8 + i]), __float_as_int(t[slice * 8 + i + 1]));
    }
    slices |= maximum > 0 ? 1u << slice : 0u;
  }
  return slices;
}

class ListWriter {
 public:
  __device__ __forceinline__ bool lists() const { return capacity_ != 0; }

  // `row`: that of g, counted in the sequence; `head_of_all`: batch * query_heads + query head.
  __device__ __forceinline__ void begin(const ForwardArguments& a, int view, int head_of_all, int row) {
    const bool wanted = a.index != nullptr && a.lists.rows != nullptr && a.lists_wanted;
    capacity_ = wanted ? list_capacity(a.key_length) : 0;
    count_ = 0;
    if (!wanted) return;
    head_ = (view * a.query_heads + head_of_all % a.query_heads) * a.batch + head_of_all / a.query_heads;
    rows_ = a.lists.rows + (static_cast<std::int64_t>(head_) * a.query_length + row) * kListWords;
    left_ = a.query_length - row;
  }

  // Excesses of 16-key slices (wgmma.cuh), of which `slices` (live_slices of the whole warp) hold a survivor.
  template <int kSize>
  __device__ __forceinline__ void add(const ForwardArguments& a, const float (&t)[kSize], std::uint32_t slices,
                                      int first_key) {
    if (capacity_ == 0 || slices == 0) return;
#pragma unroll
    for (int slice = 0; slice < kSize / 8; ++slice) {
      if ((slices >> slice & 1u) == 0) continue;
      float own[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) own[i] = t[8 * slice + i];
      add_slice(own, first_key + 16 * slice);
    }
    if (__any_sync(0xffffffffu, (count_ & 0xffffu) > capacity_ || count_ >> 16 > capacity_)) {
      capacity_ = 0;
      if (lane() == 0) atomicOr(a.lists.totals + head_, kIncompleteHead);
    }
  }

  // After the last key.
  __device__ __forceinline__ void finish(const ForwardArguments& a) {
    if (capacity_ == 0) return;
    const bool leads = (lane() & 3) == 0;
    const std::uint32_t pairs = __reduce_add_sync(0xffffffffu, leads ? (count_ & 0xffffu) + (count_ >> 16) : 0u);
    if (lane() == 0 && pairs != 0) atomicAdd(a.lists.totals + head_, pairs);
    if (!leads) return;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (8 * h < left_) write(h, 0, h == 0 ? count_ & 0xffffu : count_ >> 16);
    }
  }

 private:
  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x & 31); }

  // Entry 0 of a list is its number of keys.
  __device__ __forceinline__ void write(int h, std::uint32_t entry, std::uint32_t value) {
    std::uint32_t* const row = rows_ + 8 * h * kListWords;
    if (capacity_ >= kListWords) {
      reinterpret_cast<std::uint16_t*>(row)[entry] = static_cast<std::uint16_t>(value);
    } else {
      row[entry] = value;
    }
  }

  // Counts of the two rows go together, in the halves of a word.
  __device__ __forceinline__ void add_slice(const float (&t)[8], int first_key) {
    std::uint32_t survivors = 0;  // bit i: t[i]
#pragma unroll
    for (int i = 0; i < 8; ++i) survivors |= !(t[i] <= 0.0f) && 8 * (i >> 1 & 1) < left_ ? 1u << i : 0u;
    const int c = lane() & 3;
    const std::uint32_t own = __popc(survivors & 0x33u) | __popc(survivors & 0xccu) << 16;
    std::uint32_t sum = own;
#pragma unroll
    for (int step = 1; step < 4; step *= 2) {
      const std::uint32_t before = __shfl_up_sync(0xffffffffu, sum, step);
      if (c >= step) sum += before;
    }
    std::uint32_t place = count_ + sum - own;
    count_ += __shfl_sync(0xffffffffu, sum, lane() | 3);
    for (; survivors != 0; survivors &= survivors - 1) {
      const int i = __ffs(static_cast<int>(survivors)) - 1, h = i >> 1 & 1;
      const std::uint32_t here = h == 0 ? place & 0xffffu : place >> 16;
      place += h == 0 ? 1u : 0x10000u;
      if (here < capacity_) write(h, 1 + here, static_cast<std::uint32_t>(first_key + 8 * (i >> 2) + 2 * c + (i & 1)));
    }
  }

  std::uint32_t* rows_ = nullptr;
  int head_ = 0;  // of a.lists.totals
  std::uint32_t count_ = 0;
  std::uint32_t capacity_ = 0;  // of a list; 0: none are written
  int left_ = 0;                // rows from row g to the end
};

}  // namespace tda::cuda::sm90
