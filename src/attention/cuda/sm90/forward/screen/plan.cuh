// The screen's shared memory, and its jobs: which rows a block screens, in which order.
#pragma once

#include "attention/cuda/sm90/forward/row_formulas.cuh"
#include "attention/cuda/sm90/forward/screen/choice.cuh"
#include "attention/cuda/sm90/forward/sequence.cuh"

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

struct ScreenJob {
  int head_of_all;  // batch, query head; -1 ends the kernel
  int slot;         // of 256 rows
};

// What the producer knows of a job, so that consumers do not wait for memory between two.
struct KnownJob {
  ScreenJob job;
  bool unscreened;  // block_is_dense
  float beta;
};

struct ScreenTail {     // behind the tiles in shared memory
  KeyTile key_tile[8];  // of the key slots
  std::uint64_t query_full[2], query_empty[2];
  std::uint64_t key_full[8], key_empty[8];
  std::uint64_t finished[4], dispatched[4];  // of the last jobs, by turn mod 4
  KnownJob job[2];                           // of the query slots
  ScreenJob finished_job[4];
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

// Jobs of a wave of heads interleave, last (longest) row blocks first. Jobs of documents name their slot.
template <bool kPacked>
__device__ __forceinline__ ScreenJob screen_job(const ForwardArguments& a, int job) {
  if (kPacked) return {job / a.row_blocks, job % a.row_blocks};
  const int heads = a.batch * a.query_heads;
  const int wave_jobs = a.heads_per_wave * a.row_blocks;
  const int wave = job / wave_jobs;
  const int inside = job % wave_jobs;
  const int wave_heads = min(a.heads_per_wave, heads - wave * a.heads_per_wave);
  return {wave * a.heads_per_wave + inside % wave_heads, a.row_blocks - 1 - inside / wave_heads};
}

// The jobs in the order of claims, by one thread: those of documents by buckets, heaviest first.
template <bool kPacked>
class ScreenJobs {
 public:
  __device__ __forceinline__ explicit ScreenJobs(const ForwardArguments& a) {
    if constexpr (kPacked) {
      for (const int& blocks : a.counters->row_blocks) count_ += __ldcg(&blocks) * a.query_heads;
    } else {
      count_ = a.batch * a.query_heads * a.row_blocks;
    }
  }
  __device__ __forceinline__ int count() const { return count_; }

  // The job of a claim below count(); claims never decrease.
  __device__ __forceinline__ int job_of(const ForwardArguments& a, int claimed) {
    if constexpr (kPacked) {
      while (claimed >= end_) {
        begin_ = end_;
        end_ += __ldcg(&a.counters->row_blocks[--bucket_]) * a.query_heads;
      }
      const int inside = claimed - begin_;
      const int slot = a.block_list[static_cast<std::int64_t>(bucket_) * a.row_blocks + inside / a.query_heads];
      return inside % a.query_heads * a.row_blocks + slot;
    } else {
      return claimed;
    }
  }

 private:
  int count_ = 0;
  int bucket_ = kBlockBuckets, begin_ = 0, end_ = 0;  // claims of the bucket
};

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
