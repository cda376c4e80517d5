// What the two dense backward kernels share: a block holds 128 resident rows (queries and their output gradients, or
// keys and values), 64 for each of its two consumer warpgroups, while producer warps stream tiles of 64 rows of the
// other kind through a ring of stages. Only tiles in which the survivor index knows a live slice are streamed.
//
// Shared memory of either kernel: kResidents x 4 tiles, kStages x 2 tiles (all 128-byte swizzled, 64 rows of one
// tensor; with D = 128 two halves of 64 columns behind each other), and the tail.
#pragma once

#include "attention/cuda/common/barrier.cuh"
#include "attention/cuda/common/copy_engine.cuh"
#include "attention/cuda/common/fragment.cuh"
#include "attention/cuda/common/kernel_order.cuh"
#include "attention/cuda/common/wgmma.cuh"
#include "attention/cuda/portable/half_operands.cuh"
#include "attention/cuda/portable/task_claims.cuh"
#include "attention/cuda/sm90/backward/arguments.h"
#include "attention/cuda/sm90/document_tile.cuh"

namespace tda::cuda::sm90 {

constexpr int kTileRows = 64;  // of a streamed tile and of a warpgroup's resident rows
constexpr int kTileColumnBytes = kTileRows * 128;
constexpr int kProducerWarps = 4;
template <class Plan>
constexpr int kStreamThreads = 128 * Plan::kConsumers + 32 * kProducerWarps;

template <int kHeadDimension>
struct StreamPlan {
  static constexpr int kHeadDim = kHeadDimension;
  static constexpr int kResidents = kHeadDim == 64 ? 2 : 1;
  static constexpr int kStages = kHeadDim == 64 ? 8 : 4;
  static constexpr int kConsumers = 2;  // warpgroups
  static constexpr int kStageConsumers = kConsumers;
  static constexpr int kExtraBytes = 0;  // behind the stages
  static constexpr int kTileBytes = kTileRows * kHeadDim * 2;
  static constexpr int kResidentBytes = 4 * kTileBytes;
  static constexpr int kStageBytes = 2 * kTileBytes;
};

// Whether the fused kernel takes a key head (portable::FusedHeads).
__device__ __forceinline__ bool is_fused(const BackwardArguments& a, std::int64_t batch, std::int64_t key_head) {
  const portable::FusedHeads& fused = a.plan.fused;
  return fused.counters != nullptr && fused.chosen[batch * a.problem.shape.key_heads + key_head] != 0;
}
__device__ __forceinline__ bool all_are_fused(const BackwardArguments& a) {
  const portable::FusedHeads& fused = a.plan.fused;
  return fused.counters != nullptr &&
         __ldcg(&fused.counters->listed) == a.problem.shape.batch * a.problem.shape.key_heads;
}

struct StreamClaim {
  portable::BackwardTask task;
  bool valid;
};

// A task, or one view of it. block < 0: there is no more.
struct StreamPart {
  int sequence, head, block, view;
  int rows, offset;  // of the sequence: resident rows, and the position of query row 0
  float constant;    // beta of the query head, or the scale of a key head's weights
};

// 1/|x| of a resident row and, of a query, c_i (tda/attention.h); zeros for a row that does not exist.
struct ResidentRow {
  float factor, scale;
};

// A streamed tile. first: position of its first row in the sequence; less than 0: the part is over. live: bit w for
// warpgroup w; slices: live 16-key slices of a key tile.
struct StreamTile {
  int first;
  std::uint16_t live, slices;
  bool unfit;  // holds a row that 16-bit products cannot take as it is
  float sign;  // weight of the view in the output (queries)
};

template <class Plan>
struct alignas(128) StreamTail {
  static constexpr int kStages = Plan::kStages;
  static constexpr int kResidents = Plan::kResidents;
  // Of each streamed row: tau and 1/|q| of queries, 1/|k| of keys.
  float2 query[kStages][kTileRows];
  float key_factor[kStages][kTileRows];
  ResidentRow resident[kResidents][2 * kTileRows];
  double sums[2][4];
  std::uint64_t full[kStages], empty[kStages], resident_full[kResidents], resident_empty[kResidents];
  StreamTile tile[kStages];
  StreamPart part[kResidents];
  StreamClaim claim[2];
  std::uint32_t bucket_end[portable::kTaskBuckets];  // of the kernel's tasks in the order of claims, heaviest first
  alignas(128) uint4 zeros[kTileColumnBytes / sizeof(uint4)];  // for the empty blocks
};

template <class Plan>
constexpr int kStreamSharedBytes = 1024 + Plan::kResidents* Plan::kResidentBytes + Plan::kStages* Plan::kStageBytes +
                                   Plan::kExtraBytes + static_cast<int>(sizeof(StreamTail<Plan>));

// The shared memory of a block.
template <class Plan>
struct StreamMemory {
  std::uint32_t base;
  StreamTail<Plan>& tail;

