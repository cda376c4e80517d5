// Dense column tasks of the backward: dk of every view and dv of 128 keys of one key head.
//
// Plan. Persistent, one block per multiprocessor: 2 consumer warpgroups (232 registers, 240 for D = 128), each with 64
// keys, and four producer warps (40, 24). Resident: K, V (anew for each view); streamed: tiles of 64 rows of every
// query head of the group, Q and dO with tau and 1/|q|. A warpgroup, for each tile:
//   S' = K Q',  dP' = V dO'    on the tensor cores; while dP' runs: s - tau, mask, u = max(s - tau, 0), w = a(u)
//   dV += w dO                 w rounded to 16 bits in registers: the A operand
//   dK += g Q                  g = dP' a'(u) / |q|, likewise; both run on while the next tile's S' is issued
// Cycles of a warpgroup and tile: D = 64: 4 products of 128 on the tensor cores, about 330 instructions a warp.
#pragma once

#include "attention/cuda/sm90/backward/stream.cuh"
#include "attention/cuda/sm90/backward/tile_gradients.cuh"

namespace tda::cuda::sm90 {

// The tiles of one query head that hold a survivor among the block's 128 keys. `first_slice` counts slices of all
// sequences (portable::BackwardPlan).
template <int kHeadDim, bool kPacked>
__device__ __forceinline__ void produce_head(const BackwardArguments& a,
                                             StreamProducer<StreamPlan<kHeadDim>, kPacked>& producer,
                                             const portable::Sequence& s, const StreamPart& part, int head,
                                             std::int64_t first_slice) {
  const portable::Problem& p = a.problem;
  const int lane = static_cast<int>(threadIdx.x & 31);
  const float* const factors = portable::query_factors(p, s, part.view, head);
  const float beta = portable::load_beta(p, head);
  const float sign = portable::view_weight(p, part.view, head);
  const int offset = s.key_length - s.query_length;
  const int slices = min(8, (s.key_length + kSliceKeys - 1) / kSliceKeys - 8 * part.block);
  const std::uint32_t* const columns =
      a.plan.columns + a.plan.column_offset(part.view * p.shape.query_heads + head, first_slice);
  const int words = (s.query_length + 32 * kTileRows - 1) / (32 * kTileRows);
  const auto load = [&](int word) {
    return lane < slices && word < words ? columns[lane * a.plan.words_per_slice + word] : 0u;
  };
  std::uint32_t next = load(0);
  for (int word = 0; word < words; ++word) {
    const std::uint32_t own = next;
    next = load(word + 1);
    const std::uint32_t first = __reduce_or_sync(0xffffffffu, lane < 4 ? own : 0u);
    const std::uint32_t second = __reduce_or_sync(0xffffffffu, lane < 4 ? 0u : own);
    for (std::uint32_t left = first | second; left != 0; left &= left - 1) {
      if (producer.passes_over()) continue;
      const int bit = __ffs(static_cast<int>(left)) - 1;
      StreamTile tile;
      const int first_row = (word * 32 + bit) * kTileRows;
      tile.first = offset + first_row;
      tile.live = static_cast<std::uint16_t>((first >> bit & 1u) | (second >> bit & 1u) << 1);
      tile.slices = 15;
      tile.sign = sign;
      float2 row[2];
      bool unfit = false;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const int r = first_row + lane + 32 * n;
        const bool exists = r < s.query_length;
        row[n].x = exists ? beta * a.plan.position_scale[offset + r] : 1e30f;
        row[n].y = exists ? portable::product_factor(factors[r]) : 0.0f;
        unfit = unfit || row[n].y != row[n].y || !portable::is_regular(p, row[n].y);
      }
      tile.unfit = __any_sync(0xffffffffu, unfit);
      const int stage = producer.free_stage();
#pragma unroll
      for (int n = 0; n < 2; ++n) producer.memory.tail.query[stage][lane + 32 * n] = row[n];
      producer.stream(tile, {a.query[part.view], p.inputs.q[part.view], static_cast<int>(s.batch), head},
                      {a.d_output, a.call.d_output, static_cast<int>(s.batch), head},
                      static_cast<int>(s.first_query) + tile.first - offset, s.key_length - tile.first);
    }
  }
}

