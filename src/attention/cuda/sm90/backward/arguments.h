// What the dense kernels of the sm90 backward are told about a call.
//
// They take the tasks of the portable family's plan (portable/backward_plan.h) in which so many slices are live that
// whole tiles of 64 x 64 scores on warpgroup products are cheaper than single slices: row tasks of 128 query rows
// (query.cuh) and column tasks of 128 keys (key_value.cuh). A task whose operands or results are not finite, or whose
// norms 16-bit products cannot bear, is handed back to the plan's lists, which the portable kernels work off
// afterwards.
#pragma once

#include <cuda.h>

#include "attention/cuda/portable/backward_plan.h"
#include "attention/cuda/portable/kernels.h"
#include "attention/cuda/portable/problem.h"

namespace tda::cuda::sm90 {

struct BackwardArguments {
  CUtensorMap query[2], key[2], value, d_output;  // (D, T, H, B), boxes of 64 elements x 64 rows
  portable::Problem problem;
  portable::BackwardArguments call;
  portable::BackwardPlan plan;
};

// Enqueues both kernels; `processors` is the device's number of multiprocessors. Instantiated in <type>_<head size>.cu.
template <typename Element, int kHeadDim>
Status launch_backward(const BackwardArguments& arguments, int processors, CudaStream stream);

}  // namespace tda::cuda::sm90
