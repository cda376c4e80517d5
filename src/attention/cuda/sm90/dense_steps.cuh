// The dense forward: every visible block of the row blocks that the screen found dense; nothing is skipped. One view or
// two.
//
// Plan. Persistent, one block per multiprocessor: 2 consumer warpgroups (240 registers) and a producer warp (24). A
// step is 64 keys. With one view and D = 64 a warpgroup owns two parts of 64 query rows (256 rows a job), else one
// (128).
//   shared   1 or 2 query slots (views x rows of a job), 3 to 8 slots of a step: keys of step s and their 1/|k| of each
//            view, values of step s - 1                                                               ~195-215 KiB
//   barriers query full/empty, slot full/empty; empties count one arrival per consumer warp; named barrier 1 +
//            warpgroup for words of the survivor index
// At step s a warpgroup issues Q K' of its sets (parts or views) and then P V of step s - 1, waits for Q K' alone and
// converts the scores while P V runs; it rounds them to weights when P V has let go of the registers of the old ones.
// Nothing else orders the warpgroups: each goes as far ahead as slots allow, and waits for and frees the slots behind
// its own last step, too.
// Registers a thread: D/2 of output and 16 of weights for each part, 32 of scores and D/4 of queries for each set.
// Shared memory delivers 128 bytes a cycle: at D = 64 a step of 64 rows has 256 cycles of products, in which K and V
// take 128, the copy engine 32 and 1/|k| 32; queries in shared memory (kQueriesShared) would take 64 more.
#pragma once

#include "attention/cuda/common/barrier.cuh"
#include "attention/cuda/common/copy_engine.cuh"
#include "attention/cuda/sm90/exact_scores.cuh"
#include "attention/cuda/sm90/slice_words.cuh"
#include "attention/cuda/sm90/survivor_lists.cuh"

