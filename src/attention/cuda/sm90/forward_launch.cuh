// Definition of launch_forward, included by the files that instantiate it.
#pragma once

#include <string>

#include "attention/cuda/sm90/dense.cuh"
#include "attention/cuda/sm90/dense_steps.cuh"
#include "attention/cuda/sm90/forward_launch.h"
#include "attention/cuda/sm90/prepare_keys.cuh"
#include "attention/cuda/sm90/product.cuh"
#include "attention/cuda/sm90/screen.cuh"

namespace tda::cuda::sm90 {

// Launches `kernel`; with `overlapped` its prologue may start before the previous kernel of the stream has ended (it
// waits itself, wait_for_previous_kernel).
inline Status launch_kernel(void (*kernel)(ForwardArguments), const char* name, int blocks, int threads,
                            int shared_bytes, bool overlapped, const ForwardArguments& arguments, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  if (shared_bytes > 48 * 1024) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = overlapped ? 1 : 0;
  if (error == cudaSuccess) error = cudaLaunchKernelEx(&config, kernel, arguments);
  if (error == cudaSuccess) return {};
  return {std::string("attention_cuda_forward: launch of kernel ") + name + " failed: " + cudaGetErrorString(error)};
}

template <typename Element, int kHeadDim, int kViews, bool kSquare>
Status launch_exact(const ForwardArguments& a, int processors, cudaStream_t stream) {
  using Product = ProductPlan<kHeadDim, kViews>;
  if (Status s = launch_kernel(product<Element, kHeadDim, kViews, kSquare>, "product",
                               processors * Product::kBlocksPerProcessor, Product::kThreads, Product::kSharedBytes,
                               true, a, stream);
      !s.ok()) {
    return s;
  }
  if (!a.dense_kernel) return {};
  if constexpr (kViews == 2 || kDenseBySteps<kHeadDim>) {
    using Dense = DenseStepPlan<kHeadDim, kViews>;
    return launch_kernel(dense_steps<Element, kSquare, Dense>, "dense", processors, Dense::kThreads,
                         Dense::kSharedBytes, true, a, stream);
  } else {
    using Dense = DensePlan<kHeadDim>;
    return launch_kernel(dense<Element, kHeadDim, kSquare>, "dense", processors, Dense::kThreads, Dense::kSharedBytes,
                         true, a, stream);
  }
}

template <typename Element, int kHeadDim>
Status launch_forward(const ForwardArguments& a, int processors, cudaStream_t stream) {
  using Screen = ScreenPlan<kHeadDim>;
  const int key_blocks = a.views * a.batch * a.key_heads * a.key_tiles;
  if (Status s = launch_kernel(prepare_keys<Element, kHeadDim>, "prepare_keys", key_blocks, kPrepareThreads, 0, false,
                               a, stream);
      !s.ok()) {
    return s;
  }
  if (Status s = launch_kernel(screen<Element, kHeadDim>, "screen", processors, Screen::kThreads, Screen::kSharedBytes,
                               true, a, stream);
      !s.ok()) {
    return s;
  }
  const bool square = a.power == 2.0f;
  if (a.views == 1) {
    return square ? launch_exact<Element, kHeadDim, 1, true>(a, processors, stream)
                  : launch_exact<Element, kHeadDim, 1, false>(a, processors, stream);
  }
  return square ? launch_exact<Element, kHeadDim, 2, true>(a, processors, stream)
                : launch_exact<Element, kHeadDim, 2, false>(a, processors, stream);
}

}  // namespace tda::cuda::sm90
