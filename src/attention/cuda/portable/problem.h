// What every portable kernel is told about a call.
#pragma once

#include "attention/cuda/common/survivor_index.h"
#include "attention/cuda/portable/dense_tasks.h"
#include "tda/attention_cuda.h"

namespace tda::cuda::portable {

// Passed by value. Flat rows count all rows of a tensor for one head: batch * length + row.
struct Problem {
  AttentionShape shape;
  AttentionInputs inputs;
  DataType type;
  int views;
  float power;
  bool normalize;
  double kappa;
  const std::int32_t* query_offsets;  // null: one sequence per batch element
  const std::int32_t* key_offsets;
  std::int64_t sequences;
  std::int64_t longest_query;  // of one sequence
  std::int64_t longest_key;
  SurvivorIndexLayout index;
  // 1 / max(|x|, 1e-12) of every row, or 1 without normalization; NaN where the row holds a NaN or an Inf.
  // Contiguous (heads, flat rows).
  float* query_scale[2];
  float* key_scale[2];
  // What the factor's rounding to fp32 left of it, for the fp32 kernels: x scale + x scale_low is the element of the
  // unit vector to nearly half a unit in the last place. Null where only 16-bit kernels run.
  float* query_scale_low[2];
  float* key_scale_low[2];
  // For the fp32 screen: unit rows rounded to fp16, contiguous (heads, flat rows, half_pitch), zeros behind head_dim.
  // Null where nothing is screened; then the counters of dense tasks (dense_tasks.h) are null as well. The kernel that
  // computes the factors writes the rows and clears the counters.
  void* half_query[2];
  void* half_key[2];
  std::int64_t half_pitch;
  std::uint32_t* dense_counters;
  double* position_scale;  // c_n of every position, for the screened kernels, or null; written with the factors
  // Whether rows may be read four elements at a time, and sixteen bytes at a time without reaching beyond the row.
  bool vector_q[2], vector_k[2], vector_v, vector_d_output;
  bool wide_q[2], wide_k[2], wide_v, wide_d_output;
  // Set on the device when a row is beyond what the 16-bit kernels handle: its norm is huge or tiny
  // (row_scales.cu). Then those kernels do nothing and the fp32 kernels, which otherwise do nothing, run. Null:
  // the fp32 kernels run.
  unsigned* irregular;
};

constexpr int kDenseCounters = 4;  // of a forward: listed and claimed, for each of two lists

// Blocks of an fp32 kernel with this many tasks; any number does the work. When it only stands by, for irregular inputs
// or for what a screened kernel may leave, they are few, because each costs a launch to find nothing to do.
inline unsigned blocks_for(const Problem& problem, const DenseTasks& dense, std::int64_t tasks) {
  constexpr std::int64_t kStandbyBlocks = 528, kDenseBlocks = 264;
  const std::int64_t most = dense.tasks ? kDenseBlocks : problem.irregular ? kStandbyBlocks : tasks;
  return static_cast<unsigned>(tasks < most ? tasks : most);
}

}  // namespace tda::cuda::portable
