// What the 16-bit backward prepares on the device before its main kernel: where the work is, heaviest first.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "attention/cuda/common/survivor_index.h"

namespace tda::cuda::portable {

struct Problem;
struct BackwardArguments;

// A row task is 64 query rows of one view and query head (dq), a column task 16 keys of one key head (dk of every view
// and dv). Tasks without a survivor are not listed: the plan has written their zeros, except in listed heads
// (PairPlan), whose kernels write them. Dense kernels take tasks of 128 rows or keys, and all of them.
struct BackwardTask {
  std::uint32_t sequence, head, tile;  // row tile, or slice of 16 keys
  std::uint32_t view;                  // of a row task
};
constexpr int kTaskBuckets = 8;      // by the logarithm of the number of live slices
constexpr int kWarpTaskSlices = 16;  // columns with fewer live slices are done by one warp each

// Tasks of one kernel: those for a whole block, and those for one warp.
struct TaskCounters {
  std::uint32_t block_tasks[kTaskBuckets], warp_tasks[kTaskBuckets], claims;
};

struct BackwardCounters {
  TaskCounters rows, columns, dense_rows, dense_columns, empty_rows, empty_columns;
};

struct TaskList {
  BackwardTask* tasks;     // (kTaskBuckets, capacity): block tasks from the front, warp tasks from the back
  std::int64_t capacity;   // of one bucket
  TaskCounters* counters;  // 0 before the plan
};

// What a row tells its key about a pair: where it is, its signed weight in the output, and its share of the gradient
// with respect to the unit key, divided by |q|.
struct alignas(16) PairRecord {
  std::uint32_t entry;  // (view * group + query head of the group) << row_bits | row, perhaps with kExtremeRow
  float weight, gradient;
  std::uint32_t unused;
};
// 1/|q| would take `gradient` out of fp32's comfort: it is not in it, but in the query factors.
constexpr std::uint32_t kExtremeRow = 0x80000000u;
// Room for records in the workspace. Rows may have more pairs, not a head on average.
constexpr std::int64_t kRecordsPerRow = 8;

// Heads whose survivors are all in the forward's lists (common/survivor_index.h) are done pair by pair. A key head is
// listed if all its query heads are, in all views, and their pairs together fit the room for records.
struct PairPlan {
  // Of the forward; null: there are no lists, or rows cannot be read and written 16 bytes at a time.
  const std::uint32_t* totals;
  const std::uint32_t* lists;
  std::uint8_t* live;  // (views, query heads, row tiles of all sequences): a row tile of a listed head has a survivor
  std::uint32_t* key_count;  // (key heads, batch, key_length): pairs of a key; 0 before the plan
  // The same shape: where a key's next record goes, counted within its (key head, batch); at last behind its run.
  std::uint32_t* key_end;
  PairRecord* records;  // (key heads, batch, records_per_head)
  std::int64_t records_per_head;
  std::uint32_t* used;  // (key heads, batch): records given to runs; 0 before the plan
  // (key heads, batch) of two words: the factor of a key, of a row, is_extreme; 0 before the plan.
  std::uint32_t* extreme;
  std::uint32_t* long_count;  // keys with more than kLongRun pairs; 0 before the plan
  std::int64_t* long_keys;    // (key head * batch size + batch) * key_length + key
  int row_bits;
};
constexpr std::uint32_t kLongRun = 256;

// Heads of fewer rows are not fused: up to 4,096 it takes as long as the two kernels.
constexpr std::int64_t kFusedLength = 8192;
// Tasks of the heads that take turns, about: some for each multiprocessor, because all of a head depend on each other.
constexpr std::int64_t kFusedTasks = 4 * 132;

struct FusedCounters {
  std::uint32_t listed, claims;
};

// Heads nearly all of whose tiles hold a survivor: one kernel of the dense family computes all their gradients, and the
// others leave them out. Null pointers: there are none.
struct FusedHeads {
  FusedCounters* counters;  // all of these are 0 before the plan:
  std::uint32_t* counted;   // (batch, key heads) of two: tiles of 64 rows x 128 keys, words of the index counted
  std::uint32_t* finished;  // of the n-th listed head, of two: warpgroups done, whether a value was unfit
  std::uint32_t* turns;     // (slots, views, heads of a group, row pairs, 4): additions to dq by each warp
  std::uint8_t* chosen;     // (batch, key heads)
  std::uint32_t* heads;     // batch * key heads + key head, in the order of claims
  float* sums;              // (slots, views, heads of a group, row pairs, 128 * 64): dq of heads under way
  int slots;                // heads whose sums exist at a time
  int interleaved;          // heads that take turns in claims, half of the slots at most
};

struct BackwardPlan {
  // The survivor index read down its columns: for (view, query head) and each slice of 16 keys, a bit per row tile.
  std::uint32_t* columns;
  std::int64_t column_slices;    // of all sequences
  std::int64_t words_per_slice;  // of 32 row tiles
  float* position_scale;         // c_n of every position (tda/attention.h)
  SavedFactors saved;            // of the forward, read only; null pointers: there are none
  TaskList row_tasks, column_tasks;
  // With dense kernels of another family these lists are theirs: blocks of 128 query rows, or of 128 keys, with and
  // without a survivor. row_tasks and column_tasks then hold what those kernels hand back.
  bool dense;
  TaskList dense_row_tasks, dense_column_tasks;
  TaskList empty_row_blocks, empty_column_blocks;  // all block tasks of the lowest bucket, the only one with room
  PairPlan pairs;
  FusedHeads fused;

  // Slices of the sequences before `sequence`; with packed documents an upper bound that needs no prefix sum.
  TDA_HOST_DEVICE static std::int64_t first_slice(bool packed, std::int64_t sequence, std::int64_t first_key,
                                                  std::int64_t key_length) {
    return packed ? first_key / 16 + sequence : sequence * ((key_length + 15) / 16);
  }
  TDA_HOST_DEVICE std::int64_t column_offset(std::int64_t view_and_head, std::int64_t slice) const {
    return (view_and_head * column_slices + slice) * words_per_slice;
  }
};

// Kernels that work off the dense tasks and write zeros to the empty blocks. They may hand tasks back.
using DenseBackward = Status (*)(const Problem& problem, const BackwardArguments& arguments, const BackwardPlan& plan,
                                 CudaStream stream);

// Fills the plan and the factors of all rows that tasks will read (query_scale, key_scale), and writes the gradients of
// rows and keys without a survivor: zeros.
cudaError_t launch_backward_plan(const Problem& problem, const BackwardArguments& arguments, const BackwardPlan& plan,
                                 cudaStream_t stream);

// Work row_tasks and column_tasks off, in this order: dq and the row tiles' shares of dbeta and dlambda; dk and dv.
cudaError_t launch_backward_query_half(const Problem& problem, const BackwardArguments& arguments,
                                       const BackwardPlan& plan, cudaStream_t stream);
cudaError_t launch_backward_key_value_half(const Problem& problem, const BackwardArguments& arguments,
                                           const BackwardPlan& plan, cudaStream_t stream);

}  // namespace tda::cuda::portable
