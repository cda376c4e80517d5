// How the backward kernels find their work in the survivor index, and what else they share.
#pragma once

#include "attention/cuda/portable/backward_plan.h"
#include "attention/cuda/portable/device_problem.cuh"
#include "attention/cuda/portable/kernels.h"

namespace tda::cuda::portable {

// Walks the set bits of a run of words. All threads of a warp take part and agree; it reads 32 words at once.
class BitWalk {
 public:
  __device__ BitWalk(const std::uint32_t* words, int count) : words_(words), count_(count) { look(); }
  // The next set bit, or -1.
  __device__ int next() {
    while (bits_ == 0) {
      while (live_ == 0) {
        base_ += 32;
        if (base_ >= count_) return -1;
        look();
      }
      word_ = __ffs(static_cast<int>(live_)) - 1;
      live_ &= live_ - 1;
      bits_ = __shfl_sync(0xffffffffu, own_, word_);
    }
    const int bit = __ffs(static_cast<int>(bits_)) - 1;
    bits_ &= bits_ - 1;
    return (base_ + word_) * 32 + bit;
  }

 private:
  __device__ void look() {
    const int word = base_ + static_cast<int>(threadIdx.x) % 32;
    own_ = word < count_ ? words_[word] : 0u;
    live_ = __ballot_sync(0xffffffffu, own_ != 0);
  }

  const std::uint32_t* words_;
  int count_, base_ = 0, word_ = 0;
  unsigned own_ = 0, live_ = 0, bits_ = 0;
};

// Walks the live slices of one row tile.
class SliceWalk {
 public:
  __device__ SliceWalk(const std::uint32_t* words, int count) : bits_(words, count) {}
  // First key of the next live slice, or -1.
  __device__ int next() {
    const int slice = bits_.next();
    return slice < 0 ? -1 : slice * kSliceKeys;
  }

 private:
  BitWalk bits_;
};

// First keys of up to four slices; unused ones lie at the end.
struct GatheredKeys {
  int first[4];
  int count = 0;

  __device__ explicit GatheredKeys(SliceWalk& walk) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      first[n] = walk.next();
      count += first[n] >= 0;
    }
  }
  // The key at `column` of the gathered tile, or -1.
  __device__ int key(int column) const {
    const int n = column / kSliceKeys;
    const int start = n == 0 ? first[0] : n == 1 ? first[1] : n == 2 ? first[2] : first[3];
    return start < 0 ? -1 : start + column % kSliceKeys;
  }
};

// Walks the row tiles of one head whose rows have a survivor among 64 keys. All threads take part and agree.
class RowTileWalk {
 public:
  // `first_key` is a multiple of 64; `words` are the head's words of the first row tile.
  __device__ RowTileWalk(const std::uint32_t* words, std::int64_t words_per_tile, int first_tile, int tiles,
                         int first_key)
      : words_(words + first_key / kKeysPerWord),
        words_per_tile_(words_per_tile),
        shift_(first_key / kSliceKeys % kSlicesPerWord),
        base_(first_tile),
        end_(tiles) {
    look();
  }
  // The next live row tile, or -1.
  __device__ int next() {
    while (live_ == 0) {
      base_ += 32;
      if (base_ >= end_) return -1;
      look();
    }
    const int bit = __ffs(static_cast<int>(live_)) - 1;
    live_ &= live_ - 1;
    current_ = bit;
    return base_ + bit;
  }
  // The live slices of the tile that next() named: bit n for the keys 16 n .. 16 n + 15 of the 64.
  __device__ unsigned slices() const { return __shfl_sync(0xffffffffu, slices_, current_); }

 private:
  __device__ void look() {
    const int tile = base_ + static_cast<int>(threadIdx.x) % 32;
    slices_ = tile < end_ ? words_[tile * words_per_tile_] >> shift_ & 15u : 0u;
    live_ = __ballot_sync(0xffffffffu, slices_ != 0);
  }

  const std::uint32_t* words_;
  std::int64_t words_per_tile_;
  int shift_, base_, end_;
  unsigned live_ = 0, slices_ = 0;
  int current_ = 0;
};

// The first row tile in which a row sees key `first_key` (bottom-right alignment).
__device__ inline int first_row_tile_of_key(const Sequence& s, int first_key) {
  const int first_row = first_key - (s.key_length - s.query_length);
  return first_row > 0 ? first_row / kSliceRows : 0;
}

// The weight of a view in the output: 1, or -lambda for the second.
__device__ inline float view_weight(const Problem& p, int view, int head) {
  return view == 0 ? 1.f : -clamped_lambda(p, head);
}

// The sum over the block in a fixed order; valid in thread 0.
template <int THREADS>
__device__ double block_sum(double x, double* scratch) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  double total = 0.0;
  if (threadIdx.x == 0) {
    for (int w = 0; w < THREADS / 32; ++w) total += scratch[w];
  }
  __syncthreads();
  return total;
}

// Whether a key head is done pair by pair (PairPlan).
__device__ inline bool is_listed(const Problem& p, const PairPlan& pairs, std::int64_t key_head, std::int64_t batch) {
  if (pairs.totals == nullptr) return false;
  const std::int64_t group = p.shape.query_heads / p.shape.key_heads;
  std::int64_t total = 0;
  for (int view = 0; view < p.views; ++view) {
    for (std::int64_t n = 0; n < group; ++n) {
      const std::uint32_t own = pairs.totals[SurvivorLists::head(p.shape, view, key_head * group + n, batch)];
      if (own >= kIncompleteHead) return false;
      total += own;
    }
  }
  return total <= pairs.records_per_head;
}

}  // namespace tda::cuda::portable
