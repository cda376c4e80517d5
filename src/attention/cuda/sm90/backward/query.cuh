// Dense row tasks of the backward: dq of 128 query rows of one view and head, and their share of dbeta and dlambda.
//
// Plan. Persistent, one block per multiprocessor: 2 consumer warpgroups (232 registers), each with 64 query rows, and
// four producer warps (40). Resident: Q, dO; streamed: tiles of 64 keys, K and V with 1/|k|. A warpgroup, for each
// tile:
//   S = Q K',  dP = dO V'      on the tensor cores; while dP runs: s - tau, mask, u = max(s - tau, 0)
//   g = dP a'(u) / |k|         in registers, rounded to 16 bits: the A operand of
//   dQ += g K                  which runs on while the next tile's S is issued
// The warpgroups drift apart by themselves: one converts while the other's products run.
// Cycles of a warpgroup and tile: D = 64: 3 products of 128 on the tensor cores, about 270 instructions a warp.
#pragma once

#include "attention/cuda/sm90/backward/stream.cuh"
#include "attention/cuda/sm90/backward/tile_gradients.cuh"

namespace tda::cuda::sm90 {

template <int kHeadDim, bool kPacked>
__device__ __forceinline__ void produce_keys(const BackwardArguments& a,
                                             const StreamMemory<StreamPlan<kHeadDim>>& memory) {
  const portable::Problem& p = a.problem;
  const int lane = static_cast<int>(threadIdx.x & 31);
  StreamProducer<StreamPlan<kHeadDim>, kPacked> producer(memory, a.plan.dense_row_tasks);
  for_empty_blocks(a.plan.empty_row_blocks, [&](const portable::BackwardTask& block) {
    const Tensor& dq = a.call.outputs.dq[block.view];
    if (dq.data == nullptr) return;
    const std::int64_t key_head = block.head / (p.shape.query_heads / p.shape.key_heads);
    if (is_fused(a, block.sequence, key_head)) return;
    const portable::Sequence s = portable::sequence_of<kPacked>(p, block.sequence);
    const int row = static_cast<int>(block.tile) * 2 * kTileRows;
    store_zeros<StreamPlan<kHeadDim>, kPacked>(memory, dq, a.dq[block.view], static_cast<int>(s.first_query) + row,
                                               s.query_length - row, static_cast<int>(block.head), s.batch);
  });
  portable::BackwardTask task;
  while (producer.next_task(a.plan.dense_row_tasks, task)) {
    const int sequence = static_cast<int>(task.sequence), head = static_cast<int>(task.head);
    const int view = static_cast<int>(task.view), block = static_cast<int>(task.tile);
    const int key_head = static_cast<int>(head / (p.shape.query_heads / p.shape.key_heads));
    if (is_fused(a, sequence, key_head)) continue;
    const portable::Sequence s = portable::sequence_of<kPacked>(p, sequence);
    const int batch = static_cast<int>(s.batch), offset = s.key_length - s.query_length;
    const float* const own_factors = portable::query_factors(p, s, view, head);
    const StreamPart part{sequence, head, block, view, s.query_length, offset, portable::load_beta(p, head)};
    producer.begin_part(part, {a.query[view], p.inputs.q[view], batch, head},
                        {a.d_output, a.call.d_output, batch, head}, static_cast<int>(s.first_query), [&](int row) {
                          if (row >= s.query_length) return ResidentRow{0.0f, 0.0f};
                          return ResidentRow{own_factors[row], a.plan.position_scale[offset + row]};
                        });
    const float* const factors = portable::key_factors(p, s, view, key_head);
    const std::uint32_t* words[2];
    int count[2];  // words that exist
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int tile = 2 * block + n;
      const int last_row = min((tile + 1) * kTileRows, s.query_length) - 1;
      words[n] = a.call.index + p.index.word_offset(view, head, s.first_row_tile + tile);
      count[n] = tile * kTileRows < s.query_length ? (s.key_length - s.query_length + last_row) / kKeysPerWord + 1 : 0;
    }
    for (int base = 0; base < max(count[0], count[1]); base += 32) {  // a word a lane
      const int own_word = base + lane;
      const std::uint32_t low = own_word < count[0] ? words[0][own_word] : 0u;
      const std::uint32_t high = own_word < count[1] ? words[1][own_word] : 0u;
      for (unsigned busy = __ballot_sync(0xffffffffu, (low | high) != 0); busy != 0; busy &= busy - 1) {
        const int source = __ffs(static_cast<int>(busy)) - 1, word = base + source;
        const std::uint32_t own[2] = {__shfl_sync(0xffffffffu, low, source), __shfl_sync(0xffffffffu, high, source)};
        for (std::uint32_t left = own[0] | own[1]; left != 0;) {
          const int shift = (__ffs(static_cast<int>(left)) - 1) & ~3;
          const unsigned first = own[0] >> shift & 15u, second = own[1] >> shift & 15u;
          left &= ~(15u << shift);
          if (producer.passes_over()) continue;
          StreamTile tile;
          tile.first = word * kKeysPerWord + shift * kSliceKeys;
          tile.live = static_cast<std::uint16_t>((first != 0 ? 1u : 0u) | (second != 0 ? 2u : 0u));
          tile.slices = static_cast<std::uint16_t>(first | second);
          tile.sign = 1.0f;
          float factor[2];
          bool unfit = false;
#pragma unroll
          for (int n = 0; n < 2; ++n) {  // factors of keys in dead slices may never have been written
            const int key = tile.first + lane + 32 * n;
            const bool wanted = key < s.key_length && (tile.slices >> ((lane + 32 * n) / kSliceKeys) & 1) != 0;
            factor[n] = wanted ? portable::product_factor(factors[key]) : 0.0f;
            unfit = unfit || factor[n] != factor[n] || !portable::is_regular(p, factor[n]);
          }
          tile.unfit = __any_sync(0xffffffffu, unfit);
          const int stage = producer.free_stage();
#pragma unroll
          for (int n = 0; n < 2; ++n) memory.tail.key_factor[stage][lane + 32 * n] = factor[n];
          producer.stream(tile, {a.key[view], p.inputs.k[view], batch, key_head},
                          {a.value, p.inputs.v, batch, key_head}, static_cast<int>(s.first_key) + tile.first,
                          s.key_length - tile.first);
        }
      }
    }
    producer.end_part();
  }
  producer.end_parts();
  wait_for_stores();
}