  __device__ __forceinline__ explicit StreamMemory(unsigned char* shared)
      : base(aligned_shared_address(shared)),
        tail(*reinterpret_cast<StreamTail<Plan>*>(shared + (base - shared_address(shared)) +
                                                  Plan::kResidents * Plan::kResidentBytes +
                                                  Plan::kStages * Plan::kStageBytes + Plan::kExtraBytes)) {}
  // Tile `warpgroup` of resident tensor `which`.
  __device__ __forceinline__ std::uint32_t resident(int slot, int which, int warpgroup) const {
    return base + slot * Plan::kResidentBytes + (2 * which + warpgroup) * Plan::kTileBytes;
  }
  __device__ __forceinline__ std::uint32_t stage(int slot, int which) const {
    return base + Plan::kResidents * Plan::kResidentBytes + slot * Plan::kStageBytes + which * Plan::kTileBytes;
  }
  __device__ __forceinline__ void prepare_barriers() const {  // each consumer warp arrives
    for (int i = 0; i < Plan::kResidents; ++i) {
      barrier_init(shared_address(&tail.resident_full[i]), 1);
      barrier_init(shared_address(&tail.resident_empty[i]), 4 * Plan::kConsumers);
    }
    for (int i = 0; i < Plan::kStages; ++i) {
      barrier_init(shared_address(&tail.full[i]), 1);
      barrier_init(shared_address(&tail.empty[i]), 4 * Plan::kStageConsumers);
    }
  }
  // Prepares the barriers, the order of the tasks of `list`, and the zeros; false when there is nothing to do.
  __device__ __forceinline__ bool begin(const portable::TaskList& list, const portable::TaskList& empty) const {
    std::uint32_t tasks[portable::kTaskBuckets], all = __ldcg(&empty.counters->block_tasks[0]);
#pragma unroll
    for (int b = 0; b < portable::kTaskBuckets; ++b) tasks[b] = __ldcg(&list.counters->block_tasks[b]);
#pragma unroll
    for (int b = 0; b < portable::kTaskBuckets; ++b) all += tasks[b];
    if (all == 0) return false;
    if (threadIdx.x == 0) {
      std::uint32_t end = 0;
#pragma unroll
      for (int b = portable::kTaskBuckets - 1; b >= 0; --b) tail.bucket_end[b] = end += tasks[b];
      prepare_barriers();
      barrier_init_fence();
    }
    for (int i = static_cast<int>(threadIdx.x); i < kTileColumnBytes / static_cast<int>(sizeof(uint4));
         i += kStreamThreads<Plan>) {
      tail.zeros[i] = make_uint4(0, 0, 0, 0);
    }
    fence_shared_for_copies();
    __syncthreads();
    return true;
  }
};

// A head of a tensor whose tiles go to shared memory.
struct StreamSource {
  const CUtensorMap& map;
  const ConstTensor& tensor;
  int batch, head;
};

// Whether the copy engine may move a tile of which `rows` rows belong to the sequence: behind a tensor's end it brings
// zeros and writes nothing, but behind a document's end are rows of the next.
template <bool kPacked>
__device__ __forceinline__ bool is_whole_tile(int rows) {
  return !kPacked || rows >= kTileRows;
}

// Begins to copy 64 rows of a tensor.
template <int kHeadDim>
__device__ __forceinline__ void copy_rows(std::uint32_t destination, const StreamSource& source, std::uint32_t barrier,
                                          int row) {
#pragma unroll
  for (int half = 0; half < kHeadDim / 64; ++half) {
    copy_tile(destination + half * kTileColumnBytes, source.map, barrier, half * 64, row, source.head, source.batch);
  }
}

// The same of a tile that is not whole, by a whole warp.
template <int kHeadDim>
__device__ __forceinline__ void copy_last_rows(std::uint32_t destination, const StreamSource& source, int row,
                                               int rows) {
  const std::int64_t start = portable::row_offset(source.tensor, source.batch, source.head, rows > 0 ? row : 0);
  copy_document_rows<kHeadDim>(destination, static_cast<const std::uint16_t*>(source.tensor.data) + start,
                               source.tensor.row_stride, rows);
}

// Begins to write zeros to the rows `row` .. `row` + 127 of a gradient that belong to the sequence, `rows` of them or
// more than 127. `row` counts inside the tensor.
template <class Plan, bool kPacked>
__device__ __forceinline__ void store_zeros(const StreamMemory<Plan>& memory, const Tensor& gradient,
                                            const CUtensorMap& map, int row, int rows, int head, std::int64_t batch) {
  const std::uint32_t zeros = shared_address(memory.tail.zeros);
#pragma unroll 1
  for (int end = row + min(rows, 2 * kTileRows); row < end; row += kTileRows) {
    if (is_whole_tile<kPacked>(end - row)) {
#pragma unroll
      for (int half = 0; half < Plan::kHeadDim / 64; ++half) {
        store_tile(zeros, map, half * 64, row, head, static_cast<int>(batch));
      }
      continue;
    }
#pragma unroll 1
    for (int last = row; last < end; ++last) {
      store_bytes(static_cast<std::uint16_t*>(gradient.data) + portable::row_offset(gradient, batch, head, last), zeros,
                  Plan::kHeadDim * 2);
    }
  }
}

// Calls store(block) for this thread's share of the empty blocks. By all producer warps.
template <class Store>
__device__ __forceinline__ void for_empty_blocks(const portable::TaskList& list, Store store) {
  const std::uint32_t blocks = __ldcg(&list.counters->block_tasks[0]);
  const std::uint32_t first = (threadIdx.x % (32 * kProducerWarps)) * gridDim.x + blockIdx.x;
  for (std::uint32_t i = first; i < blocks; i += 32 * kProducerWarps * gridDim.x) store(list.tasks[i]);
}

// The producers' side of the two rings: four warps, each of which fills every fourth stage, because the factors of a
// tile take longer to fetch than a tile takes to use. Every function is called by all lanes of all four warps.
template <class Plan, bool kPacked>
struct StreamProducer {
  static constexpr int kHeadDim = Plan::kHeadDim;
  static_assert(Plan::kStages % kProducerWarps == 0);
  const StreamMemory<Plan>& memory;
  SlotRing<Plan::kStages> stages{1};
  SlotRing<Plan::kResidents> residents{1};
  int task = 0;
  std::uint32_t claimed = 0;  // of the leader

