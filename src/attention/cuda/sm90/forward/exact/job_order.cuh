// Jobs in the order of claims: from the heaviest bucket down. Every lane of a warp holds one bucket's part.
#pragma once

#include "attention/cuda/sm90/forward/arguments.h"

namespace tda::cuda::sm90 {

struct JobOrder {
  int end;    // of this lane's bucket (lane 0: heaviest)
  int count;  // jobs in this lane's bucket
};

// A claimed job: the bucket counted from the heaviest, and the place in it.
struct JobPlace {
  int bucket, place;
};

template <int kCount>
__device__ __forceinline__ JobOrder job_order(const int (&jobs)[kCount]) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  const int count = lane < kCount ? jobs[kCount - 1 - lane] : 0;
  int end = count;
#pragma unroll
  for (int offset = 1; offset < 32; offset <<= 1) {
    const int before = __shfl_up_sync(0xffffffffu, end, offset);
    if (lane >= offset) end += before;
  }
  return {end, count};
}

__device__ __forceinline__ int number_of_jobs(const JobOrder& order) { return __shfl_sync(0xffffffffu, order.end, 31); }

// Of the job `claimed`, below number_of_jobs().
__device__ __forceinline__ JobPlace job_place(const JobOrder& order, int claimed) {
  const int bucket = __ffs(static_cast<int>(__ballot_sync(0xffffffffu, claimed < order.end))) - 1;
  return {bucket, claimed - __shfl_sync(0xffffffffu, order.end - order.count, bucket)};
}

}  // namespace tda::cuda::sm90
