// The two kernels around a formula of rows, and their launches.
//
// Plan. A row of scores is read once from memory into shared memory, where all passes over it run (entmax makes about
// ten), and its weights are written over the scores: one trip each way. Rows of up to 2048 keys go one to a warp, four
// warps a block, without a barrier; longer ones to a block of eight warps. A row that shared memory cannot hold is
// worked on where it lies. Backward makes two or three passes over scores and d_weights in memory; the second finds
// them in cache. What lies behind the keys that a row sees is never read, only set to 0.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "lm/model/cuda/row_kernels.h"
#include "lm/model/cuda/row_team.cuh"

namespace tda::cuda {

constexpr std::int64_t kMostKeysOfWarp = 2048;
// Every device from sm_80 on gives a block 99 KiB, of which the exchange of a team takes 4.
constexpr std::int64_t kMostStagedBytes = 88 << 10, kStagedBytesWithoutAsking = 44 << 10;

template <int kWarps>
struct RowThreads {
  static constexpr int kOfBlock = kWarps == 1 ? 128 : kWarps * kLanes;
  static constexpr int kRows = kOfBlock / Team<kWarps>::kThreads;
};

// Calls f(row, keys that it sees) for the row of this thread's team, if there is one. Whole teams stay away, and a team
// that meets at barriers is alone in its block.
template <int kWarps, typename F>
__device__ void for_own_row(const RowBlockView& block, F&& f) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * RowThreads<kWarps>::kRows +
                           static_cast<int>(threadIdx.x) / Team<kWarps>::kThreads;
  if (row < block.maps * block.rows) f(row, static_cast<int>(block.keys - block.rows + 1 + row % block.rows));
}

// Whether rows are staged is known to the compiler, or it would not know the memory that each pass reads.
template <typename Row, int kWarps, bool kStaged>
__global__ void __launch_bounds__(RowThreads<kWarps>::kOfBlock)
    row_weights_kernel(const __grid_constant__ Row row, const __grid_constant__ RowBlockView block) {
  extern __shared__ float staged_rows[];
  __shared__ Pair exchange[Team<kWarps>::kExchange];
  for_own_row<kWarps>(block, [&](std::int64_t index, int visible) {
    Team<kWarps> team(visible, exchange);
    float* const weights = block.scores + index * block.keys;
    float* const statistics = block.statistics + index * Row::kStatistics;
    if constexpr (kStaged) {
      float* const scores = staged_rows + index % RowThreads<kWarps>::kRows * block.keys;
      team.for_each([&](int j) { scores[j] = weights[j]; });
      row.weights(team, scores, weights, statistics);
    } else {
      row.weights(team, weights, weights, statistics);
    }
    for (std::int64_t j = visible + team.thread(); j < block.keys; j += team.kThreads) weights[j] = 0;
  });
}

template <typename Row, int kWarps>
__global__ void __launch_bounds__(RowThreads<kWarps>::kOfBlock)
    row_gradients_kernel(const __grid_constant__ Row row, const __grid_constant__ RowBlockView block) {
  __shared__ Pair exchange[Team<kWarps>::kExchange];
  for_own_row<kWarps>(block, [&](std::int64_t index, int visible) {
    Team<kWarps> team(visible, exchange);
    float* const scores = block.scores + index * block.keys;
    float* const d_weights = block.d_weights + index * block.keys;
    row.gradients(team, block.statistics + index * Row::kStatistics, scores, d_weights);
    for (std::int64_t j = visible + team.thread(); j < block.keys; j += team.kThreads) scores[j] = d_weights[j] = 0;
  });
}

template <int kWarps>
unsigned blocks_of(const RowBlockView& block) {
  constexpr std::int64_t kRows = RowThreads<kWarps>::kRows;
  return static_cast<unsigned>((block.maps * block.rows + kRows - 1) / kRows);
}

template <typename Row, int kWarps>
cudaError_t launch_staged_weights(const Row& row, const RowBlockView& block, std::int64_t bytes, cudaStream_t stream) {
  const auto kernel = row_weights_kernel<Row, kWarps, true>;
  if (bytes > kStagedBytesWithoutAsking) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kMostStagedBytes));
    if (error != cudaSuccess) return error;
  }
  kernel<<<blocks_of<kWarps>(block), RowThreads<kWarps>::kOfBlock, bytes, stream>>>(row, block);
  return cudaGetLastError();
}

template <typename Row>
cudaError_t launch_weights_in_place(const Row& row, const RowBlockView& block, cudaStream_t stream) {
  constexpr int kWarps = kSumParts;
  row_weights_kernel<Row, kWarps, false>
      <<<blocks_of<kWarps>(block), RowThreads<kWarps>::kOfBlock, 0, stream>>>(row, block);
  return cudaGetLastError();
}

template <typename Row>
cudaError_t launch_weights(const Row& row, const RowBlockView& block, cudaStream_t stream) {
  const std::int64_t bytes = block.keys * static_cast<std::int64_t>(sizeof(float));  // of a row
  if (block.keys <= kMostKeysOfWarp) {
    return launch_staged_weights<Row, 1>(row, block, RowThreads<1>::kRows * bytes, stream);
  }
  if (bytes <= kMostStagedBytes) return launch_staged_weights<Row, kSumParts>(row, block, bytes, stream);
  return launch_weights_in_place(row, block, stream);
}

template <typename Row, int kWarps>
cudaError_t launch_gradients(const Row& row, const RowBlockView& block, cudaStream_t stream) {
  row_gradients_kernel<Row, kWarps><<<blocks_of<kWarps>(block), RowThreads<kWarps>::kOfBlock, 0, stream>>>(row, block);
  return cudaGetLastError();
}

template <typename Row>
cudaError_t launch_weights_of_any_length(const Row& row, const RowBlockView& block, cudaStream_t stream) {
  return row.with_formula([&](const auto& formula) { return launch_weights(formula, block, stream); });
}

template <typename Row>
cudaError_t launch_gradients_of_any_length(const Row& row, const RowBlockView& block, cudaStream_t stream) {
  return row.with_formula([&](const auto& formula) {
    using Formula = std::decay_t<decltype(formula)>;
    return block.keys <= kMostKeysOfWarp ? launch_gradients<Formula, 1>(formula, block, stream)
                                         : launch_gradients<Formula, kSumParts>(formula, block, stream);
  });
}

}  // namespace tda::cuda