  __device__ __forceinline__ static int warp() { return static_cast<int>(threadIdx.x >> 5) % kProducerWarps; }
  __device__ __forceinline__ static bool leads() { return threadIdx.x % 32 == 0; }

  __device__ __forceinline__ explicit StreamProducer(const StreamMemory<Plan>& memory) : memory(memory) {}
  __device__ __forceinline__ StreamProducer(const StreamMemory<Plan>& memory, const portable::TaskList& list)
      : memory(memory) {
    if (warp() == 0 && leads()) claimed = atomicAdd(&list.counters->claims, 1u);
  }

  // The next task, heaviest bucket first; false when there is none. The claim after it is under way when this returns.
  __device__ __forceinline__ bool next_task(const portable::TaskList& list, portable::BackwardTask& next) {
    auto& claim = memory.tail.claim[task++ & 1];
    if (warp() == 0 && leads()) {
      const std::uint32_t(&ends)[portable::kTaskBuckets] = memory.tail.bucket_end;
      claim.valid = claimed < ends[0];
      if (claim.valid) {
        int bucket = portable::kTaskBuckets - 1;
        while (claimed >= ends[bucket]) --bucket;
        const std::uint32_t begin = bucket == portable::kTaskBuckets - 1 ? 0u : ends[bucket + 1];
        claim.task = list.tasks[bucket * list.capacity + claimed - begin];
        claimed = atomicAdd(&list.counters->claims, 1u);
      }
    }
    named_barrier_sync(3, 32 * kProducerWarps);
    next = claim.task;
    return claim.valid;
  }

  // Hands the consumers a part with its resident rows, 128 of each of two tensors, in which the sequence begins at
  // `first_row`; `row_of(n)` tells of the n-th.
  template <class RowOf>
  __device__ __forceinline__ void begin_part(const StreamPart& part, const StreamSource& first,
                                             const StreamSource& second, int first_row, RowOf row_of) {
    const int slot = residents.slot;
    const std::uint32_t phase = residents.phase;
    residents.advance();
    if (warp() != 0) return;
    const int lane = static_cast<int>(threadIdx.x & 31);
    ResidentRow rows[2 * kTileRows / 32];
#pragma unroll
    for (int n = 0; n < 2 * kTileRows / 32; ++n) rows[n] = row_of(part.block * 2 * kTileRows + lane + 32 * n);
    const std::uint32_t full = shared_address(&memory.tail.resident_full[slot]);
    barrier_wait(shared_address(&memory.tail.resident_empty[slot]), phase);
#pragma unroll
    for (int n = 0; n < 2 * kTileRows / 32; ++n) memory.tail.resident[slot][lane + 32 * n] = rows[n];
    const int row = 2 * part.block * kTileRows;
    const int whole = is_whole_tile<kPacked>(part.rows - row) + is_whole_tile<kPacked>(part.rows - row - kTileRows);
    if (whole < 2) {
#pragma unroll 1
      for (int tile = whole; tile < 2; ++tile) {
        const int first_of_tile = row + tile * kTileRows;
        copy_last_rows<kHeadDim>(memory.resident(slot, 0, tile), first, first_row + first_of_tile,
                                 part.rows - first_of_tile);
        copy_last_rows<kHeadDim>(memory.resident(slot, 1, tile), second, first_row + first_of_tile,
                                 part.rows - first_of_tile);
      }
      finish_document_rows();
    }
    __syncwarp();
    if (!leads()) return;
    memory.tail.part[slot] = part;
    barrier_arrive_expect(full, whole * 2 * Plan::kTileBytes);
#pragma unroll(kPacked ? 1 : 2)
    for (int tile = 0; tile < whole; ++tile) {
      copy_rows<kHeadDim>(memory.resident(slot, 0, tile), first, full, first_row + row + tile * kTileRows);
      copy_rows<kHeadDim>(memory.resident(slot, 1, tile), second, full, first_row + row + tile * kTileRows);
    }
  }

