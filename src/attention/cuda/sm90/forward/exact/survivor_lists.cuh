// Writes the lists of survivors (common/survivor_index.h) of the 16 rows that a warp owns for a whole job.
//
// The four lanes of a quad share rows g and g + 8; places in a list follow a fixed order inside 16 aligned keys, so
// that a list depends on the scores alone. Cost: about 50 instructions for 16 keys with a survivor. A warp that meets a
// row with more than a list holds marks the head as incomplete and stops listing. At the end a warp adds its number of
// pairs to that of the head.
#pragma once

#include "attention/cuda/sm90/forward/arguments.h"

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

// Where the list of a thread's row g lies: cheap to say anew whenever it is needed, so that no register holds it around
// the loop over keys.
struct ListPlace {
  int head;  // entry of lists.totals
  int row;   // in the sequence
};

__device__ __forceinline__ ListPlace list_place(const ForwardArguments& a, int view, int batch, int head, int row) {
  return {(view * a.query_heads + head) * a.batch + batch, row};
}

class ListWriter {
 public:
  __device__ __forceinline__ bool lists() const { return count_ != kNone; }

  __device__ __forceinline__ void begin(const ForwardArguments& a) {
    count_ = a.index != nullptr && a.lists.rows != nullptr && a.lists_wanted ? 0 : kNone;
  }

  // Excesses of 16-key slices (wgmma.cuh), of which `slices` (live_slices of the whole warp) hold a survivor.
  template <int kSize>
  __device__ __forceinline__ void add(const ForwardArguments& a, const ListPlace& place, const float (&t)[kSize],
                                      std::uint32_t slices, int first_key) {
    if (!lists() || slices == 0) return;
#pragma unroll
    for (int slice = 0; slice < kSize / 8; ++slice) {
      if ((slices >> slice & 1u) == 0) continue;
      float own[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) own[i] = t[8 * slice + i];
      add_slice(a, place, own, first_key + 16 * slice);
    }
    stop_when_full(a, place);
  }

  // The same for the columns `slice` of a chunk of 16 keys (key_chunk.cuh), which are of one slice. `column_key` are
  // the keys of this lane's columns; bit i of `alive` says whether element i of its part of the accumulator survives.
  __device__ __forceinline__ void add_listed(const ForwardArguments& a, const ListPlace& place, std::uint32_t alive,
                                             std::uint32_t slice, const int (&column_key)[4]) {
    if (!lists()) return;
    const int c = lane() & 3;
    const int left = a.query_length - place.row;
    std::uint32_t* const list = row_list(a, place);
    std::uint32_t mark[8] = {};  // of a survivor: its place in the order of add_slice, row g + 8 in the upper half
    std::uint32_t marks = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int column = 8 * (j >> 1) + 2 * c + (j & 1);
      const int in_slice = column_key[j] & 15;
      const int order = (in_slice >> 1 & 3) * 4 + (in_slice >> 3) * 2 + (in_slice & 1);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int i = 4 * (j >> 1) + 2 * h + (j & 1);
        if ((alive >> i & 1u) != 0 && (slice >> column & 1u) != 0 && 8 * h < left) mark[i] = 1u << (16 * h + order);
        marks |= mark[i];
      }
    }
    marks |= __shfl_xor_sync(0xffffffffu, marks, 1);
    marks |= __shfl_xor_sync(0xffffffffu, marks, 2);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (mark[i] == 0) continue;
      const int h = i >> 1 & 1;
      const std::uint32_t before = marks & (mark[i] - 1) & (h == 0 ? 0xffffu : 0xffff0000u);
      const std::uint32_t here = (h == 0 ? count_ & 0xffffu : count_ >> 16) + __popc(before);
      if (here < list_capacity(a.key_length)) {
        write(a, list, h, 1 + here, static_cast<std::uint32_t>(column_key[2 * (i >> 2) + (i & 1)]));
      }
    }
    count_ += __popc(marks & 0xffffu) + (__popc(marks >> 16) << 16);
    stop_when_full(a, place);
  }

  // After the last key.
  __device__ __forceinline__ void finish(const ForwardArguments& a, const ListPlace& place) {
    if (!lists()) return;
    const bool leads = (lane() & 3) == 0;
    const std::uint32_t pairs = __reduce_add_sync(0xffffffffu, leads ? (count_ & 0xffffu) + (count_ >> 16) : 0u);
    if (lane() == 0 && pairs != 0) atomicAdd(a.lists.totals + place.head, pairs);
    if (!leads) return;
    std::uint32_t* const list = row_list(a, place);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (place.row + 8 * h < a.query_length) write(a, list, h, 0, h == 0 ? count_ & 0xffffu : count_ >> 16);
    }
  }

 private:
  static constexpr std::uint32_t kNone = 0xffffffffu;

  __device__ __forceinline__ static int lane() { return static_cast<int>(threadIdx.x & 31); }

  __device__ __forceinline__ static std::uint32_t* row_list(const ForwardArguments& a, const ListPlace& place) {
    return a.lists.rows +
           (static_cast<std::int64_t>(place.head) * a.query_length + static_cast<std::uint32_t>(place.row)) *
               kListWords;
  }

  __device__ __forceinline__ void stop_when_full(const ForwardArguments& a, const ListPlace& place) {
    const std::uint32_t capacity = list_capacity(a.key_length);
    if (__any_sync(0xffffffffu, (count_ & 0xffffu) > capacity || count_ >> 16 > capacity)) {
      count_ = kNone;
      if (lane() == 0) atomicOr(a.lists.totals + place.head, kIncompleteHead);
    }
  }

  // Entry `entry` of the list of row g + 8 h; the first is the number of keys.
  __device__ __forceinline__ static void write(const ForwardArguments& a, std::uint32_t* list, int h,
                                               std::uint32_t entry, std::uint32_t value) {
    std::uint32_t* const row = list + 8 * h * kListWords;
    if (list_capacity(a.key_length) >= kListWords) {
      reinterpret_cast<std::uint16_t*>(row)[entry] = static_cast<std::uint16_t>(value);
    } else {
      row[entry] = value;
    }
  }

  // Counts of the two rows go together, in the halves of a word.
  __device__ __forceinline__ void add_slice(const ForwardArguments& a, const ListPlace& at, const float (&t)[8],
                                            int first_key) {
    std::uint32_t* const list = row_list(a, at);
    const int left = a.query_length - at.row;  // rows from row g to the end
    std::uint32_t survivors = 0;               // bit i: t[i]
#pragma unroll
    for (int i = 0; i < 8; ++i) survivors |= !(t[i] <= 0.0f) && 8 * (i >> 1 & 1) < left ? 1u << i : 0u;
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
      if (here < list_capacity(a.key_length)) {
        write(a, list, h, 1 + here, static_cast<std::uint32_t>(first_key + 8 * (i >> 2) + 2 * c + (i & 1)));
      }
    }
  }

  std::uint32_t count_ = kNone;  // of both rows; kNone when this warp lists nothing (any more)
};

}  // namespace tda::cuda::sm90
