// What the two kernels of the screened fp32 forward share, and a warp's exact work on the candidates of its own strip.
#pragma once

#include "attention/cuda/portable/half_tile.cuh"
#include "attention/cuda/portable/kernels.h"
#include "attention/cuda/portable/screen_product.cuh"

namespace tda::cuda::portable {

constexpr int kKeys = 64, kThreads = 256, kWarps = kThreads / 32;
constexpr int kQueue = 128;
constexpr int kPairsAtOnce = 2;  // under way; more would need registers that the screen holds

struct PairQueue {
  std::uint32_t entries[kQueue];
  float weights[kQueue];
};

template <int VIEWS, int DIM, int COLUMNS>
struct Plan {
  static constexpr int kStages = VIEWS * DIM > 64 ? 2 : 3, kRows = kWarps * kStripRows;
  __half keys[kStages][VIEWS][kKeys * DIM];
  float sums[kRows][COLUMNS];
  PairQueue queue[kWarps];
  Threshold threshold[kRows];
  int survivors[kRows];
  int candidates[2][kWarps];
};

struct Block {
  Sequence sequence;
  int head, key_head;
  int first;      // query row of the block in the sequence
  int offset;     // absolute position of query row 0
  int rows;       // that exist
  int key_tiles;  // that a row sees
};

__device__ inline Block make_block(const Problem& p, std::int64_t tiles, std::int64_t index) {
  const BlockTask task = block_task(index, p.shape.query_heads, p.sequences);
  Block b;
  b.sequence = sequence_at(p, task.sequence);
  b.head = task.head;
  b.key_head = static_cast<int>(task.head / (p.shape.query_heads / p.shape.key_heads));
  b.first = static_cast<int>((tiles - 1 - task.tile) * kDenseRows);
  b.offset = b.sequence.key_length - b.sequence.query_length;
  b.rows = min(kDenseRows, b.sequence.query_length - b.first);
  b.key_tiles = (b.offset + b.first + b.rows + kKeys - 1) / kKeys;
  return b;
}

// Unreachable for rows that do not exist.
__device__ inline Threshold threshold_of_row(const Problem& p, const Block& b, int row) {
  return row < b.rows ? threshold_at(load_beta(p, b.head), p.position_scale[b.offset + b.first + row])
                      : unreachable_threshold();
}

// Rows of the fp16 copies.
__device__ inline HalfRows screen_rows(const Problem& p, const void* copy, std::int64_t first, int rows) {
  return {copy, first * p.half_pitch, p.half_pitch, rows, static_cast<int>(p.half_pitch), true};
}

// Fragments of the 16 queries behind row `own` of the block.
template <int DIM>
__device__ void load_queries(const Problem& p, const Block& b, int own, int view, std::uint32_t (&a)[DIM / 16][4]) {
  const int lane = lane_of_warp(), row = own + lane / 4;
  const std::int64_t first = b.head * p.shape.batch * p.shape.query_length + b.sequence.flat_query + b.first;
  const auto* const copy = static_cast<const __half*>(p.half_query[view]);
#pragma unroll
  for (int step = 0; step < DIM / 16; ++step) {
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const int r = row + n % 2 * 8, d = 16 * step + n / 2 * 8 + lane % 4 * 2;
      const bool exists = r < b.rows && d < p.half_pitch;
      a[step][n] = exists ? *reinterpret_cast<const std::uint32_t*>(copy + (first + r) * p.half_pitch + d) : 0u;
    }
  }
}

// What a warp works with: its strip, its queue, and what it has found so far. It computes what one queue holds; beyond
// that it only counts (`overflow`), because then the strip is better shared by a block.
template <int VIEWS, int DIM, int COLUMNS>
struct ForwardStrip {
  const Problem& p;
  const Block& b;
  PairQueue& queue;
  const Threshold* threshold;  // of the strip's row 0, as the next two
  int* survivors;
  std::uint32_t* index;  // words of the row tile in view 0, or null
  std::int64_t index_view_stride;
  int first;       // row of the strip in the sequence
  int queued;      // pairs in the queue
  int candidates;  // so far
  bool overflow;
  StripSums<COLUMNS> sums;