namespace tda::cuda::sm90 {

template <int kHeadDim_, int kViews_, int kWarpgroups_, int kParts_, bool kQueriesShared_>
struct StepPlan {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kViews = kViews_;
  static constexpr int kWarpgroups = kWarpgroups_;
  static constexpr int kParts = kParts_;  // of 64 rows, a warpgroup
  static constexpr bool kQueriesShared = kQueriesShared_;
  static constexpr int kConsumers = kWarpgroups * 128;
  static constexpr int kThreads = kConsumers + 128;
  static constexpr int kConsumerRegisters = kWarpgroups == 4 ? 112 : 240;
  static constexpr int kProducerRegisters = kWarpgroups == 4 ? 32 : 24;
  static constexpr int kRows = kWarpgroups * kParts * kRowTile;  // a job
  static constexpr int kJobsPerBlock = kScreenRows / kRows;
  static constexpr int kSets = kParts * kViews;         // of 64 x 64 scores, a warpgroup
  static constexpr int kTileBytes = 64 * kHeadDim * 2;  // 64 rows of q, k or v: D/64 blocks of 8 KiB
  // Queries that go to registers leave their slot at once.
  static constexpr int kQuerySlots = kViews * kHeadDim == 256 ? 1 : 2;
  static constexpr int kQueryTiles = kRows / kRowTile;  // of each view
  static constexpr int kQueryBytes = kViews * kQueryTiles * kTileBytes;
  static constexpr int kSlots = kViews == 1 ? (kHeadDim == 64 ? 8 : 4) : (kHeadDim == 64 ? 6 : 3);
  static constexpr int kSlotBytes = (kViews + 1) * kTileBytes;  // keys of each view, values
  static constexpr int kScaleBytes = kBlockKeys * 4;            // of one view
  static constexpr int kTailBytes = 2560;
  static constexpr int kSharedBytes =
      1024 + kQuerySlots * kQueryBytes + kSlots * (kSlotBytes + kViews * kScaleBytes) + kTailBytes;
  static_assert(kSets <= 2 && kSharedBytes <= 227 * 1024);
};

// The plan of a problem. To measure others: <64, 1, 4, 1, true> has four warpgroups, which must leave the queries in
// shared memory.
template <int kHeadDim, int kViews>
using DenseStepPlan = StepPlan<kHeadDim, kViews, 2, kViews * kHeadDim == 64 ? 2 : 1, false>;

// Which dense kernel runs with one view: by steps (here) or by turns (dense.cuh).
template <int kHeadDim>
constexpr bool kDenseBySteps = true;

struct StepTail {
  std::uint64_t query_full[2], query_empty[2];
  std::uint64_t full[8], empty[8];
  std::uint32_t slices[2 * 4 * 4];  // exchanges of SliceWords: halves x sets of all warpgroups x warps
  float row[8][kRowTile];           // what consumers keep here of each row for want of registers
  int job[2];                       // row block * kJobsPerBlock + part of it, or -1
};

static_assert(sizeof(StepTail) <= 2560);

struct StepJob {
  int batch, head, first_row;
};

// Steps that `rows` rows from `first_row` see; 0 behind the end.
__device__ __forceinline__ int visible_steps(const ForwardArguments& a, int first_row, int rows) {
  if (first_row >= a.query_length) return 0;
  return (a.position_offset + min(first_row + rows, a.query_length) - 1) / kBlockKeys + 1;
}

// Slots that `steps` steps take: the last holds values alone.
__device__ __forceinline__ int turns_of(int steps) { return steps > 0 ? steps + 1 : 0; }

template <typename Plan>
__device__ __forceinline__ StepJob step_job(const ForwardArguments& a, int job_of_all) {
  const int block = job_of_all / Plan::kJobsPerBlock;
  const int head_of_all = block / a.row_blocks;
  StepJob job;
  job.batch = head_of_all / a.query_heads;
  job.head = head_of_all % a.query_heads;
  job.first_row = block % a.row_blocks * kScreenRows + job_of_all % Plan::kJobsPerBlock * Plan::kRows;
  return job;
}

template <typename Plan>
__device__ __forceinline__ void step_producer(const ForwardArguments& a, std::uint32_t queries, std::uint32_t slots,
                                              std::uint32_t scales, StepTail& tail) {
  const int jobs = a.counters->dense_jobs * Plan::kJobsPerBlock;
  SlotRing<Plan::kSlots> ring(1);
  const auto copy = [&](std::uint32_t destination, const CUtensorMap& map, std::uint32_t full, int row, int head,
                        int batch) {
#pragma unroll
    for (int half = 0; half < Plan::kHeadDim / 64; ++half) {
      copy_tile(destination + half * 8192, map, full, half * 64, row, head, batch);
    }
  };
  SlotRing<Plan::kQuerySlots> query_ring(1);
  for (;; query_ring.advance()) {
    const int claimed = atomicAdd(&a.counters->dense_claims, 1);
    const std::uint32_t query_full = shared_address(&tail.query_full[query_ring.slot]);
    barrier_wait(shared_address(&tail.query_empty[query_ring.slot]), query_ring.phase);
    if (claimed >= jobs) {
      tail.job[query_ring.slot] = -1;
      barrier_arrive(query_full);
      return;
    }
    // The second half of a row block, which is longer, comes first.
    const int part_of_block = Plan::kJobsPerBlock - 1 - claimed % Plan::kJobsPerBlock;
    const int job_of_all = a.dense_list[claimed / Plan::kJobsPerBlock] * Plan::kJobsPerBlock + part_of_block;
    tail.job[query_ring.slot] = job_of_all;
    const StepJob job = step_job<Plan>(a, job_of_all);
    const int steps = visible_steps(a, job.first_row, Plan::kRows);
    const int key_head = job.head / a.heads_per_key;
    barrier_arrive_expect(query_full, Plan::kQueryBytes);
#pragma unroll
    for (int view = 0; view < Plan::kViews; ++view) {
      for (int tile = 0; tile < Plan::kQueryTiles; ++tile) {
        copy(queries + query_ring.slot * Plan::kQueryBytes + (view * Plan::kQueryTiles + tile) * Plan::kTileBytes,
             a.query[view], query_full, job.first_row + tile * kRowTile, job.head, job.batch);
      }
    }
    for (int step = 0; step < turns_of(steps); ++step) {
      barrier_wait(shared_address(&tail.empty[ring.slot]), ring.phase);
      const std::uint32_t full = shared_address(&tail.full[ring.slot]);
      const std::uint32_t tiles = slots + ring.slot * Plan::kSlotBytes;
      const int value_bytes = step > 0 ? Plan::kTileBytes : 0;
      const int key_bytes = step < steps ? Plan::kViews * (Plan::kTileBytes + Plan::kScaleBytes) : 0;
      barrier_arrive_expect(full, value_bytes + key_bytes);
      if (step > 0) {
        copy(tiles + Plan::kViews * Plan::kTileBytes, a.value, full, (step - 1) * kBlockKeys, key_head, job.batch);
      }
      if (step < steps) {
#pragma unroll
        for (int view = 0; view < Plan::kViews; ++view) {
          const std::int64_t head_of_all = (view * a.batch + job.batch) * a.key_heads + key_head;
          copy(tiles + view * Plan::kTileBytes, a.key[view], full, step * kBlockKeys, key_head, job.batch);
          copy_bytes(scales + (ring.slot * Plan::kViews + view) * Plan::kScaleBytes,
                     a.key_scale + head_of_all * a.key_tiles * kScreenKeys + step * kBlockKeys, Plan::kScaleBytes,
                     full);
        }
      }
      ring.advance();
    }
  }
}

// What a consumer thread knows, and the stages of its work. A set is the scores of one part and view.
template <typename Element, bool kSquare, typename Plan>
class StepConsumer {
 public:
  __device__ __forceinline__ StepConsumer(const ForwardArguments& arguments, std::uint32_t query_slots,
                                          std::uint32_t slots, std::uint32_t scales, StepTail& shared_tail)
      : a(arguments), tail(shared_tail), queries(query_slots), slots_(slots), scales_(scales) {}

