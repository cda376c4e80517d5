// Copies of strided host tensors in device memory, for tests.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <vector>

#include "tda/attention.h"

namespace tda::test {

// Throws std::runtime_error with the text of the CUDA error.
void require_cuda(cudaError_t error);

// Device memory for the elements that a (batch, heads, length, dim) tensor with these strides spans, its gaps included.
class DeviceSpan {
 public:
  DeviceSpan(DataType type, const void* host, const std::int64_t (&sizes)[4], const std::int64_t (&strides)[3]);
  ~DeviceSpan();
  DeviceSpan(const DeviceSpan&) = delete;
  DeviceSpan& operator=(const DeviceSpan&) = delete;

  void* data() const;  // the counterpart of the host pointer
  void copy_back() const;

 private:
  std::size_t bytes_ = 0, before_ = 0;  // before_: bytes of the span in front of the host pointer
  char* host_ = nullptr;
  void* device_ = nullptr;
};

// Owns the spans of one call.
class DeviceCopies {
 public:
  explicit DeviceCopies(DataType type) : type_(type) {}
  ConstTensor copy(const ConstTensor& tensor, std::int64_t batch, std::int64_t heads, std::int64_t length,
                   std::int64_t dim);
  // Copied back by copy_back(). A null tensor stays null.
  Tensor copy(const Tensor& tensor, std::int64_t batch, std::int64_t heads, std::int64_t length, std::int64_t dim);
  // `count` contiguous elements of the given type.
  void* copy_array(DataType type, const void* host, std::int64_t count, bool is_output);
  void copy_back() const;

 private:
  DeviceSpan& add(DataType type, const void* host, const std::int64_t (&sizes)[4], const std::int64_t (&strides)[3]);

  DataType type_;
  std::vector<std::unique_ptr<DeviceSpan>> spans_;
  std::vector<DeviceSpan*> outputs_;
};

}  // namespace tda::test
