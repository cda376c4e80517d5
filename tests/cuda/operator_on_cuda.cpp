// The operator of tests/attention on a CUDA device: every call copies its tensors there and back. The workspace is
// device memory that starts as NaN and is followed by a guard. TDA_TEST_KERNELS=portable forces the portable kernels.
#include <cstdlib>
#include <cstring>
#include <string>

#include "device_copies.h"
#include "operator_under_test.h"
#include "tda/attention_cuda.h"

namespace tda::test {
namespace {

// Half of the shapes are screened, even those that kAutomatic would not screen.
CudaAttentionOptions kernels_to_test(const AttentionShape& shape) {
  const char* choice = std::getenv("TDA_TEST_KERNELS");
  const bool portable = choice && std::string(choice) == "portable";
  return {portable ? CudaKernels::kPortable : CudaKernels::kAutomatic,
          (shape.query_length + shape.key_length / 2) % 2 == 0 ? Screening::kAlways : Screening::kAutomatic};
}

class DeviceWorkspace {
 public:
  explicit DeviceWorkspace(std::size_t bytes) : bytes_(bytes) {
    require_cuda(cudaMalloc(&data_, bytes + kGuard));
    require_cuda(cudaMemset(data_, 0xFF, bytes + kGuard));
  }
  ~DeviceWorkspace() { static_cast<void>(cudaFree(data_)); }
  DeviceWorkspace(const DeviceWorkspace&) = delete;
  DeviceWorkspace& operator=(const DeviceWorkspace&) = delete;
  void* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }
  Status check_guard() const {
    unsigned char guard[kGuard];
    require_cuda(cudaMemcpy(guard, static_cast<char*>(data_) + bytes_, kGuard, cudaMemcpyDeviceToHost));
    for (const unsigned char byte : guard) {
      if (byte != 0xFF) return {"the kernel wrote behind the workspace"};
    }
    return {};
  }

 private:
  static constexpr std::size_t kGuard = 256;
  std::size_t bytes_;
  void* data_ = nullptr;
};

AttentionInputs copy_inputs(DeviceCopies& copies, const AttentionShape& s, const AttentionOptions& o,
                            const AttentionInputs& in) {
  AttentionInputs result;
  for (int view = 0; view < o.views; ++view) {
    result.q[view] = copies.copy(in.q[view], s.batch, s.query_heads, s.query_length, s.head_dim);
    result.k[view] = copies.copy(in.k[view], s.batch, s.key_heads, s.key_length, s.head_dim);
  }
  result.v = copies.copy(in.v, s.batch, s.key_heads, s.key_length, s.value_dim);
  result.beta = copies.copy_array(DataType::kFloat32, in.beta, s.query_heads, false);
  result.lambda = copies.copy_array(DataType::kFloat32, in.lambda, s.query_heads, false);
  return result;
}

// The same documents with their offsets on the device.
PackedDocuments copy_documents(DeviceCopies& copies, const PackedDocuments& documents) {
  PackedDocuments result = documents;
  const auto copy = [&](const std::int32_t* offsets) {
    return static_cast<const std::int32_t*>(copies.copy_array(DataType::kFloat32, offsets, documents.count + 1, false));
  };
  result.query_offsets = copy(documents.query_offsets);
  result.key_offsets = copy(documents.key_offsets);
  return result;
}

}  // namespace

bool operator_takes(DataType type) { return type != DataType::kFloat64; }

std::size_t operator_index_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                 const PackedDocuments* documents) {
  return attention_cuda_survivor_index_bytes(shape, options, documents);
}
std::size_t operator_forward_workspace_bytes(const AttentionShape&, const AttentionOptions&, const PackedDocuments*) {
  return 0;
}
std::size_t operator_backward_workspace_bytes(const AttentionShape&, const AttentionOptions&, const PackedDocuments*) {
  return 0;
}

Status operator_forward(const AttentionShape& s, const AttentionOptions& options, const AttentionInputs& inputs,
                        const ForwardOutputs& outputs, void*, std::size_t, const PackedDocuments* host_documents) {
  DeviceCopies copies(options.data_type);
  const PackedDocuments packed = host_documents ? copy_documents(copies, *host_documents) : PackedDocuments{};
  const PackedDocuments* const documents = host_documents ? &packed : nullptr;
  const AttentionInputs device_inputs = copy_inputs(copies, s, options, inputs);
  ForwardOutputs device;
  device.output = copies.copy(outputs.output, s.batch, s.query_heads, s.query_length, s.value_dim);
  device.survivors = static_cast<std::int32_t*>(
      copies.copy_array(DataType::kFloat32, outputs.survivors, s.batch * s.query_heads * s.query_length, true));
  const auto words = static_cast<std::int64_t>(operator_index_bytes(s, options, documents) / 4);
  device.survivor_index = copies.copy_array(DataType::kFloat32, outputs.survivor_index, words, true);
  const DeviceWorkspace workspace(attention_cuda_forward_workspace_bytes(s, options, documents));
  if (Status status = attention_cuda_forward(s, options, device_inputs, device, workspace.data(), workspace.bytes(),
                                             nullptr, kernels_to_test(s), documents);
      !status.ok()) {
    return status;
  }
  require_cuda(cudaDeviceSynchronize());
  copies.copy_back();
  return workspace.check_guard();
}

Status operator_backward(const AttentionShape& s, const AttentionOptions& options, const AttentionInputs& inputs,
                         const ConstTensor& d_output, const void* survivor_index, const BackwardOutputs& outputs, void*,
                         std::size_t, const PackedDocuments* host_documents) {
  DeviceCopies copies(options.data_type);
  const PackedDocuments packed = host_documents ? copy_documents(copies, *host_documents) : PackedDocuments{};
  const PackedDocuments* const documents = host_documents ? &packed : nullptr;
  const AttentionInputs device_inputs = copy_inputs(copies, s, options, inputs);
  const ConstTensor device_d_output = copies.copy(d_output, s.batch, s.query_heads, s.query_length, s.value_dim);
  const auto words = static_cast<std::int64_t>(operator_index_bytes(s, options, documents) / 4);
  const void* index = copies.copy_array(DataType::kFloat32, survivor_index, words, false);
  BackwardOutputs device;
  for (int view = 0; view < options.views; ++view) {
    device.dq[view] = copies.copy(outputs.dq[view], s.batch, s.query_heads, s.query_length, s.head_dim);
    device.dk[view] = copies.copy(outputs.dk[view], s.batch, s.key_heads, s.key_length, s.head_dim);
  }
  device.dv = copies.copy(outputs.dv, s.batch, s.key_heads, s.key_length, s.value_dim);
  device.dbeta = copies.copy_array(DataType::kFloat32, outputs.dbeta, s.query_heads, true);
  device.dlambda = copies.copy_array(DataType::kFloat32, outputs.dlambda, s.query_heads, true);
  const DeviceWorkspace workspace(attention_cuda_backward_workspace_bytes(s, options, documents));
  if (Status status =
          attention_cuda_backward(s, options, device_inputs, device_d_output, index, device, workspace.data(),
                                  workspace.bytes(), nullptr, kernels_to_test(s), documents);
      !status.ok()) {
    return status;
  }
  require_cuda(cudaDeviceSynchronize());
  copies.copy_back();
  return workspace.check_guard();
}

}  // namespace tda::test