template <typename Element, int kHeadDim, bool kPacked>
__device__ __forceinline__ void produce_queries(const BackwardArguments& a,
                                                const StreamMemory<StreamPlan<kHeadDim>>& memory) {
  const portable::Problem& p = a.problem;
  const int group = static_cast<int>(p.shape.query_heads / p.shape.key_heads);
  StreamProducer<StreamPlan<kHeadDim>, kPacked> producer(memory, a.plan.dense_column_tasks);
  for_empty_blocks(a.plan.empty_column_blocks, [&](const portable::BackwardTask& block) {
    if (is_fused(a, block.sequence, block.head)) return;
    const portable::Sequence s = portable::sequence_of<kPacked>(p, block.sequence);
    const auto store = [&](const Tensor& gradient, const CUtensorMap& map) {
      if (gradient.data == nullptr) return;
      const int row = static_cast<int>(block.tile) * 2 * kTileRows;
      store_zeros<StreamPlan<kHeadDim>, kPacked>(memory, gradient, map, static_cast<int>(s.first_key) + row,
                                                 s.key_length - row, static_cast<int>(block.head), s.batch);
    };
    for (int view = 0; view < p.views; ++view) store(a.call.outputs.dk[view], a.dk[view]);
    store(a.call.outputs.dv, a.dv);
  });
  portable::BackwardTask task;
  while (producer.next_task(a.plan.dense_column_tasks, task)) {
    const int sequence = static_cast<int>(task.sequence), key_head = static_cast<int>(task.head);
    const int block = static_cast<int>(task.tile);
    if (is_fused(a, sequence, key_head)) continue;
    const portable::Sequence s = portable::sequence_of<kPacked>(p, sequence);
    const std::int64_t first_slice =
        portable::BackwardPlan::first_slice(kPacked, sequence, s.first_key, p.shape.key_length) + 8 * block;
    // The smallest scale of the group, so that one serves all heads that add to the same dv.
    float scale = portable::weight_scale<Element>(p, key_head * group, s.key_length);
    for (int n = 1; n < group; ++n) {
      scale = fminf(scale, portable::weight_scale<Element>(p, key_head * group + n, s.key_length));
    }
#pragma unroll 1
    for (int view = 0; view < p.views; ++view) {
      const StreamPart part{sequence, key_head, block, view, s.key_length, s.key_length - s.query_length, scale};
      const float* const factors = portable::key_factors(p, s, view, key_head);
      producer.begin_part(part, {a.key[view], p.inputs.k[view], static_cast<int>(s.batch), key_head},
                          {a.value, p.inputs.v, static_cast<int>(s.batch), key_head}, static_cast<int>(s.first_key),
                          [&](int key) {
                            return ResidentRow{key < s.key_length ? factors[key] : 0.0f, 0.0f};
                          });
#pragma unroll 1
      for (int n = 0; n < group; ++n) {
        produce_head<kHeadDim, kPacked>(a, producer, s, part, key_head * group + n, first_slice);
      }
      producer.end_part();
    }
  }
  producer.end_parts();
  wait_for_stores();
}

// Raw products -> u = max(s - tau, 0), 0 where the mask hides a pair. `key`: that of row g; `first_position`: of the
// streamed tile.
__device__ __forceinline__ void rectify_columns(float (&t)[32], const float2* rows, const float (&key_factor)[2],
                                                int key, int last_key, int first_position) {
  const int c = static_cast<int>(threadIdx.x & 3);
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const float4 row = *reinterpret_cast<const float4*>(rows + 8 * n + 2 * c);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float score = t[4 * n + e] * key_factor[e / 2];
      t[4 * n + e] = positive_part(e % 2 == 0 ? fmaf(score, row.y, -row.x) : fmaf(score, row.w, -row.z));
    }
  }
  if (last_key > first_position) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      if (key + ((i >> 1) & 1) * 8 > first_position + (i >> 2) * 8 + 2 * c + (i & 1)) t[i] = 0.0f;
    }
  }
}

// u -> 16-bit weights times `scale`.
template <typename Element, bool kSquare>
__device__ __forceinline__ void weigh_columns(const float (&u)[32], float power, float scale,
                                              std::uint32_t (&weights)[4][4]) {
  if (kSquare && scale == 1.0f) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      weights[i / 4][i % 4] = pack<Element>(u[2 * i] * u[2 * i], u[2 * i + 1] * u[2 * i + 1]);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 16; ++i) {
    weights[i / 4][i % 4] = pack<Element>(rectified_weight<kSquare>(u[2 * i], power) * scale,
                                          rectified_weight<kSquare>(u[2 * i + 1], power) * scale);
  }
}

// u -> g / |q| in place; d is dP', `factor` that of g without 1/|q|.
template <bool kSquare>
__device__ __forceinline__ void weigh_gradients(float (&u)[32], const float (&d)[32], const float2* rows, float factor,
                                                float power) {
  const int c = static_cast<int>(threadIdx.x & 3);
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const float scale[2] = {rows[8 * n + 2 * c].y * factor, rows[8 * n + 2 * c + 1].y * factor};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      u[4 * n + e] = d[4 * n + e] * derivative<kSquare>(u[4 * n + e], power) * scale[e % 2];
    }
  }
}