  __device__ __forceinline__ void run() {
    for (; next_job(); ++use) {
      read_queries();
      // Steps of this warpgroup; the job's may be more.
      const int steps = visible_steps(a, first_row, kParts * kRowTile);
      if (steps > 0) first_step(steps);
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
#pragma unroll
        for (int i = 0; i < kHeadDim / 2; ++i) output[part][i] = 0.0f;
      }
#pragma unroll 1
      for (int step = 1; step < steps; ++step) middle_step(step, steps);
      if (steps > 0) last_step();
      const int job_steps = visible_steps(a, first_row - warpgroup * kParts * kRowTile, Plan::kRows);
      for (int turn = turns_of(steps); turn < turns_of(job_steps); ++turn) {  // of the other warpgroups alone
        wait_for_slot();
        free_slot();
      }
      if constexpr (Plan::kQueriesShared) {
        fence_shared_for_copies();
        free_queries();
      }
      store_rows();
    }
  }

 private:
  static constexpr int kHeadDim = Plan::kHeadDim;
  static constexpr int kViews = Plan::kViews;
  static constexpr int kParts = Plan::kParts;
  static constexpr int kSets = Plan::kSets;
  static constexpr int kChunks = kHeadDim / 16;
  __device__ static constexpr int part_of(int set) { return set / kViews; }
  __device__ static constexpr int view_of(int set) { return set % kViews; }

  __device__ __forceinline__ bool next_job() {
    barrier_wait(shared_address(&tail.query_full[query_slot()]), use / Plan::kQuerySlots & 1);
    const int job_of_all = uniform(tail.job[query_slot()]);
    if (job_of_all < 0) return false;
    job = step_job<Plan>(a, job_of_all);
    first_row = job.first_row + warpgroup * kParts * kRowTile;
    return true;
  }

  __device__ __forceinline__ unsigned query_slot() const { return use % Plan::kQuerySlots; }
  __device__ __forceinline__ void free_queries() {
    __syncwarp();
    if (lane == 0) barrier_arrive(shared_address(&tail.query_empty[query_slot()]));
  }
  __device__ __forceinline__ void wait_for_slot() { barrier_wait(shared_address(&tail.full[ring.slot]), ring.phase); }
  __device__ __forceinline__ void free_slot() {
    if (lane == 0) barrier_arrive(shared_address(&tail.empty[ring.slot]));
    ring.advance();
  }
  __device__ __forceinline__ std::uint32_t query_tile(int set) const {
    return queries + query_slot() * Plan::kQueryBytes +
           (view_of(set) * Plan::kQueryTiles + warpgroup * kParts + part_of(set)) * Plan::kTileBytes;
  }