// Rows g and g + 8 of a warp's 16.
struct QueryRowState {
  float factor[2], tau[2], scale[2];  // 1/|q|, tau, c_i
  int last_key[2];
};

// Raw products -> u = max(s - tau, 0), 0 where the mask hides a pair or the slice is dead. Leaves 1/|k| of the lane's
// columns in `factor`: columns 8 n + 2 c + e in factor[2 n + e].
__device__ __forceinline__ void rectify_rows(float (&t)[32], const float* key_factor, const QueryRowState& rows,
                                             const StreamTile& tile, int first_position, float (&factor)[16]) {
  const int c = static_cast<int>(threadIdx.x & 3);
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const float2 pair = *reinterpret_cast<const float2*>(key_factor + 8 * n + 2 * c);
    factor[2 * n] = pair.x;
    factor[2 * n + 1] = pair.y;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      t[4 * n + e] = positive_part(fmaf(t[4 * n + e] * factor[2 * n + e % 2], rows.factor[e / 2], -rows.tau[e / 2]));
    }
  }
  if (tile.first + kTileRows - 1 > first_position) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      if (tile.first + (i >> 2) * 8 + 2 * c + (i & 1) > rows.last_key[(i >> 1) & 1]) t[i] = 0.0f;
    }
  }
  if (tile.slices != 15) {
#pragma unroll
    for (int slice = 0; slice < 4; ++slice) {
      if ((tile.slices >> slice & 1) != 0) continue;
#pragma unroll
      for (int i = 0; i < 8; ++i) t[8 * slice + i] = 0.0f;
    }
  }
}

// Sums of a row block for the parameters: of g, for rows g and g + 8, and of a(u) dP.
struct RowSums {
  float g[2], dlambda;
};

// d (dP) and u -> 16-bit g / |k|, and the parameters' sums. `factor`: of g, for each of the lane's columns.
template <typename Element, bool kSquare>
__device__ __forceinline__ void weigh_rows(const float (&u)[32], float (&d)[32], const float (&factor)[16], float power,
                                           bool second_view, RowSums& sums, std::uint32_t (&g)[4][4]) {
  if (second_view) {
    float share = 0.0f;
#pragma unroll
    for (int i = 0; i < 32; ++i) share = fmaf(rectified_weight<kSquare>(u[i], power), d[i], share);
    sums.dlambda += share;
  }
  float share[2] = {0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    d[i] *= derivative<kSquare>(u[i], power);
    share[(i >> 1) & 1] += d[i];
  }
  sums.g[0] += share[0];
  sums.g[1] += share[1];
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    g[i / 4][i % 4] = pack<Element>(d[2 * i] * factor[i / 2 * 2], d[2 * i + 1] * factor[i / 2 * 2 + 1]);
  }
}

// The sum over a warpgroup in a fixed order; valid in its first thread.
__device__ __forceinline__ double warpgroup_sum(double x, double (&scratch)[4], int warpgroup) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32 % 4] = x;
  named_barrier_sync(1 + warpgroup, 128);
  const double total = (scratch[0] + scratch[1]) + (scratch[2] + scratch[3]);
  named_barrier_sync(1 + warpgroup, 128);
  return total;
}

