// Keys and values of the positions a model has already seen, so that decoding computes new rows only.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <vector>

namespace tda {

// Keys are stored after RoPE, at absolute positions 0.. . Memory is reserved in steps that double, up to any length.
class KeyValueCache {
 public:
  explicit KeyValueCache(std::int64_t layers) : layers_(static_cast<std::size_t>(layers)) {}

  // Positions held, the same in every layer between two forward passes.
  std::int64_t length() const { return length_; }

  struct View {
    std::array<at::Tensor, 2> k;  // (B, H, length + new, D)
    at::Tensor v;                 // (B, H, length + new, D_v)
  };
  // Appends the new rows of one layer and returns all rows so far, as views of the cache.
  View append(std::int64_t layer, const std::array<at::Tensor, 2>& k, const at::Tensor& v);
  // Called once every layer has appended `rows` new positions.
  void advance(std::int64_t rows) { length_ += rows; }
  // Forgets every position from `length` on.
  void truncate(std::int64_t length);

 private:
  struct Layer {
    std::array<at::Tensor, 2> k;
    at::Tensor v;
  };
  std::vector<Layer> layers_;
  std::int64_t length_ = 0;
};

}  // namespace tda
