// Definition of launch_forward, included by the files that instantiate it.
#pragma once

#include <string>

#include "attention/cuda/common/kernel_order.cuh"
#include "attention/cuda/sm90/forward/exact/dense.cuh"
#include "attention/cuda/sm90/forward/exact/listed_product.cuh"
#include "attention/cuda/sm90/forward/exact/product.cuh"
#include "attention/cuda/sm90/forward/launch.h"
#include "attention/cuda/sm90/forward/prepare_keys.cuh"
#include "attention/cuda/sm90/forward/screen/screen.cuh"

namespace tda::cuda::sm90 {

inline Status enqueue(void (*kernel)(ForwardArguments), const char* name, const Launch& launch,
                      const ForwardArguments& arguments, cudaStream_t stream) {
  const cudaError_t error = launch_kernel(kernel, launch, stream, arguments);
  if (error == cudaSuccess) return {};
  return {std::string("attention_cuda_forward: launch of kernel ") + name + " failed: " + cudaGetErrorString(error)};
}

// The dense kernel first: its jobs are the longest, and the product's blocks begin beside its last ones.
template <typename Element, int kHeadDim, int kViews, bool kSquare, bool kPacked>
Status launch_exact(const ForwardArguments& a, int processors, cudaStream_t stream) {
  if (a.dense_kernel) {
    using Dense = DensePlan<kHeadDim, kViews>;
    const Launch launch{static_cast<unsigned>(processors), Dense::kThreads, Dense::kSharedBytes, true};
    if (Status s = enqueue(dense<Element, kSquare, Dense, kPacked>, "dense", launch, a, stream); !s.ok()) return s;
    if (a.all_dense) return {};
  }
  using Product = ProductPlan<kHeadDim, kViews>;
  const Launch launch{static_cast<unsigned>(processors * Product::kBlocksPerProcessor), Product::kThreads,
                      Product::kSharedBytes, true};
  const auto sparse = product<Element, kHeadDim, kViews, kSquare, kPacked>;
  if (Status s = enqueue(sparse, "product", launch, a, stream); !s.ok()) return s;
  if constexpr (!kPacked) {
    if (!a.listing) return {};
    using Listed = ListedPlan<kHeadDim, kViews>;
    const Launch strips{static_cast<unsigned>(processors * Listed::kBlocksPerProcessor), Listed::kThreads,
                        Listed::kSharedBytes, true};
    return enqueue(listed<Element, kHeadDim, kViews, kSquare>, "listed", strips, a, stream);
  }
  return {};
}

template <typename Element, int kHeadDim, bool kPacked>
Status launch_forward(const ForwardArguments& a, int processors, cudaStream_t stream) {
  using Screen = ScreenPlan<kHeadDim>;
  if constexpr (kPacked) {
    if (Status s = launch_plan_documents(a, stream); !s.ok()) return s;
  }
  const int key_blocks = a.dense_scales ? 1 : a.views * a.batch * a.key_heads * a.key_tiles;
  const Launch keys{static_cast<unsigned>(key_blocks), kPrepareThreads, 0, kPacked};
  if (Status s = enqueue(prepare_keys<Element, kHeadDim, kPacked>, "prepare_keys", keys, a, stream); !s.ok()) return s;
  if (!a.all_dense) {
    const Launch rows{static_cast<unsigned>(processors), Screen::kThreads, Screen::kSharedBytes, true};
    const auto kernel = !kPacked && a.listing ? screen<Element, kHeadDim, kPacked, !kPacked>
                                              : screen<Element, kHeadDim, kPacked, false>;
    if (Status s = enqueue(kernel, "screen", rows, a, stream); !s.ok()) return s;
  }
  const bool square = a.power == 2.0f;
  if (a.views == 1) {
    return square ? launch_exact<Element, kHeadDim, 1, true, kPacked>(a, processors, stream)
                  : launch_exact<Element, kHeadDim, 1, false, kPacked>(a, processors, stream);
  }
  return square ? launch_exact<Element, kHeadDim, 2, true, kPacked>(a, processors, stream)
                : launch_exact<Element, kHeadDim, 2, false, kPacked>(a, processors, stream);
}

}  // namespace tda::cuda::sm90
