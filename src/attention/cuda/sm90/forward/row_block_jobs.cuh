// Jobs of 256 query rows of one head, for the screen, or for the dense kernel where nothing is screened.
#pragma once

#include "attention/cuda/sm90/forward/sequence.cuh"

namespace tda::cuda::sm90 {

struct RowBlockJob {
  int head_of_all;  // batch, query head; -1 ends the kernel
  int slot;         // of 256 rows
};

// Jobs of a wave of heads interleave, last (longest) row blocks first. Jobs of documents name their slot.
template <bool kPacked>
__device__ __forceinline__ RowBlockJob row_block_job(const ForwardArguments& a, int job) {
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
class RowBlockJobs {
 public:
  __device__ __forceinline__ explicit RowBlockJobs(const ForwardArguments& a) {
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

}  // namespace tda::cuda::sm90
