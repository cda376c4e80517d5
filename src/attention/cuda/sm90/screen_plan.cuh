// The screen's shared memory, and its jobs: which rows a block screens, in which order.
#pragma once

#include "attention/cuda/sm90/row_formulas.cuh"
#include "attention/cuda/sm90/screening_choice.cuh"

namespace tda::cuda::sm90 {

template <int kHeadDim>
struct ScreenPlan {
  static constexpr int kWarpgroups = 4;
  static constexpr int kThreads = (kWarpgroups + 1) * 128;
  static constexpr int kQuerySlots = 2;
  static constexpr int kKeySlots = kHeadDim == 64 ? 8 : 3;
  static constexpr int kQueryBytes = kScreenRows * kHeadDim * 2;
  static constexpr int kKeyBytes = kScreenKeys * kHeadDim;
  static constexpr int kTailBytes = 1024;
  static constexpr int kSharedBytes = 1024 + kQuerySlots * kQueryBytes + kKeySlots * kKeyBytes + kTailBytes;
};

struct ScreenTail {     // behind the tiles in shared memory
  KeyTile key_tile[8];  // of the key slots
  std::uint64_t query_full[2], query_empty[2];
  std::uint64_t key_full[8], key_empty[8];
  std::uint64_t finished[4], dispatched[4];  // of the last jobs, by turn mod 4
  int job[2];                                // of the query slots; -1 ends the kernel
  int finished_job[4];
  std::uint32_t vote[16];  // per consumer warp: of the first 1024 keys, flags << 16 and listed candidates
  int candidates[4][16];   // candidate strips per consumer warp, or kDenseVote, kUnscreened
  int listed[4][16];       // candidate keys per consumer warp (view 2 in the upper half), or kNotListed
};
static_assert(sizeof(ScreenTail) <= 1024);

constexpr int kDenseVote = -1;         // screening stopped: all flags are set
constexpr int kUnscreened = -2;        // no flags were written
constexpr int kNotListed = -1;         // more candidate keys than a list holds
constexpr int kKeysPerStripBlock = 4;  // up to here a list costs less than blocks
constexpr int kDispatchThreads = 96;
constexpr int kDenseBlocks = 12;  // of a row tile's first 16: from here the dense kernel is quicker

struct ScreenJob {
  int head_of_all;  // batch, query head
  int block;        // of 256 rows
};

// Jobs of a wave of heads interleave, last (longest) row blocks first.
__device__ __forceinline__ ScreenJob screen_job(const ForwardArguments& a, int job) {
  const int heads = a.batch * a.query_heads;
  const int wave_jobs = a.heads_per_wave * a.row_blocks;
  const int wave = job / wave_jobs;
  const int inside = job % wave_jobs;
  const int wave_heads = min(a.heads_per_wave, heads - wave * a.heads_per_wave);
  return {wave * a.heads_per_wave + inside % wave_heads, a.row_blocks - 1 - inside / wave_heads};
}

// Key tiles that rows up to `last_row` see.
__device__ __forceinline__ int visible_key_tiles(const ForwardArguments& a, int last_row) {
  return (a.position_offset + min(last_row, a.query_length - 1)) / kScreenKeys + 1;
}

template <int kHeadDim>
__device__ __forceinline__ bool block_is_dense(const ForwardArguments& a, int head, int block) {
  const int last_position = a.position_offset + min((block + 1) * kScreenRows, a.query_length) - 1;
  return !is_screened_head(a, head) || !(threshold_at<kHeadDim>(a.beta[head], last_position, a.kappa) > 0.0f);
}

}  // namespace tda::cuda::sm90
