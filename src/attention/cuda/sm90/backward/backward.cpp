// The dense kernels of the sm90 backward behind the kernel family: what they support, and their arguments from a call.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <limits>
#include <string_view>

#include "attention/cuda/common/kernel_family.h"
#include "attention/cuda/common/tensor_map.h"
#include "attention/cuda/sm90/backward/arguments.h"

namespace tda::cuda::sm90 {

extern template Status launch_backward<__nv_bfloat16, 64>(const BackwardArguments&, int, CudaStream);
extern template Status launch_backward<__nv_bfloat16, 128>(const BackwardArguments&, int, CudaStream);
extern template Status launch_backward<__half, 64>(const BackwardArguments&, int, CudaStream);
extern template Status launch_backward<__half, 128>(const BackwardArguments&, int, CudaStream);

namespace {

TileSource query_source(const ConstTensor& tensor, const AttentionShape& shape) {
  return tile_source(tensor, shape, shape.query_length, shape.query_heads);
}
TileSource key_source(const ConstTensor& tensor, const AttentionShape& shape) {
  return tile_source(tensor, shape, shape.key_length, shape.key_heads);
}

// Gradients are stored sixteen bytes at a time; one that nobody wants fits always.
bool is_aligned(const Tensor& gradient, const AttentionShape& shape, std::int64_t length, std::int64_t heads) {
  const ConstTensor view{gradient.data, gradient.batch_stride, gradient.head_stride, gradient.row_stride};
  return gradient.data == nullptr || tile_source_is_aligned(tile_source(view, shape, length, heads));
}

bool supports(const BackwardCall& call, int compute_capability) {
  const AttentionShape& shape = call.shape;
  if (compute_capability != 90 || call.documents != nullptr || call.options.data_type == DataType::kFloat32 ||
      (shape.head_dim != 64 && shape.head_dim != 128) || shape.value_dim != shape.head_dim || shape.query_length == 0 ||
      shape.key_length > std::numeric_limits<std::int32_t>::max() / 2) {
    return false;
  }
  for (int view = 0; view < call.options.views; ++view) {
    if (!tile_source_is_aligned(query_source(call.inputs.q[view], shape)) ||
        !tile_source_is_aligned(key_source(call.inputs.k[view], shape)) ||
        !is_aligned(call.outputs.dq[view], shape, shape.query_length, shape.query_heads) ||
        !is_aligned(call.outputs.dk[view], shape, shape.key_length, shape.key_heads)) {
      return false;
    }
  }
  return tile_source_is_aligned(key_source(call.inputs.v, shape)) &&
         tile_source_is_aligned(query_source(call.d_output, shape)) &&
         is_aligned(call.outputs.dv, shape, shape.key_length, shape.key_heads);
}

// A dense tile of 128 x 64 scores costs about as much as two of its eight slices do one by one.
constexpr portable::DenseRule kRule{4, 2};

Status launch(const portable::Problem& problem, const portable::BackwardArguments& call,
              const portable::BackwardPlan& plan, CudaStream stream) {
  BackwardArguments a{};
  a.problem = problem;
  a.call = call;
  a.plan = plan;
  const AttentionShape& shape = problem.shape;
  const char* const query_names[2] = {"q[0]", "q[1]"};
  const char* const key_names[2] = {"k[0]", "k[1]"};
  for (int view = 0; view < problem.views; ++view) {
    Status status = make_tensor_map(query_source(problem.inputs.q[view], shape), query_names[view], a.query[view]);
    if (!status.ok()) return status;
    status = make_tensor_map(key_source(problem.inputs.k[view], shape), key_names[view], a.key[view]);
    if (!status.ok()) return status;
  }
  Status status = make_tensor_map(key_source(problem.inputs.v, shape), "v", a.value);
  if (!status.ok()) return status;
  status = make_tensor_map(query_source(call.d_output, shape), "d_output", a.d_output);
  if (!status.ok()) return status;
  int device = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) {
    return {std::string("attention_cuda_backward: device query failed: ") + cudaGetErrorString(error)};
  }
  const bool is_bfloat16 = problem.type == DataType::kBFloat16;
  if (shape.head_dim == 64) {
    return is_bfloat16 ? launch_backward<__nv_bfloat16, 64>(a, processors, stream)
                       : launch_backward<__half, 64>(a, processors, stream);
  }
  return is_bfloat16 ? launch_backward<__nv_bfloat16, 128>(a, processors, stream)
                     : launch_backward<__half, 128>(a, processors, stream);
}

}  // namespace

// Testing aid, read at each call: TDA_SM90_DENSE_BACKWARD=off leaves all tasks to the portable kernels, =always gives
// every one that holds a survivor to the dense kernels.
std::optional<portable::DenseBackward> dense_backward(const BackwardCall& call, int compute_capability) {
  if (!supports(call, compute_capability)) return std::nullopt;
  const char* const choice = std::getenv("TDA_SM90_DENSE_BACKWARD");
  if (choice == nullptr) return portable::DenseBackward{kRule, launch};
  if (std::string_view(choice) == "off") return std::nullopt;
  return portable::DenseBackward{std::string_view(choice) == "always" ? portable::DenseRule{1, 0} : kRule, launch};
}

}  // namespace tda::cuda::sm90