  __device__ __forceinline__ ListPlace list_of(int set) const {
    return list_place(a, view_of(set), job.batch, job.head, first_row + part_of(set) * kRowTile + row_in_tile);
  }

  // What the consumers keep in shared memory of row g + 8 h of a part: the norm until the end of the job, and the rest
  // where registers are shortest.
  enum Kept { kNorm, kThreshold, kRatio = kThreshold + 2, kAllKept };
  static constexpr bool kKeepsRows = kViews * kHeadDim == 256;
  __device__ __forceinline__ float& kept(int what, int part, int h) {
    constexpr int kStride = kKeepsRows ? kAllKept : 1;
    return tail.row[(warpgroup * kParts + part) * kStride + what][row_in_tile + 8 * h];
  }

  // Scales the queries and prepares the rows of a job.
  __device__ __forceinline__ void read_queries() {
    int matrix_row = warp * 16 + (lane & 15);
    asm volatile("" : "+r"(matrix_row));  // else its addresses take registers around the loop over jobs
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
      std::uint32_t address[kChunks];
#pragma unroll
      for (int k = 0; k < kChunks; ++k) {
        address[k] = query_tile(set) + k / 4 * 8192 + swizzled_offset<128>(matrix_row, (k % 4) * 2 + (lane >> 4));
        load_matrices(address[k], q[set][k]);
      }
      const int row = first_row + part_of(set) * kRowTile + row_in_tile;
      lists[set].begin(a);
      rows[set] = prepare_queries<Element, kHeadDim>(a, a.beta[job.head], row, q[set]);
      if constexpr (Plan::kQueriesShared) {
#pragma unroll
        for (int k = 0; k < kChunks; ++k) store_matrices(address[k], q[set][k]);
      }
    }
    if constexpr (kViews == 2) {
      const float lambda = fminf(fmaxf(a.lambda[job.head], 0.0f), 1.0f);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        ratio[h] = lambda * inverse_power(rows[1].norm[h], a.power) / inverse_power(rows[0].norm[h], a.power);
      }
    }
    __syncwarp();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if ((lane & 3) != 0) continue;
