// What the 16-bit backward prepares on the device before its main kernel: where the work is, heaviest first.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "attention/cuda/common/survivor_index.h"

namespace tda::cuda::portable {

struct Problem;
struct BackwardArguments;

// A row task is 64 query rows of one view and query head (dq), a column task 16 keys of one key head (dk of every view
// and dv). Tasks without a survivor are not listed: the plan has written their zeros, except beside a survivor in a
// dense task and in listed heads (PairPlan), whose kernels write them.
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
  TaskCounters rows, columns, dense_rows, dense_columns;
};

struct TaskList {
  BackwardTask* tasks;     // (kTaskBuckets, capacity): block tasks from the front, warp tasks from the back
  std::int64_t capacity;   // of one bucket
  TaskCounters* counters;  // 0 before the plan
};

// When two row tiles (128 keys) are one task of the dense kernels: they meet at least `least_tiles` tiles of 64 keys
// (64 rows) in which one of their slices is live, and on average `slices_per_tile` of the eight are.
struct DenseRule {
  int least_tiles, slices_per_tile;
  TDA_HOST_DEVICE bool takes(int tiles, int live_slices) const {
    return tiles >= least_tiles && live_slices >= slices_per_tile * tiles;
  }
};

// Heads whose survivors are all in the forward's lists (common/survivor_index.h) are done pair by pair. A key head is
// listed if all its query heads are, in all views.
struct PairPlan {
  const std::uint32_t*
      totals;  // of the forward; null: there are no lists, or rows cannot be read and written 16 bytes at a time
  const std::uint32_t* lists;
  std::uint8_t* live;  // (views, query heads, row tiles of all sequences): a row tile of a listed head has a survivor
  std::uint32_t* key_count;  // (key heads, batch, key_length): pairs of a key; 0 before the plan
  std::uint32_t* key_end;    // behind a key's last entry, counted within its (key head, batch)
  // (key heads, batch, entries_per_head): (view * group + query head of the group) * query_length + row
  std::uint32_t* entries;
  std::int64_t entries_per_head;
  std::uint32_t* long_count;  // keys with more than kLongRun pairs; 0 before the plan
  std::int64_t* long_keys;    // (key head * batch size + batch) * key_length + key
};
constexpr std::uint32_t kLongRun = 1024;

struct BackwardPlan {
  // The survivor index read down its columns: for (view, query head) and each slice of 16 keys, a bit per row tile.
  std::uint32_t* columns;
  std::int64_t column_slices;    // of all sequences
  std::int64_t words_per_slice;  // of 32 row tiles
  float* position_scale;         // c_n of every position (tda/attention.h)
  TaskList row_tasks, column_tasks;
  // For the dense kernels of another family: tiles count 128 query rows, or 128 keys.
  TaskList dense_row_tasks, dense_column_tasks;
  DenseRule dense_rule;
  PairPlan pairs;

  // Slices of the sequences before `sequence`; with packed documents an upper bound that needs no prefix sum.
  TDA_HOST_DEVICE static std::int64_t first_slice(bool packed, std::int64_t sequence, std::int64_t first_key,
                                                  std::int64_t key_length) {
    return packed ? first_key / 16 + sequence : sequence * ((key_length + 15) / 16);
  }
  TDA_HOST_DEVICE std::int64_t column_offset(std::int64_t view_and_head, std::int64_t slice) const {
    return (view_and_head * column_slices + slice) * words_per_slice;
  }
};

// Kernels that work off the dense tasks by a rule of theirs. They may hand tasks back to the plan's other lists.
struct DenseBackward {
  DenseRule rule;
  Status (*launch)(const Problem& problem, const BackwardArguments& arguments, const BackwardPlan& plan,
                   CudaStream stream);
};

// Fills the plan and the factors of all rows that tasks will read (query_scale, key_scale), and writes the gradients of
// rows and keys without a survivor: zeros.
cudaError_t launch_backward_plan(const Problem& problem, const BackwardArguments& arguments, const BackwardPlan& plan,
                                 cudaStream_t stream);

// Work the tasks off: dq and the row tiles' shares of dbeta and dlambda; dk and dv.
cudaError_t launch_backward_query_half(const Problem& problem, const BackwardArguments& arguments,
                                       const BackwardPlan& plan, cudaStream_t stream);
cudaError_t launch_backward_key_value_half(const Problem& problem, const BackwardArguments& arguments,
                                           const BackwardPlan& plan, cudaStream_t stream);

}  // namespace tda::cuda::portable
