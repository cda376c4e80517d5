// The screen's shared memory, and what it knows of a job.
#pragma once

#include "attention/cuda/sm90/forward/row_block_jobs.cuh"
#include "attention/cuda/sm90/forward/row_formulas.cuh"
#include "attention/cuda/sm90/forward/screen/choice.cuh"
#include "attention/cuda/sm90/forward/sequence.cuh"

namespace tda::cuda::sm90 {

constexpr int kZeroBytes = kZeroRows * 128;

template <int kHeadDim>
struct ScreenPlan {
  static constexpr int kWarpgroups = 4;
  static constexpr int kThreads = (kWarpgroups + 1) * 128;
  static constexpr int kQuerySlots = 2;
  static constexpr int kKeySlots = kHeadDim == 64 ? 8 : 3;
  static constexpr int kQueryBytes = kScreenRows * kHeadDim * 2;
  static constexpr int kKeyBytes = kScreenKeys * kHeadDim;
  static constexpr int kTailBytes = 1024;
  static constexpr int kSharedBytes =
      1024 + kQuerySlots * kQueryBytes + kKeySlots * kKeyBytes + kTailBytes + kZeroBytes;
  static_assert(kSharedBytes <= 227 * 1024);  // all that a block may have
};

// What the producer knows of a job, so that consumers do not wait for memory between two.
struct KnownJob {
  RowBlockJob job;
  bool unscreened;  // block_is_dense
  float beta;
};

struct ScreenTail {     // behind the tiles in shared memory
  KeyTile key_tile[8];  // of the key slots
  std::uint64_t query_full[2], query_empty[2];
  std::uint64_t key_full[8], key_empty[8];
  std::uint64_t finished[4], dispatched[4];  // of the last jobs, by turn mod 4
  KnownJob job[2];                           // of the query slots
  RowBlockJob finished_job[4];
  std::uint32_t vote[16];  // per consumer warp: of the first 1024 keys, flags << 16 and listed candidates
  int candidates[4][16];   // candidate strips per consumer warp, or kDenseVote, kUnscreened
  int listed[4][16];       // candidate keys per consumer warp (view 2 in the upper half), or kNotListed
};
static_assert(sizeof(ScreenTail) <= ScreenPlan<64>::kTailBytes);

constexpr int kDenseVote = -1;         // screening stopped: all flags are set
constexpr int kUnscreened = -2;        // no flags were written
constexpr int kNotListed = -1;         // more candidate keys than a list holds
constexpr int kKeysPerStripBlock = 4;  // up to here a list costs less than blocks
constexpr int kDispatchWarps = 3;
constexpr int kDenseBlocks = 12;  // of a row tile's first 16: from here the dense kernel is quicker

// Key tiles that rows up to `last_row` see.
template <bool kPacked>
__device__ __forceinline__ int visible_key_tiles(const Sequence<kPacked>& s, int last_row) {
  return (s.offset() + min(last_row, s.query_length() - 1)) / kScreenKeys + 1;
}

template <int kHeadDim, bool kPacked>
__device__ __forceinline__ bool block_is_dense(const ForwardArguments& a, const RowBlock<kPacked>& rows, float beta) {
  const Sequence<kPacked>& s = rows.sequence;
  const int last_position = s.offset() + min((rows.block + 1) * kScreenRows, s.query_length()) - 1;
  return !is_screened_head(a, rows.head) || !(threshold_at<kHeadDim>(beta, last_position, a.kappa) > 0.0f);
}

}  // namespace tda::cuda::sm90