  // The weight, in one view, of the lane's own pair among the 32 behind `base`.
  __device__ __forceinline__ float pair_weight(int view, int base, std::uint32_t own, bool exists) const {
    const bool wanted = exists && (VIEWS == 1 || (entry_views(own) >> view & 1u) != 0);
    if (VIEWS == 2 && !__any_sync(kWholeWarp, wanted)) return 0.f;
    const UnitRows q = unit_query_rows(p, b.sequence, view, b.head), k = unit_key_rows(p, b.sequence, view, b.key_head);
    // Pairs that are candidates of the other view only load a row of theirs as well; nobody uses the product.
    const float s = pair_products<DIM, kPairsAtOnce>(
        queue.entries + base, queued - base,
        [&](std::uint32_t entry, int d, float4(&x)[2]) { q.load_unit(first + entry_row(entry), d, x); },
        [&](std::uint32_t entry, int d, float4(&x)[2]) { k.load_unit(entry_other(entry), d, x); });
    const float r = excess(s, threshold[entry_row(own)]);
    const float w = wanted && survives(r) ? weight(r, p.power) : 0.f;
    if (index && w != 0.f) {
      const int key = entry_other(own);
      atomicOr(index + view * index_view_stride + key / kKeysPerWord, 1u << (key / kSliceKeys % kSlicesPerWord));
    }
    return w;
  }

  // Weights of the queued pairs, over both views.
  __device__ __forceinline__ void weigh(float lambda) {
#pragma unroll 1
    for (int base = 0; base < queued; base += 32) {
      const int place = base + own_pair();
      const bool exists = place < queued;
      const std::uint32_t own = queue.entries[exists ? place : base];
      float w = pair_weight(0, base, own, exists);
      bool survivor = w != 0.f;
      if constexpr (VIEWS == 2) {
        const float second = pair_weight(1, base, own, exists);
        survivor = survivor || second != 0.f;
        w = fmaf(-lambda, second, w);
      }
      if (exists) queue.weights[place] = w;
      if (survivor) atomicAdd(&survivors[entry_row(own)], 1);
    }
    __syncwarp();
  }

  // Adds weight times value row of the queued pairs, several rows under way at a time. Works on a copy of the sums,
  // which stays in registers: this object itself lies in memory.
  __device__ __forceinline__ void add_values() {
    constexpr int kAtOnce = 512 / COLUMNS;
    const UnitRows v = value_rows(p, b.sequence, b.key_head);
    StripSums<COLUMNS> own_sums = sums;
    const std::uint32_t* const entries = queue.entries;
    const float* const weights = queue.weights;
    const int pairs = queued;
#pragma unroll 1
    for (int base = 0; base < pairs; base += kAtOnce) {
      LaneColumns<COLUMNS> values[kAtOnce];
      std::uint32_t own[kAtOnce];
      float w[kAtOnce];
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        own[n] = entries[min(base + n, pairs - 1)];
        w[n] = base + n < pairs ? weights[base + n] : 0.f;
        if (w[n] != 0.f) values[n].load(v.data + entry_other(own[n]) * v.row_stride, v.dim);
      }
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        if (w[n] == 0.f) continue;
        const auto chain = static_cast<std::uint32_t>(entry_row(own[n])) << 28 |
                           static_cast<std::uint32_t>(entry_other(own[n]) / kChain);
        own_sums.add(chain, w[n], values[n]);
      }
    }
    __syncwarp();
    sums = own_sums;
    queued = 0;
  }

  __device__ __forceinline__ void work_off(float lambda) {
    __syncwarp();
    weigh(lambda);
    add_values();
  }

  // Queues the candidates of a tile: in lane r < 16 the bits of row r in each view.
  __device__ __forceinline__ void add_candidates(int first_key, const uint2 (&bits)[VIEWS]) {
    uint2 either = bits[0];
    if constexpr (VIEWS == 2) either = make_uint2(bits[0].x | bits[1].x, bits[0].y | bits[1].y);
    int total;
    int place = sum_before(__popc(either.x) + __popc(either.y), total);
    candidates += total;
    overflow = overflow || queued + total > kQueue;
    if (overflow) return;
    place += queued;
#pragma unroll
    for (int word = 0; word < 2; ++word) {
      std::uint32_t left = word == 0 ? either.x : either.y;
      while (left != 0) {
        const int bit = __ffs(static_cast<int>(left)) - 1;
        left &= left - 1;
        unsigned views = (word == 0 ? bits[0].x : bits[0].y) >> bit & 1u;
        if constexpr (VIEWS == 2) views |= ((word == 0 ? bits[1].x : bits[1].y) >> bit & 1u) << 1;
        queue.entries[place++] = pair_entry(lane_of_warp(), views, first_key + 32 * word + bit);
      }
    }
    queued += total;
  }
};