#pragma unroll
      for (int part = 0; part < kParts; ++part) kept(kNorm, part, h) = rows[part * kViews].norm[h];
      if constexpr (kKeepsRows) {
        kept(kThreshold, 0, h) = rows[0].threshold[h];
        kept(kThreshold + 1, 0, h) = rows[1].threshold[h];
        kept(kRatio, 0, h) = ratio[h];
      }
    }
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      survivors[part][0] = survivors[part][1] = 0;
    }
    if (a.index != nullptr) index.begin(1 + warpgroup);
    if constexpr (Plan::kQueriesShared) {
      fence_shared_for_copies();  // products read shared memory as the copy engine does
      named_barrier_sync(1 + warpgroup, 128);
    } else {
      free_queries();
    }
  }

  __device__ __forceinline__ void hold_all() {
#pragma unroll
    for (int set = 0; set < kSets; ++set) hold(t[set]);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      hold(output[part]);
#pragma unroll
      for (int k = 0; k < 4; ++k) hold(weights[part][k]);
    }
  }

  // Issues Q K' of a set, as a group of its own.
  __device__ __forceinline__ void issue_scores(int set) {
    const std::uint32_t keys = slots_ + ring.slot * Plan::kSlotBytes + view_of(set) * Plan::kTileBytes;
#pragma unroll
    for (int k = 0; k < kChunks; ++k) {
      const std::uint64_t key = k_major_descriptor<128>(keys + k / 4 * 8192) + 2 * (k % 4);
      if constexpr (Plan::kQueriesShared) {
        const std::uint64_t query = k_major_descriptor<128>(query_tile(set) + k / 4 * 8192) + 2 * (k % 4);
        if (k == 0) {
          wgmma<Element, false>(t[set], query, key);
        } else {
          wgmma<Element, true>(t[set], query, key);
        }
      } else {
        if (k == 0) {
          wgmma<Element, false, false>(t[set], q[set][k], key);
        } else {
          wgmma<Element, true, false>(t[set], q[set][k], key);
        }
      }
    }
    wgmma_commit();
  }

  // Issues P V of all parts, with the values of the step before.
  __device__ __forceinline__ void issue_product() {
    const std::uint32_t values = slots_ + ring.slot * Plan::kSlotBytes + kViews * Plan::kTileBytes;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        wgmma<Element, true, true>(output[part], weights[part][k], mn_major_descriptor(values, 8192) + 128 * k);
      }
    }
    wgmma_commit();
  }

  __device__ __forceinline__ bool records() const {
    return (reinterpret_cast<std::uintptr_t>(a.index) | reinterpret_cast<std::uintptr_t>(a.survivors)) != 0;
  }

  // What leaves the kernel beside the output: slices and lists of a set, survivors once all views are there.
  __device__ __forceinline__ void record(int set, int step) {
    if (a.index != nullptr) {
      const std::uint32_t slices = live_slices(t[set]);
      index.add(set, slices, step);
      if (lists[set].lists()) {
        lists[set].add(a, list_of(set), t[set], __reduce_or_sync(0xffffffffu, slices), step * kBlockKeys);
      }
    }
    if (a.survivors == nullptr || view_of(set) != kViews - 1) return;
    const int part = part_of(set);
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      survivors[part][i >> 1 & 1] += t[part][i] > 0.0f || (kViews == 2 && t[kSets - 1][i] > 0.0f);
    }
  }

  // Scores of a set -> t, recorded -> t^p; with two views the second set leaves their difference in the first.
  __device__ __forceinline__ void convert(int set, int step) {
    if constexpr (kKeepsRows) {
#pragma unroll
      for (int h = 0; h < 2; ++h) rows[set].threshold[h] = kept(kThreshold + set, 0, h);
    }
    subtract_threshold(t[set], scales_ + (ring.slot * kViews + view_of(set)) * Plan::kScaleBytes, rows[set]);
    const int position = a.position_offset + first_row + part_of(set) * kRowTile;
    if (step * kBlockKeys + kBlockKeys - 1 > position) {
      hide_future(t[set], position + row_in_tile - step * kBlockKeys);
    }
    if (records()) record(set, step);
    if constexpr (kViews == 1) {
      raise<kSquare>(t[set], a.power);
    } else if (set == 1) {
      if constexpr (kKeepsRows) {
#pragma unroll
        for (int h = 0; h < 2; ++h) ratio[h] = kept(kRatio, 0, h);
      }
      rectify<kSquare>(t[0], a.power);
      rectify<kSquare>(t[1], a.power);
#pragma unroll
      for (int i = 0; i < 32; ++i) t[0][i] = fmaf(-ratio[i >> 1 & 1], t[1][i], t[0][i]);
    }
  }

  __device__ __forceinline__ void round() {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      round_weights<Element, kSquare && kViews == 1>(t[part], weights[part]);
    }
  }

  __device__ __forceinline__ void write_index(int step, bool last) {
    if (!records() || a.index == nullptr) return;
    auto& exchange = reinterpret_cast<typename SliceWords<kSets>::Exchange*>(tail.slices)[warpgroup];
    index.finish_block(step, last, exchange, 1 + warpgroup, [&](int set) -> std::uint32_t* {
      const int tile = first_row / kRowTile + part_of(set);
      if (tile >= a.row_tiles) return nullptr;
      return a.index + a.index_layout.word_offset(view_of(set), job.head,
                                                  static_cast<std::int64_t>(job.batch) * a.row_tiles + tile);
    });
  }

  __device__ __forceinline__ void first_step(int steps) {
    wait_for_slot();
    wgmma_fence();
#pragma unroll
    for (int set = 0; set < kSets; ++set) issue_scores(set);
    wgmma_wait<0>();
#pragma unroll
    for (int set = 0; set < kSets; ++set) hold(t[set]);
#pragma unroll
    for (int set = 0; set < kSets; ++set) convert(set, 0);
    round();
    write_index(0, steps == 1);
    free_slot();
  }

  __device__ __forceinline__ void middle_step(int step, int steps) {
    wait_for_slot();
    hold_all();
    wgmma_fence();
#pragma unroll
    for (int set = 0; set < kSets; ++set) issue_scores(set);
    issue_product();
    if constexpr (kSets == 2) {
      wgmma_wait<2>();
      hold(t[0]);
      convert(0, step);
    }
    wgmma_wait<1>();
    hold(t[kSets - 1]);
    convert(kSets - 1, step);
    write_index(step, step == steps - 1);
    wgmma_wait<0>();
    hold_all();
    free_slot();
    round();
  }

  __device__ __forceinline__ void last_step() {
    wait_for_slot();
    hold_all();
    wgmma_fence();
    issue_product();
    wgmma_wait<0>();
#pragma unroll
    for (int part = 0; part < kParts; ++part) hold(output[part]);
    free_slot();
  }

  __device__ __forceinline__ void store_rows() {
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int tile_row = first_row + part * kRowTile;
      QueryRows scaled{};
#pragma unroll
      for (int h = 0; h < 2; ++h) scaled.norm[h] = kept(kNorm, part, h);
      store_output<Element, kHeadDim>(a, job.batch, job.head, tile_row + warp * 16, output[part], scaled);
      if (a.survivors == nullptr) continue;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        int count = survivors[part][h];
        count += __shfl_xor_sync(0xffffffffu, count, 1);
        count += __shfl_xor_sync(0xffffffffu, count, 2);
        const int row = tile_row + row_in_tile + 8 * h;
        if ((lane & 3) == 0 && row < a.query_length) {
          a.survivors[(static_cast<std::int64_t>(job.batch) * a.query_heads + job.head) * a.query_length + row] = count;
        }
      }
    }
