// What the dense kernels of the sm90 backward are told about a call.
//
// Heads that are dense all over go to one kernel for all gradients (fused.cuh), where it is quicker. For the others
// there are two, which take the blocks of 128 query rows (query.cuh) and of 128 keys (key_value.cuh) that the portable
// family's plan lists (portable/backward_plan.h), on warpgroup products of whole tiles of 64 x 64 scores, and write
// zeros to blocks without a survivor. A task whose operands or results are not finite, or whose norms 16-bit products
// cannot bear, is handed back to the plan's other lists, which the portable kernels work off afterwards.
#pragma once

#include <cuda.h>

#include "attention/cuda/portable/backward_plan.h"
#include "attention/cuda/portable/kernels.h"
#include "attention/cuda/portable/problem.h"

namespace tda::cuda::sm90 {

struct BackwardArguments {
  // (D, T, H, B), boxes of 64 elements x 64 rows.
  CUtensorMap query[2], key[2], value, d_output;
  CUtensorMap dq[2], dk[2], dv;  // of the gradients that are wanted
  portable::Problem problem;
  portable::BackwardArguments call;
  portable::BackwardPlan plan;
};

// Enqueues both kernels; `processors` is the device's number of multiprocessors. Instantiated in <type>_<head size>.cu.
template <typename Element, int kHeadDim>
Status launch_backward(const BackwardArguments& arguments, int processors, CudaStream stream);

}  // namespace tda::cuda::sm90