// Stores what a warpgroup has of its row tile, or hands the tile to the portable kernel.
template <typename Element, int kHeadDim, bool kSquare, bool kPacked>
__device__ __forceinline__ void finish_rows(const BackwardArguments& a, StreamTail<StreamPlan<kHeadDim>>& tail,
                                            const StreamPart& part, const QueryRowState& rows, std::uint32_t tile,
                                            const ResidentRow* residents, bool unfit, const RowSums& sums,
                                            float (&dq)[kHeadDim / 2]) {
  const portable::Problem& p = a.problem;
  const portable::Sequence s = portable::sequence_of<kPacked>(p, part.sequence);
  const int warpgroup = static_cast<int>(threadIdx.x >> 7), row_tile = 2 * part.block + warpgroup;
  const int first_row = row_tile * kTileRows;
  if (first_row >= s.query_length) return;
  const bool leads = (threadIdx.x & 127) == 0;
  if (warpgroup_any(1 + warpgroup, unfit || any_spoiled(dq))) {
    if (leads) {
      portable::list_task(a.plan.row_tasks, portable::kWarpTaskSlices, false,
                          {static_cast<std::uint32_t>(part.sequence), static_cast<std::uint32_t>(part.head),
                           static_cast<std::uint32_t>(row_tile), static_cast<std::uint32_t>(part.view)});
    }
    return;
  }
  const float sign = portable::view_weight(p, part.view, part.head) * kDerivativeFactor<kSquare>;
  const double dbeta =
      static_cast<double>(sign) * static_cast<double>(fmaf(rows.scale[0], sums.g[0], rows.scale[1] * sums.g[1]));
  const double dbeta_sum = warpgroup_sum(dbeta, tail.sums[warpgroup], warpgroup);
  const double dlambda_sum = warpgroup_sum(static_cast<double>(sums.dlambda), tail.sums[warpgroup], warpgroup);
  if (leads) {
    const std::int64_t flat_tile = s.first_row_tile + row_tile;
    if (a.call.dbeta_parts) {
      a.call.dbeta_parts[(part.view * p.shape.query_heads + part.head) * p.index.row_tiles + flat_tile] = -dbeta_sum;
    }
    if (a.call.dlambda_parts && part.view == 1) {
      a.call.dlambda_parts[part.head * p.index.row_tiles + flat_tile] = -dlambda_sum;
    }
  }
  const Tensor& target = a.call.outputs.dq[part.view];
  if (!target.data) return;
  Element* const first =
      static_cast<Element*>(target.data) + portable::row_offset(target, s.batch, part.head, s.first_query + first_row);
  store_gradient<Element, kHeadDim>(p.normalize, tile, residents, s.query_length - first_row, first, target.row_stride,
                                    dq);
}

// `residents`: of the warpgroup's rows, the first of which is `first_row`.
__device__ __forceinline__ QueryRowState row_state(const BackwardArguments& a, const StreamPart& part,
                                                   const ResidentRow* residents, int first_row, bool& unfit) {
  const portable::Problem& p = a.problem;
  QueryRowState rows;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = (static_cast<int>(threadIdx.x >> 5) & 3) * 16 + (static_cast<int>(threadIdx.x & 31) >> 2) + 8 * h;
    rows.factor[h] = portable::product_factor(residents[row].factor);
    rows.scale[h] = residents[row].scale;
    rows.tau[h] = first_row + row < part.rows ? part.constant * rows.scale[h] : 1e30f;
    rows.last_key[h] = part.offset + first_row + row;
    unfit = unfit || rows.factor[h] != rows.factor[h] || !portable::is_regular(p, rows.factor[h]);
  }
  return rows;
}

// One row block's share of a warpgroup: products, conversions and stages of its tiles.
template <typename Element, int kHeadDim, bool kSquare>
struct RowConsumer : StreamConsumer<StreamPlan<kHeadDim>> {
  using Stream = StreamConsumer<StreamPlan<kHeadDim>>;
  using Stream::memory;
  using Stream::pending;
  using Stream::warpgroup;
  // Powers other than 2 call functions, which must not happen while a product is under way.
  static constexpr bool kOverlaps = kSquare;

  const BackwardArguments& a;
  StreamPart part;
  QueryRowState rows;
  RowSums sums;
  std::uint32_t queries, d_output;
  const ResidentRow* residents;
  int first_position;
  float gradient_factor;
  bool rows_unfit;  // an own row is not fit for 16-bit products
  bool unfit;       // and met a tile, or a key of a tile is not
  float dq[kHeadDim / 2];
  std::uint32_t g[4][4];

