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

ConstTensor view_of(const Tensor& gradient) {
  return {gradient.data, gradient.batch_stride, gradient.head_stride, gradient.row_stride};
}

// Gradients are stored sixteen bytes at a time; one that nobody wants fits always.
bool is_aligned(const Tensor& gradient, const AttentionShape& shape, std::int64_t length, std::int64_t heads) {
  return gradient.data == nullptr || tile_source_is_aligned(tile_source(view_of(gradient), shape, length, heads));
}

// Maps of the operands and of the gradients that are wanted.
Status make_tensor_maps(const portable::Problem& problem, const portable::BackwardArguments& call,
                        BackwardArguments& a) {
  const AttentionShape& shape = problem.shape;
  const char* const names[2][4] = {{"q[0]", "k[0]", "dq[0]", "dk[0]"}, {"q[1]", "k[1]", "dq[1]", "dk[1]"}};
  Status status;
  const auto add = [&](const TileSource& source, const char* name, CUtensorMap& map) {
    if (status.ok() && source.data != nullptr) status = make_tensor_map(source, name, map);
  };
  for (int view = 0; view < problem.views; ++view) {
    add(query_source(problem.inputs.q[view], shape), names[view][0], a.query[view]);
    add(key_source(problem.inputs.k[view], shape), names[view][1], a.key[view]);
    add(query_source(view_of(call.outputs.dq[view]), shape), names[view][2], a.dq[view]);
    add(key_source(view_of(call.outputs.dk[view]), shape), names[view][3], a.dk[view]);
  }
  add(key_source(problem.inputs.v, shape), "v", a.value);
  add(query_source(call.d_output, shape), "d_output", a.d_output);
  add(key_source(view_of(call.outputs.dv), shape), "dv", a.dv);
  return status;
}

bool supports(const BackwardCall& call, int compute_capability) {
  const AttentionShape& shape = call.shape;
  if (compute_capability != 90 || call.options.data_type == DataType::kFloat32 ||
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

Status launch(const portable::Problem& problem, const portable::BackwardArguments& call,
              const portable::BackwardPlan& plan, CudaStream stream) {
  BackwardArguments a{};
  a.problem = problem;
  a.call = call;
  a.plan = plan;
  const AttentionShape& shape = problem.shape;
  const Status status = make_tensor_maps(problem, call, a);
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

// Testing aid, read at each call: TDA_SM90_DENSE_BACKWARD=off leaves all tasks to the portable kernels.
portable::DenseBackward dense_backward(const BackwardCall& call, int compute_capability) {
  const char* const choice = std::getenv("TDA_SM90_DENSE_BACKWARD");
  const bool off = choice != nullptr && std::string_view(choice) == "off";
  return !off && supports(call, compute_capability) ? launch : nullptr;
}

}  // namespace tda::cuda::sm90
