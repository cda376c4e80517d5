// Launches of the sm90 forward for one element type and head size, for packed documents or without. Each is
// instantiated in a file of its own (forward_<type>_<head size>.cu, packed_<type>_<head size>.cu), which is the whole
// list of instances.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "attention/cuda/sm90/forward/arguments.h"

namespace tda::cuda::sm90 {

// Enqueues the chain of kernels; `processors` is the device's number of multiprocessors.
template <typename Element, int kHeadDim, bool kPacked>
Status launch_forward(const ForwardArguments& arguments, int processors, cudaStream_t stream);

// Clears the counters and slots, and reads the documents' offsets: the beginning of the chain for packed documents.
Status launch_plan_documents(const ForwardArguments& arguments, cudaStream_t stream);

extern template Status launch_forward<__nv_bfloat16, 64, false>(const ForwardArguments&, int, cudaStream_t);
extern template Status launch_forward<__nv_bfloat16, 128, false>(const ForwardArguments&, int, cudaStream_t);
extern template Status launch_forward<__half, 64, false>(const ForwardArguments&, int, cudaStream_t);
extern template Status launch_forward<__half, 128, false>(const ForwardArguments&, int, cudaStream_t);
extern template Status launch_forward<__nv_bfloat16, 64, true>(const ForwardArguments&, int, cudaStream_t);
extern template Status launch_forward<__nv_bfloat16, 128, true>(const ForwardArguments&, int, cudaStream_t);
extern template Status launch_forward<__half, 64, true>(const ForwardArguments&, int, cudaStream_t);
extern template Status launch_forward<__half, 128, true>(const ForwardArguments&, int, cudaStream_t);

}  // namespace tda::cuda::sm90