template <int VIEWS, int DIM, int COLUMNS>
__device__ __forceinline__ void load_keys(const Problem& p, const Block& b, int tile, Plan<VIEWS, DIM, COLUMNS>& plan) {
  if (tile < b.key_tiles) {
#pragma unroll
    for (int view = 0; view < VIEWS; ++view) {
      const std::int64_t first = b.key_head * p.shape.batch * p.shape.key_length + b.sequence.flat_key;
      load_rows<__half, DIM, kKeys, kThreads>(plan.keys[tile % plan.kStages][view],
                                              screen_rows(p, p.half_key[view], first, b.sequence.key_length),
                                              static_cast<int>(threadIdx.x), tile * kKeys);
    }
  }
  commit_copies();
}

// The strip behind row `own` of the block.
template <int VIEWS, int DIM, int COLUMNS>
__device__ __forceinline__ ForwardStrip<VIEWS, DIM, COLUMNS> make_strip(const Problem& p, const ForwardOutputs& outputs,
                                                                        const Block& b, int own,
                                                                        Plan<VIEWS, DIM, COLUMNS>& plan) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  auto* const index = static_cast<std::uint32_t*>(outputs.survivor_index);
  const std::int64_t row_tile = b.sequence.first_row_tile + (b.first + own) / kSliceRows;
  ForwardStrip<VIEWS, DIM, COLUMNS> strip{
      p,
      b,
      plan.queue[warp],
      plan.threshold + own,
      plan.survivors + own,
      index && own < b.rows ? index + p.index.word_offset(0, b.head, row_tile) : nullptr,
      p.index.word_offset(1, 0, 0),
      b.first + own,
      0,
      0,
      false,
      {plan.sums + own}};
  strip.sums.clear(kStripRows);
  return strip;
}

template <int VIEWS, int DIM, int COLUMNS>
__device__ void store_strip(const Problem& p, const ForwardOutputs& outputs,
                            const ForwardStrip<VIEWS, DIM, COLUMNS>& strip) {
  const Block& b = strip.b;
  const Tensor& target = outputs.output;
  const int first = strip.first, end = min(first + kStripRows, b.first + b.rows);
  float* const data =
      static_cast<float*>(target.data) + row_offset(target, b.sequence.batch, b.head, b.sequence.first_query);
  for (int row = first; row < end; ++row) {
    LaneColumns<COLUMNS> columns;
#pragma unroll
    for (int i = 0; i < columns.kCount; ++i) {
      columns.x[i] = strip.sums.rows[row - first][LaneColumns<COLUMNS>::first() + i];
    }
    columns.store(data + row * target.row_stride, static_cast<int>(p.shape.value_dim));
  }
  if (!outputs.survivors) return;
  const int row = first + lane_of_warp();
  std::int32_t* const counts = outputs.survivors +
                               (b.sequence.batch * p.shape.query_heads + b.head) * p.shape.query_length +
                               b.sequence.first_query;
  if (row < end) counts[row] = strip.survivors[row - first];
}

// Calls run.operator()<VIEWS, DIM, COLUMNS>() for the instance that fits.
template <class Run>
auto with_instance(const AttentionShape& shape, int views, Run run) {
  const auto of_views = [&]<int VIEWS>() {
    if (shape.head_dim > 64) return run.template operator()<VIEWS, 128, 128>();
    if (shape.value_dim > 64) return run.template operator()<VIEWS, 64, 128>();
    return run.template operator()<VIEWS, 64, 64>();
  };
  return views == 2 ? of_views.template operator()<2>() : of_views.template operator()<1>();
}

}  // namespace tda::cuda::portable
