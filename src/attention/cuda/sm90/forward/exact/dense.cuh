// The dense forward: every visible block of the row blocks that the screen found dense; nothing is skipped. One view or
// two.
//
// Plan. Persistent, one block per multiprocessor: consumer warpgroups of 64 query rows each and a producer warp. With
// one view and D = 64 there are four (112 registers, producer 32; 256 rows a job), else two (240, 24; 128 rows). A step
// is 64 keys.
//   shared   1 or 2 query slots (views x rows of a job), 3 to 8 slots of a step: keys of step s and their 1/|k| of each
//            view, values of step s - 1                                                               ~195-215 KiB
//   barriers query full/empty, slot full/empty; empties count one arrival per consumer warp; named barrier 1 +
//            warpgroup for words of the survivor index
// Where few jobs read a key (short calls without an index) prepare_keys only clears, and two warps beside the producer
// write 1/|k| of each slot, a row a thread: a barrier "scaled" a slot, on which consumers wait before they convert.
// At step s a warpgroup issues Q K' of its sets (parts or views) and then P V of step s - 1, waits for Q K' alone and
// converts the scores while P V runs; it rounds them to weights when P V has let go of the registers of the old ones.
// Nothing else orders the warpgroups: each goes as far ahead as slots allow, and waits for and frees the slots behind
// its own last step, too.
// Registers a thread: D/2 of output and 16 of weights for each part, 32 of scores and D/4 of queries for each set;
// four warpgroups leave the queries in shared memory (kQueriesShared). That delivers 128 bytes a cycle: at D = 64 a
// step of 64 rows has 256 cycles of products, in which K and V take 128, the copy engine 32, 1/|k| 32 and those
// queries 64.
#pragma once

#include "attention/cuda/common/kernel_order.cuh"
#include "attention/cuda/sm90/document_tile.cuh"
#include "attention/cuda/sm90/forward/exact/dense_producer.cuh"
#include "attention/cuda/sm90/forward/exact/exact_scores.cuh"
#include "attention/cuda/sm90/forward/exact/slice_words.cuh"
#include "attention/cuda/sm90/forward/exact/survivor_lists.cuh"

namespace tda::cuda::sm90 {

// What a consumer thread knows, and the stages of its work. A set is the scores of one part and view.
template <typename Element, bool kSquare, typename Plan, bool kPacked>
class StepConsumer {
 public:
  __device__ __forceinline__ StepConsumer(const ForwardArguments& arguments, StepTail& shared_tail,
                                          std::uint32_t query_slots, std::uint32_t step_slots,
                                          std::uint32_t scale_slots)
      : a(arguments), tail(shared_tail), queries(query_slots), slots(step_slots), scales(scale_slots) {}

