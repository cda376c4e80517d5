#include "tensor_buffer.h"

#include <cmath>
#include <limits>

#include "attention/reference/element_conversion.h"

namespace tda::test {

TensorBuffer::TensorBuffer(DataType type, std::array<std::int64_t, 4> sizes, Layout layout)
    : type_(type), sizes_(sizes) {
  const auto [b, h, t, d] = sizes;
  std::int64_t elements = b * h * t * d;
  strides_ = {h * t * d, t * d, d};
  switch (layout) {
    case Layout::kContiguous:
      break;
    case Layout::kTransposed:
      strides_ = {t * h * d, d, h * d};
      break;
    case Layout::kPaddedRows: {
      const std::int64_t row = d + 3 + d % 2;
      strides_ = {h * t * row + 5, t * row, row};
      offset_ = 3;
      elements = b * strides_[0] + offset_ + 7;
      break;
    }
    case Layout::kBroadcastBatch:
      strides_[0] = 0;
      elements = h * t * d;
      break;
    case Layout::kBroadcastHeads:
      strides_ = {t * d, 0, d};
      elements = b * t * d;
      break;
    case Layout::kReversedRows:
      strides_[2] = -d;
      offset_ = (t - 1) * d;
      break;
  }
  storage_elements_ = elements;
  storage_.assign((static_cast<std::size_t>(elements) * element_size(type) + 7) / 8 + 1, 0);
  for (std::int64_t i = 0; i < elements; ++i) {
    store_element(type, storage_.data(), i, std::numeric_limits<double>::quiet_NaN());
  }
}

std::int64_t TensorBuffer::index(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t c) const {
  return offset_ + b * strides_[0] + h * strides_[1] + t * strides_[2] + c;
}

double TensorBuffer::get(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t c) const {
  return load_element(type_, storage_.data(), index(b, h, t, c));
}

void TensorBuffer::set(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t c, double value) {
  store_element(type_, storage_.data(), index(b, h, t, c), value);
}

ConstTensor TensorBuffer::view() const {
  const auto* bytes = reinterpret_cast<const char*>(storage_.data());
  return {bytes + offset_ * static_cast<std::int64_t>(element_size(type_)), strides_[0], strides_[1], strides_[2]};
}

Tensor TensorBuffer::mutable_view() {
  auto* bytes = reinterpret_cast<char*>(storage_.data());
  return {bytes + offset_ * static_cast<std::int64_t>(element_size(type_)), strides_[0], strides_[1], strides_[2]};
}

std::vector<double> TensorBuffer::values() const {
  std::vector<double> result;
  result.reserve(static_cast<std::size_t>(numel()));
  for (std::int64_t b = 0; b < sizes_[0]; ++b) {
    for (std::int64_t h = 0; h < sizes_[1]; ++h) {
      for (std::int64_t t = 0; t < sizes_[2]; ++t) {
        for (std::int64_t c = 0; c < sizes_[3]; ++c) result.push_back(get(b, h, t, c));
      }
    }
  }
  return result;
}

void TensorBuffer::fill_normal(std::mt19937_64& random, double scale) {
  std::normal_distribution<double> normal(0.0, scale);
  for (std::int64_t b = 0; b < sizes_[0]; ++b) {
    for (std::int64_t h = 0; h < sizes_[1]; ++h) {
      for (std::int64_t t = 0; t < sizes_[2]; ++t) {
        for (std::int64_t c = 0; c < sizes_[3]; ++c) set(b, h, t, c, normal(random));
      }
    }
  }
}

bool TensorBuffer::gaps_untouched() const {
  std::vector<bool> inside(static_cast<std::size_t>(storage_elements_), false);
  for (std::int64_t b = 0; b < sizes_[0]; ++b) {
    for (std::int64_t h = 0; h < sizes_[1]; ++h) {
      for (std::int64_t t = 0; t < sizes_[2]; ++t) {
        for (std::int64_t c = 0; c < sizes_[3]; ++c) inside[static_cast<std::size_t>(index(b, h, t, c))] = true;
      }
    }
  }
  for (std::int64_t i = 0; i < storage_elements_; ++i) {
    if (!inside[static_cast<std::size_t>(i)] && !std::isnan(load_element(type_, storage_.data(), i))) return false;
  }
  return true;
}

}  // namespace tda::test
