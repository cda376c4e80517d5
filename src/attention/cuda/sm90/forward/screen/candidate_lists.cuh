// Lists of candidate keys: what the screen leaves of a strip of 16 query rows where few keys are candidates.
//
// A strip's list names, in ascending order, every key that one of its rows may have as a survivor (and keys that turn
// out to be none). It holds kStripKeys at most; a strip with more is computed by blocks of 64 keys. Keys count inside
// the head and take 16 bits where all fit, otherwise 32.
#pragma once

#include "attention/cuda/sm90/forward/arguments.h"

namespace tda::cuda::sm90 {

// The lengths of a strip's lists go together in a word, that of view 2 in the upper half.
__device__ __forceinline__ int list_length(int counts, int view) { return view == 0 ? counts & 0xffff : counts >> 16; }
__device__ __forceinline__ int list_lengths(int counts) { return list_length(counts, 0) + list_length(counts, 1); }

constexpr int kListBytes = kStripKeys * 4;  // room for a list of either kind in shared memory

// The list of strip `strip` of all (views, B H_q, row_blocks * 16), for one warp.
class CandidateList {
 public:
  __device__ __forceinline__ CandidateList(const ForwardArguments& a, std::int64_t strip)
      : narrow_(has_narrow_lists(a.key_length)),
        entries_(static_cast<char*>(a.strip_keys) + strip * kStripKeys * (narrow_ ? 2 : 4)) {}

  // A list in shared memory, as it lies in global memory.
  __device__ __forceinline__ CandidateList(const ForwardArguments& a, char* entries)
      : narrow_(has_narrow_lists(a.key_length)), entries_(entries) {}

  // Appends to a list of `count` the keys first_key + l of the set bits l of `keys`, the same in all lanes; those that
  // do not fit are only counted. Returns the new number.
  __device__ __forceinline__ int append(int count, int first_key, std::uint32_t keys) const {
    const unsigned lane = threadIdx.x & 31;
    const int own = count + __popc(keys & ((1u << lane) - 1));
    if ((keys >> lane & 1u) != 0 && own < kStripKeys) {
      const int key = first_key + static_cast<int>(lane);
      if (narrow_) {
        reinterpret_cast<std::uint16_t*>(entries_)[own] = static_cast<std::uint16_t>(key);
      } else {
        reinterpret_cast<std::int32_t*>(entries_)[own] = key;
      }
    }
    return count + __popc(keys);
  }

  __device__ __forceinline__ const char* data() const { return entries_; }
  __device__ __forceinline__ int key_bytes() const { return narrow_ ? 2 : 4; }
  __device__ __forceinline__ int operator[](int place) const {
    return narrow_ ? reinterpret_cast<const std::uint16_t*>(entries_)[place]
                   : reinterpret_cast<const std::int32_t*>(entries_)[place];
  }

 private:
  bool narrow_;
  char* entries_;
};

// Bit l of the two words: key l, or key 32 + l, of the 64 keys of `block` is a candidate of one of the warp's rows.
// Scores above a row's threshold are candidates (wgmma.cuh names the elements of an accumulator).
__device__ __forceinline__ uint2 candidate_keys(const std::int32_t (&scores)[64], int block, int threshold0,
                                                int threshold1) {
  std::uint32_t own[2] = {0, 0};
#pragma unroll
  for (int n = 0; n < 8; ++n) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int i = block * 32 + 4 * n + e;
      if (scores[i] > threshold0 || scores[i + 2] > threshold1) own[n / 4] |= 1u << (8 * (n % 4) + e);
    }
  }
  const int column = static_cast<int>(threadIdx.x & 3) * 2;
  return {__reduce_or_sync(0xffffffffu, own[0] << column), __reduce_or_sync(0xffffffffu, own[1] << column)};
}

}  // namespace tda::cuda::sm90