  __device__ __forceinline__ RowConsumer(const BackwardArguments& arguments,
                                         const StreamMemory<StreamPlan<kHeadDim>>& shared)
      : Stream{shared}, a(arguments) {}

  __device__ __forceinline__ void begin(const StreamPart& next, int slot) {
    part = next;
    const int first_row = (2 * part.block + warpgroup) * kTileRows;
    first_position = part.offset + first_row;
    queries = memory.resident(slot, 0, warpgroup);
    d_output = memory.resident(slot, 1, warpgroup);
    gradient_factor = portable::view_weight(a.problem, part.view, part.head) * kDerivativeFactor<kSquare> *
                      portable::kWeightScale<kHeadDim>;
    unfit = rows_unfit = false;
    residents = memory.tail.resident[slot] + warpgroup * kTileRows;
    rows = row_state(a, part, residents, first_row, rows_unfit);
    sums = {};
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) dq[i] = 0.0f;
  }

  __device__ __forceinline__ void issue_scores(float (&t)[32], float (&d)[32], int stage) {
    wgmma_fence();
    multiply<Element, kHeadDim>(t, queries, memory.stage(stage, 0));
    wgmma_commit();
    multiply<Element, kHeadDim>(d, d_output, memory.stage(stage, 1));
    wgmma_commit();
  }

  // Scores and dP of a tile are there: dQ's product is issued.
  __device__ __forceinline__ void convert(const StreamTile& tile, int stage, float (&t)[32], float (&d)[32]) {
    unfit |= tile.unfit || rows_unfit;
    float factor[16];
    rectify_rows(t, memory.tail.key_factor[stage], rows, tile, first_position, factor);
#pragma unroll
    for (int i = 0; i < 16; ++i) factor[i] *= gradient_factor;
    wgmma_wait<0>();
    hold(d);
    weigh_rows<Element, kSquare>(t, d, factor, a.problem.power, part.view == 1, sums, g);
    hold(dq);
    wgmma_fence();
    accumulate<Element>(dq, g, memory.stage(stage, 0));
    wgmma_commit();
    pending = stage;
  }

  __device__ __forceinline__ void finish_products() {
    wgmma_wait<0>();
    hold(dq);
    this->release_pending();
  }

  // All tiles of the part, one after the other.
  __device__ __forceinline__ void run() {
    float t[32], d[32];
#pragma unroll 1
    for (;;) {
      int stage;
      bool live;
      const StreamTile tile = this->next_tile(stage, live);
      if (!live) {
        finish_products();
        if (tile.first < 0) break;
        continue;
      }
      hold(dq);
      issue_scores(t, d, stage);
      wgmma_wait<kOverlaps ? 1 : 0>();
      hold(t);
      this->release_pending();
      convert(tile, stage, t, d);
    }
  }
};

template <typename Element, int kHeadDim, bool kSquare, bool kPacked>
__device__ __forceinline__ void consume_keys(const BackwardArguments& a,
                                             const StreamMemory<StreamPlan<kHeadDim>>& memory) {
  SlotRing<StreamPlan<kHeadDim>::kResidents> residents(0);
  RowConsumer<Element, kHeadDim, kSquare> consumer(a, memory);
#pragma unroll 1
  for (;; residents.advance()) {
    barrier_wait(shared_address(&memory.tail.resident_full[residents.slot]), residents.phase);
    const StreamPart part = memory.tail.part[residents.slot];
    if (part.block < 0) return;
    consumer.begin(part, residents.slot);
    consumer.run();
    finish_rows<Element, kHeadDim, kSquare, kPacked>(a, memory.tail, consumer.part, consumer.rows, consumer.queries,
                                                     consumer.residents, consumer.unfit, consumer.sums, consumer.dq);
    __syncwarp();
    if ((threadIdx.x & 31) == 0) barrier_arrive(shared_address(&memory.tail.resident_empty[residents.slot]));
  }
}

template <typename Element, int kHeadDim, bool kSquare, bool kPacked>
__global__ void __launch_bounds__(kStreamThreads<StreamPlan<kHeadDim>>, 1)
    backward_query_dense(const __grid_constant__ BackwardArguments a) {
  begin_kernel(KernelOrder::kAfterPrevious);
  extern __shared__ unsigned char shared[];
  const StreamMemory<StreamPlan<kHeadDim>> memory(shared);
  if (all_are_fused(a) || !memory.begin(a.plan.dense_row_tasks, a.plan.empty_row_blocks)) return;
  if (threadIdx.x >= 256) {
    shrink_registers<40>();
    produce_keys<kHeadDim, kPacked>(a, memory);
  } else {
    grow_registers<232>();
    consume_keys<Element, kHeadDim, kSquare, kPacked>(a, memory);
  }
}

}  // namespace tda::cuda::sm90