  __device__ __forceinline__ void end_parts() {
    if (warp() != 0 || !leads()) return;
    barrier_wait(shared_address(&memory.tail.resident_empty[residents.slot]), residents.phase);
    memory.tail.part[residents.slot].block = -1;
    barrier_arrive(shared_address(&memory.tail.resident_full[residents.slot]));
  }

  // Whether the next tile is another warp's; then it is passed over.
  __device__ __forceinline__ bool passes_over() {
    if (stages.slot % kProducerWarps == warp()) return false;
    stages.advance();
    return true;
  }

  // Waits for the stage to be free and returns its number; the caller writes the factors of its rows, then calls
  // stream().
  __device__ __forceinline__ int free_stage() {
    barrier_wait(shared_address(&memory.tail.empty[stages.slot]), stages.phase);
    return stages.slot;
  }

  // The tile begins at `row` of the two tensors; `rows` of its rows, or more, belong to the sequence.
  __device__ __forceinline__ void stream(const StreamTile& tile, const StreamSource& first, const StreamSource& second,
                                         int row, int rows) {
    const int slot = stages.slot;
    stages.advance();
    const bool whole = is_whole_tile<kPacked>(rows);
    if (!whole) {
      copy_last_rows<kHeadDim>(memory.stage(slot, 0), first, row, rows);
      copy_last_rows<kHeadDim>(memory.stage(slot, 1), second, row, rows);
      finish_document_rows();
    }
    __syncwarp();
    if (!leads()) return;
    const std::uint32_t full = shared_address(&memory.tail.full[slot]);
    memory.tail.tile[slot] = tile;
    if (!whole) {
      barrier_arrive(full);
      return;
    }
    barrier_arrive_expect(full, Plan::kStageBytes);
    copy_rows<kHeadDim>(memory.stage(slot, 0), first, full, row);
    copy_rows<kHeadDim>(memory.stage(slot, 1), second, full, row);
  }

  __device__ __forceinline__ void end_part() {
    if (passes_over()) return;
    const int slot = free_stage();
    stages.advance();
    if (!leads()) return;
    memory.tail.tile[slot].first = -1;
    barrier_arrive(shared_address(&memory.tail.full[slot]));
  }
};

// `x` by way of a shuffle, so that ptxas keeps it in a register: what it can compute from threadIdx it computes anew in
// every turn of a loop, and reading threadIdx takes as long as a load.
__device__ __forceinline__ int kept(int x) { return __shfl_sync(0xffffffffu, x, static_cast<int>(threadIdx.x & 31)); }

// A consumer warpgroup's side of the ring of stages.
template <class Plan>
struct StreamConsumer {
  const StreamMemory<Plan>& memory;
  SlotRing<Plan::kStages> stages{0};
  int pending = -1;  // the stage that sums under way read

  // By a shuffle, so that the compiler knows that the warp agrees and keeps descriptors in uniform registers.
  const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x >> 7), 0);

  const int lane = kept(static_cast<int>(threadIdx.x & 31));

  __device__ __forceinline__ void release(int stage) const {
    if (lane == 0) barrier_arrive(shared_address(&memory.tail.empty[stage]));
  }
  __device__ __forceinline__ void release_pending() {
    if (pending >= 0) release(pending);
    pending = -1;
  }
  // The next tile and its stage, and whether it is live for this warpgroup. A dead one is released at once.
  __device__ __forceinline__ StreamTile next_tile(int& stage, bool& live) {
    stage = stages.slot;
    barrier_wait(shared_address(&memory.tail.full[stage]), stages.phase);
    stages.advance();
    const StreamTile tile = memory.tail.tile[stage];
    live = tile.first >= 0 && (tile.live >> warpgroup & 1) != 0;
    if (!live) {
      __syncwarp();  // all lanes have read the tile
      release(stage);
    }
    return tile;
  }
};

}  // namespace tda::cuda::sm90