// What a warpgroup knows of its keys.
struct KeyState {
  float factor[2];    // 1/|k| of rows g and g + 8
  int first, key;     // the warpgroup's first key and that of row g
  float value_scale;  // of the weights, so that 16 bits hold them
};

// `residents`: of the warpgroup's keys.
__device__ __forceinline__ KeyState key_state(const portable::Problem& p, const StreamPart& part,
                                              const ResidentRow* residents, bool& unfit) {
  const int row = (static_cast<int>(threadIdx.x >> 5) & 3) * 16 + (static_cast<int>(threadIdx.x & 31) >> 2);
  KeyState keys;
  keys.first = (2 * part.block + static_cast<int>(threadIdx.x >> 7)) * kTileRows;
  keys.key = keys.first + row;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    keys.factor[h] = portable::product_factor(residents[row + 8 * h].factor);
    unfit = unfit || keys.factor[h] != keys.factor[h] || !portable::is_regular(p, keys.factor[h]);
  }
  keys.value_scale = part.constant;
  return keys;
}

// Stores what a warpgroup has of one view's dk and, after the last view, of dv, or hands the keys to the portable
// kernel, which writes the gradients of all views anew. `spoiled` remembers that of the views before.
template <typename Element, int kHeadDim, bool kPacked>
__device__ __forceinline__ void finish_keys(const BackwardArguments& a, const StreamPart& part, const KeyState& keys,
                                            std::uint32_t tile, const ResidentRow* residents, bool& spoiled,
                                            float (&dk)[kHeadDim / 2], const float (&dv)[kHeadDim / 2]) {
  const portable::Problem& p = a.problem;
  const portable::Sequence s = portable::sequence_of<kPacked>(p, part.sequence);
  const int warpgroup = static_cast<int>(threadIdx.x >> 7), lane = static_cast<int>(threadIdx.x & 31);
  const int rows = s.key_length - keys.first;
  if (rows <= 0) return;
  const bool last = part.view == p.views - 1;
  spoiled = warpgroup_any(1 + warpgroup, spoiled || any_spoiled(dk) || (last && any_spoiled(dv)));
  if (spoiled) {
    const int slice = keys.first / kSliceKeys + static_cast<int>(threadIdx.x & 127);
    if (last && (threadIdx.x & 127) < kTileRows / kSliceKeys && slice * kSliceKeys < s.key_length) {
      portable::list_task(a.plan.column_tasks, portable::kWarpTaskSlices, false,
                          {static_cast<std::uint32_t>(part.sequence), static_cast<std::uint32_t>(part.head),
                           static_cast<std::uint32_t>(slice), 0});
    }
    return;
  }
  const auto first_row = [&](const Tensor& target) {
    return static_cast<Element*>(target.data) +
           portable::row_offset(target, s.batch, part.head, s.first_key + keys.first);
  };
  const Tensor& dk_target = a.call.outputs.dk[part.view];
  if (dk_target.data) {
    store_gradient<Element, kHeadDim>(p.normalize, tile, residents, rows, first_row(dk_target), dk_target.row_stride,
                                      dk);
  }
  const Tensor& dv_target = a.call.outputs.dv;
  if (!last || !dv_target.data) return;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = keys.key - keys.first + 8 * h;
    store_row<Element>(first_row(dv_target) + row * dv_target.row_stride, dv, h, 1.0f / keys.value_scale, lane & 3,
                       row < rows);
  }
}

// One block's share of a warpgroup: products, conversions and stages of its tiles.
template <typename Element, int kHeadDim, bool kSquare>
struct KeyConsumer : StreamConsumer<StreamPlan<kHeadDim>> {
  using Stream = StreamConsumer<StreamPlan<kHeadDim>>;
  using Stream::memory;
  using Stream::pending;
  using Stream::warpgroup;
  // Powers other than 2 call functions, which must not happen while a product is under way.
  static constexpr bool kOverlaps = kSquare;

  const BackwardArguments& a;
  KeyState keys;
  std::uint32_t key_rows, values;
  const ResidentRow* residents;
  bool unfit;
  float dk[kHeadDim / 2], dv[kHeadDim / 2];
  std::uint32_t operand[4][4];  // the weights, then g: registers hold only one of the two

  __device__ __forceinline__ KeyConsumer(const BackwardArguments& arguments,
                                         const StreamMemory<StreamPlan<kHeadDim>>& shared)
      : Stream{shared}, a(arguments) {}