#pragma unroll
    for (int set = 0; set < kSets; ++set) lists[set].finish(a, list_of(set));
  }

  const ForwardArguments& a;
  StepTail& tail;
  const std::uint32_t queries, slots_, scales_;
  const int warpgroup = uniform(static_cast<int>(threadIdx.x >> 7));
  const int warp = static_cast<int>(threadIdx.x >> 5) & 3;
  const int lane = static_cast<int>(threadIdx.x & 31);
  const int row_in_tile = warp * 16 + (lane >> 2);  // of row g
  unsigned use = 0;                                 // jobs so far
  SlotRing<Plan::kSlots> ring{0};
  StepJob job;
  int first_row;  // of this warpgroup

  std::uint32_t q[kSets][kChunks][4];
  float t[kSets][32];
  std::uint32_t weights[kParts][4][4];
  float output[kParts][kHeadDim / 2];
  QueryRows rows[kSets];
  float ratio[2];  // of the weights of view 1, for rows g and g + 8
  int survivors[kParts][2];
  SliceWords<kSets> index;
  ListWriter lists[kSets];
};

template <typename Element, bool kSquare, typename Plan>
__global__ void __launch_bounds__(Plan::kThreads, 1) dense_steps(const __grid_constant__ ForwardArguments a) {
  extern __shared__ std::uint8_t shared[];
  const std::uint32_t queries = uniform(aligned_shared_address(shared));
  const std::uint32_t slots = queries + Plan::kQuerySlots * Plan::kQueryBytes;
  const std::uint32_t scales = slots + Plan::kSlots * Plan::kSlotBytes;
  auto& tail = *reinterpret_cast<StepTail*>(shared + (scales - shared_address(shared)) +
                                            Plan::kSlots * Plan::kViews * Plan::kScaleBytes);
  if (threadIdx.x == 0) {
    constexpr int kWarps = Plan::kConsumers / 32;
    for (int i = 0; i < 2; ++i) {
      barrier_init(shared_address(&tail.query_full[i]), 1);
      barrier_init(shared_address(&tail.query_empty[i]), kWarps);
    }
    for (int i = 0; i < Plan::kSlots; ++i) {
      barrier_init(shared_address(&tail.full[i]), 1);
      barrier_init(shared_address(&tail.empty[i]), kWarps);
    }
    barrier_init_fence();
  }
  __syncthreads();
  wait_for_previous_kernel();
  if (threadIdx.x >= Plan::kConsumers) {
    shrink_registers<Plan::kProducerRegisters>();
    if (threadIdx.x == Plan::kConsumers) step_producer<Plan>(a, queries, slots, scales, tail);
  } else {
    grow_registers<Plan::kConsumerRegisters>();
    StepConsumer<Element, kSquare, Plan>(a, queries, slots, scales, tail).run();
  }
}

}  // namespace tda::cuda::sm90