  __device__ __forceinline__ void run() {
    for (; next_job(); ++use) {
      read_queries();
      // Steps of this warpgroup; the job's may be more.
      const int steps = visible_steps(job.sequence, first_row, kParts * kRowTile);
      if (steps > 0) first_step(steps);
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
#pragma unroll
        for (int i = 0; i < kHeadDim / 2; ++i) output[part][i] = 0.0f;
      }
#pragma unroll 1
      for (int step = 1; step < steps; ++step) middle_step(step, steps);
      if (steps > 0) last_step(steps);
      const int job_steps = visible_steps(job.sequence, first_row - warpgroup * kParts * kRowTile, Plan::kRows);
      for (int turn = turns_of(steps); turn < turns_of(job_steps); ++turn) {  // of the other warpgroups alone
        wait_for_slot();
        __syncwarp();  // a lane left behind would find the slot filled twice
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
    job = step_job<Plan, kPacked>(a, job_of_all);
    if constexpr (kPacked) {  // read from memory, and the same in all lanes
      job.sequence.queries = uniform(job.sequence.queries);
      job.sequence.keys = uniform(job.sequence.keys);
      job.first_row = uniform(job.first_row);
    }
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
    return list_place(a, view_of(set), job.sequence.batch(), job.head,
                      first_row + part_of(set) * kRowTile + row_in_tile);
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
      if constexpr (!kPacked) lists[set].begin(a);
      rows[set] = prepare_queries<Element, kHeadDim, kPacked>(a, job.sequence, view_of(set), job.head, row, q[set]);
      if constexpr (Plan::kQueriesShared) {
#pragma unroll
        for (int k = 0; k < kChunks; ++k) store_matrices(address[k], q[set][k]);
      }
    }
    if constexpr (kViews == 2) view_ratio(a, job.head, rows, ratio);
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
#pragma unroll
    for (int set = 0; set < kSets; ++set) {
#pragma unroll
      for (int k = 0; k < kChunks; ++k) hold(q[set][k]);  // final before the fence of the first products
    }
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
    const std::uint32_t keys = slots + ring.slot * Plan::kSlotBytes + view_of(set) * Plan::kTileBytes;
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
    const std::uint32_t values = slots + ring.slot * Plan::kSlotBytes + kViews * Plan::kTileBytes;
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
    if (scales_here<Plan, kPacked>(a)) barrier_wait(shared_address(&tail.scaled[ring.slot]), ring.phase);
    subtract_threshold(t[set], scales + (ring.slot * kViews + view_of(set)) * Plan::kScaleBytes, rows[set]);
    const int position = job.sequence.offset() + first_row + part_of(set) * kRowTile;
    if (step * kBlockKeys + kBlockKeys - 1 > position) {
      hide_future(job.sequence, t[set], position + row_in_tile, step * kBlockKeys);
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
      if (tile * kRowTile >= job.sequence.query_length()) return nullptr;
      return a.index + a.index_layout.word_offset(view_of(set), job.head, job.sequence.first_row_tile() + tile);
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
    __syncwarp();  // all lanes have read 1/|k|
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

  __device__ __forceinline__ void last_step(int steps) {
    wait_for_slot();
    if (kPacked && steps * kBlockKeys > job.sequence.key_length()) {
      clear_last_rows<kHeadDim>(slots + ring.slot * Plan::kSlotBytes + kViews * Plan::kTileBytes,
                                job.sequence.key_length() - (steps - 1) * kBlockKeys);
      named_barrier_sync(1 + warpgroup, 128);
    }
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
      store_output<Element, kHeadDim, !kPacked && Plan::kMayScale>(a, job.sequence, job.head, tile_row + warp * 16,
                                                                   output[part], scaled);
      if (a.survivors == nullptr) continue;
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        int count = survivors[part][h];
        count += __shfl_xor_sync(0xffffffffu, count, 1);
        count += __shfl_xor_sync(0xffffffffu, count, 2);
        const int row = tile_row + row_in_tile + 8 * h;
        if ((lane & 3) == 0 && row < job.sequence.query_length()) {
          a.survivors[flat_row(a, job.sequence, job.head) + row] = count;
        }
      }
    }
#pragma unroll
    for (int set = 0; set < kSets; ++set) lists[set].finish(a, list_of(set));
  }

  const ForwardArguments& a;
  StepTail& tail;
  const std::uint32_t queries, slots, scales;
  const int warpgroup = uniform(static_cast<int>(threadIdx.x >> 7));
  const int warp = static_cast<int>(threadIdx.x >> 5) & 3;
  const int lane = static_cast<int>(threadIdx.x & 31);
  const int row_in_tile = warp * 16 + (lane >> 2);  // of row g
  unsigned use = 0;                                 // jobs so far
  SlotRing<Plan::kSlots> ring{0};
  StepJob<kPacked> job;
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

template <typename Element, bool kSquare, typename Plan, bool kPacked>
__global__ void __launch_bounds__(Plan::kThreads, 1) dense(const __grid_constant__ ForwardArguments a) {
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
      barrier_init(shared_address(&tail.empty[i]), kWarps + (scales_here<Plan, kPacked>(a) ? kScalingWarps : 0));
      barrier_init(shared_address(&tail.scaled[i]), kScalingWarps);
    }
    barrier_init_fence();
  }
  __syncthreads();
  begin_kernel(KernelOrder::kAfterPrevious);
  if (threadIdx.x >= Plan::kConsumers) {
    shrink_registers<Plan::kProducerRegisters>();
    const int thread = static_cast<int>(threadIdx.x) - Plan::kConsumers;
    if (thread == 0) step_producer<Plan, kPacked>(a, queries, slots, scales, tail);
    if constexpr (!kPacked && Plan::kMayScale) {
      const int row = thread - 32;
      if (a.dense_scales && row >= 0 && row < kBlockKeys) step_scaler<Element, Plan>(a, slots, scales, tail, row);
    }
  } else {
    grow_registers<Plan::kConsumerRegisters>();
    StepConsumer<Element, kSquare, Plan, kPacked>(a, tail, queries, slots, scales).run();
  }
}

}  // namespace tda::cuda::sm90
