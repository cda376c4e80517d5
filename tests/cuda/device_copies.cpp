#include "device_copies.h"

#include <algorithm>
#include <stdexcept>

#include "attention/reference/element_conversion.h"

namespace tda::test {

void require_cuda(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

DeviceSpan::DeviceSpan(DataType type, const void* host, const std::int64_t (&sizes)[4],
                       const std::int64_t (&strides)[3]) {
  std::int64_t first = 0, last = sizes[3];
  for (int d = 0; d < 3; ++d) {
    if (sizes[d] == 0) last = first = 0;
    const std::int64_t reach = (sizes[d] - 1) * strides[d];
    first += std::min<std::int64_t>(reach, 0);
    last += std::max<std::int64_t>(reach, 0);
  }
  const auto element = static_cast<std::int64_t>(element_size(type));
  before_ = static_cast<std::size_t>(-first * element);
  bytes_ = static_cast<std::size_t>((last - first) * element);
  host_ = static_cast<char*>(const_cast<void*>(host)) + first * element;
  // The copy keeps the alignment of the original within 256 bytes, so that aligned and misaligned paths both run.
  const std::size_t shift = reinterpret_cast<std::uintptr_t>(host_) % 16;
  before_ += shift;
  require_cuda(cudaMalloc(&device_, bytes_ + shift + 1));
  require_cuda(cudaMemcpy(static_cast<char*>(device_) + shift, host_, bytes_, cudaMemcpyHostToDevice));
}

DeviceSpan::~DeviceSpan() { static_cast<void>(cudaFree(device_)); }

void* DeviceSpan::data() const { return static_cast<char*>(device_) + before_; }

void DeviceSpan::copy_back() const {
  const std::size_t shift = reinterpret_cast<std::uintptr_t>(host_) % 16;
  require_cuda(cudaMemcpy(host_, static_cast<char*>(device_) + shift, bytes_, cudaMemcpyDeviceToHost));
}

DeviceSpan& DeviceCopies::add(DataType type, const void* host, const std::int64_t (&sizes)[4],
                              const std::int64_t (&strides)[3]) {
  spans_.push_back(std::make_unique<DeviceSpan>(type, host, sizes, strides));
  return *spans_.back();
}

ConstTensor DeviceCopies::copy(const ConstTensor& t, std::int64_t batch, std::int64_t heads, std::int64_t length,
                               std::int64_t dim) {
  DeviceSpan& span = add(type_, t.data, {batch, heads, length, dim}, {t.batch_stride, t.head_stride, t.row_stride});
  return {span.data(), t.batch_stride, t.head_stride, t.row_stride};
}

Tensor DeviceCopies::copy(const Tensor& t, std::int64_t batch, std::int64_t heads, std::int64_t length,
                          std::int64_t dim) {
  if (!t.data) return t;
  DeviceSpan& span = add(type_, t.data, {batch, heads, length, dim}, {t.batch_stride, t.head_stride, t.row_stride});
  outputs_.push_back(&span);
  return {span.data(), t.batch_stride, t.head_stride, t.row_stride};
}

void* DeviceCopies::copy_array(DataType type, const void* host, std::int64_t count, bool is_output) {
  if (!host) return nullptr;
  DeviceSpan& span = add(type, host, {1, 1, 1, count}, {0, 0, 0});
  if (is_output) outputs_.push_back(&span);
  return span.data();
}

void DeviceCopies::copy_back() const {
  for (const DeviceSpan* span : outputs_) span->copy_back();
}

}  // namespace tda::test