  __device__ __forceinline__ void begin(const StreamPart& part, int slot) {
    unfit = false;
    residents = memory.tail.resident[slot] + warpgroup * kTileRows;
    keys = key_state(a.problem, part, residents, unfit);
    key_rows = memory.resident(slot, 0, warpgroup);
    values = memory.resident(slot, 1, warpgroup);
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) dk[i] = 0.0f;
    if (part.view != 0) return;
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) dv[i] = 0.0f;
  }

  __device__ __forceinline__ void issue_scores(float (&t)[32], int stage) {
    wgmma_fence();
    multiply<Element, kHeadDim>(t, key_rows, memory.stage(stage, 0));
    wgmma_commit();
  }
  __device__ __forceinline__ void issue_d_weights(float (&d)[32], int stage) {
    wgmma_fence();
    multiply<Element, kHeadDim>(d, values, memory.stage(stage, 1));
    wgmma_commit();
  }
  // Scores -> u in t, and the product of the weights with dO.
  __device__ __forceinline__ void add_to_dv(const StreamTile& tile, int stage, float (&t)[32]) {
    unfit |= tile.unfit;
    rectify_columns(t, memory.tail.query[stage], keys.factor, keys.key, keys.first + kTileRows - 1, tile.first);
    weigh_columns<Element, kSquare>(t, a.problem.power, tile.sign * keys.value_scale, operand);
    hold(dv);
    wgmma_fence();
    accumulate<Element>(dv, operand, memory.stage(stage, 1));
    wgmma_commit();
  }
  // u -> g in t, and its product with Q. g takes the registers of the weights, so it waits for their product.
  __device__ __forceinline__ void add_to_dk(const StreamTile& tile, int stage, float (&t)[32], float (&d)[32]) {
    wgmma_wait<kOverlaps ? 1 : 0>();
    hold(d);
    weigh_gradients<kSquare>(t, d, memory.tail.query[stage],
                             tile.sign * kDerivativeFactor<kSquare> * portable::kWeightScale<kHeadDim>,
                             a.problem.power);
    hold(t);
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < 16; ++i) operand[i / 4][i % 4] = pack<Element>(t[2 * i], t[2 * i + 1]);
    hold(dk);
    wgmma_fence();
    accumulate<Element>(dk, operand, memory.stage(stage, 0));
    wgmma_commit();
    pending = stage;
  }
  __device__ __forceinline__ void finish_products() {
    wgmma_wait<0>();
    hold(dk);
    hold(dv);
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
      hold(dk);
      hold(dv);
      issue_scores(t, stage);
      issue_d_weights(d, stage);
      wgmma_wait<kOverlaps ? 1 : 0>();
      hold(t);
      this->release_pending();
      add_to_dv(tile, stage, t);
      add_to_dk(tile, stage, t, d);
    }
  }
};

template <typename Element, int kHeadDim, bool kSquare, bool kPacked>
__device__ __forceinline__ void consume_queries(const BackwardArguments& a,
                                                const StreamMemory<StreamPlan<kHeadDim>>& memory) {
  SlotRing<StreamPlan<kHeadDim>::kResidents> residents(0);
  KeyConsumer<Element, kHeadDim, kSquare> consumer(a, memory);
  bool spoiled = false;
#pragma unroll 1
  for (;; residents.advance()) {
    barrier_wait(shared_address(&memory.tail.resident_full[residents.slot]), residents.phase);
    const StreamPart part = memory.tail.part[residents.slot];
    if (part.block < 0) return;
    consumer.begin(part, residents.slot);
    consumer.run();
    spoiled = (spoiled && part.view != 0) || consumer.unfit;
    finish_keys<Element, kHeadDim, kPacked>(a, part, consumer.keys, consumer.key_rows, consumer.residents, spoiled,
                                            consumer.dk, consumer.dv);
    __syncwarp();
    if ((threadIdx.x & 31) == 0) barrier_arrive(shared_address(&memory.tail.resident_empty[residents.slot]));
  }
}

template <typename Element, int kHeadDim, bool kSquare, bool kPacked>
__device__ __forceinline__ void work_off_columns(const BackwardArguments& a) {
  extern __shared__ unsigned char shared[];
  const StreamMemory<StreamPlan<kHeadDim>> memory(shared);
  if (all_are_fused(a) || !memory.begin(a.plan.dense_column_tasks, a.plan.empty_column_blocks)) return;
  if (threadIdx.x >= 256) {
    shrink_registers<kHeadDim == 64 ? 40 : 24>();
    produce_queries<Element, kHeadDim, kPacked>(a, memory);
  } else {
    grow_registers<kHeadDim == 64 ? 232 : 240>();
    consume_queries<Element, kHeadDim, kSquare, kPacked>(a, memory);
  }
}

template <typename Element, int kHeadDim, bool kSquare, bool kPacked>
__global__ void __launch_bounds__(kStreamThreads<StreamPlan<kHeadDim>>, 1)
    backward_key_value_dense(const __grid_constant__ BackwardArguments a) {
  begin_kernel(KernelOrder::kBesidePrevious);
  work_off_columns<Element, kHeadDim, kSquare, kPacked>(a);
  end_kernel(KernelOrder::kBesidePrevious);
}

}  // namespace tda::cuda::sm90
